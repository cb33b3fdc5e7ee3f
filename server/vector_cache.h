#pragma once

// Vectors of items that were seen before, so that a history is scored without
// running the same catalogue through the encoder again and again.
//
// Keys carry the version and the digest of all the text that made the vector;
// nothing has to be invalidated, old versions' entries age out. Least recently
// used first, bounded in bytes. Any thread.

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

class VectorCache {
 public:
  struct Entry {
    std::vector<float> vector;
    bool truncated = false;  // whether text was cut to make it
  };

  // Any of the metrics may be null; they outlive the cache.
  struct CacheMetrics {
    prometheus::Counter* hits = nullptr;
    prometheus::Counter* misses = nullptr;
    prometheus::Gauge* bytes = nullptr;
  };

  // max_bytes <= 0: keeps nothing.
  VectorCache(int64_t max_bytes, CacheMetrics metrics);

  bool enabled() const { return max_bytes_ > 0; }

  // Null when there is none.
  std::shared_ptr<const Entry> Find(const std::string& key);
  void Insert(const std::string& key, std::shared_ptr<const Entry> entry);

  int64_t bytes() const;

  // The key of an item's vector by head `head` of a version.
  static std::string KeyOf(absl::string_view model, absl::string_view version,
                           absl::string_view head, const v1::Item& item);

 private:
  struct Node {
    std::string key;
    std::shared_ptr<const Entry> entry;
    int64_t bytes = 0;
  };

  void DropOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t max_bytes_;
  const CacheMetrics metrics_;

  mutable Mutex mu_;
  std::list<Node> nodes_ ABSL_GUARDED_BY(mu_);  // the newest use first
  // Keys view into the nodes.
  absl::flat_hash_map<absl::string_view, std::list<Node>::iterator> index_
      ABSL_GUARDED_BY(mu_);
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace vitrine
