#pragma once

// What was made before, by key: the least recently used goes first, the whole
// is bounded in bytes. Nothing is ever invalidated, so a key has to name all
// that the value was made of. Any thread.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"

namespace vitrine {

// Any may be null; they outlive the cache.
struct CacheMetrics {
  prometheus::Counter* hits = nullptr;
  prometheus::Counter* misses = nullptr;
  prometheus::Gauge* bytes = nullptr;
};

template <typename Key, typename Value>
class LruCache {
 public:
  // max_bytes <= 0: keeps nothing.
  LruCache(int64_t max_bytes, CacheMetrics metrics)
      : metrics_(metrics),
        shards_(std::clamp<int64_t>(max_bytes / kMinShardBytes, 1, kMaxShards)),
        max_shard_bytes_(max_bytes / static_cast<int64_t>(shards_.size())) {}
  LruCache(const LruCache&) = delete;
  LruCache& operator=(const LruCache&) = delete;

  bool enabled() const { return max_shard_bytes_ > 0; }

  // Null when there is none.
  std::shared_ptr<const Value> Find(const Key& key) {
    std::shared_ptr<const Value> found;
    if (enabled()) {
      Shard& shard = ShardOf(key);
      MutexLock lock(shard.mu);
      const auto it = shard.index.find(key);
      if (it != shard.index.end()) {
        shard.nodes.splice(shard.nodes.begin(), shard.nodes, it->second);
        found = it->second->value;
      }
    }
    prometheus::Counter* const counter =
        found != nullptr ? metrics_.hits : metrics_.misses;
    if (counter != nullptr) counter->Increment();
    return found;
  }

  // `heap_bytes` is what the value takes beside its own size. Keeps what is
  // there already, and nothing that is larger than its part of the bound.
  void Insert(const Key& key, std::shared_ptr<const Value> value,
              int64_t heap_bytes) {
    const int64_t bytes = heap_bytes + kEntryBytes;
    if (bytes > max_shard_bytes_) return;
    Shard& shard = ShardOf(key);
    int64_t change = bytes;
    {
      MutexLock lock(shard.mu);
      if (shard.index.contains(key)) return;  // another call was faster
      while (shard.bytes + bytes > max_shard_bytes_) {
        const Node& oldest = shard.nodes.back();
        shard.bytes -= oldest.bytes;
        change -= oldest.bytes;
        shard.index.erase(oldest.key);
        shard.nodes.pop_back();
      }
      shard.nodes.push_front({key, std::move(value), bytes});
      shard.index.emplace(key, shard.nodes.begin());
      shard.bytes += bytes;
    }
    if (metrics_.bytes != nullptr) {
      metrics_.bytes->Increment(static_cast<double>(change));
    }
  }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) {
      MutexLock lock(shard.mu);
      sum += shard.bytes;
    }
    return sum;
  }

 private:
  struct Node {
    Key key;
    std::shared_ptr<const Value> value;
    int64_t bytes = 0;
  };

  // A part of the keys with a lock of its own, so that threads seldom meet.
  // On a cache line of its own, for the same reason.
  struct alignas(64) Shard {
    mutable Mutex mu;
    std::list<Node> nodes ABSL_GUARDED_BY(mu);  // the newest use first
    absl::flat_hash_map<Key, typename std::list<Node>::iterator> index
        ABSL_GUARDED_BY(mu);
    int64_t bytes ABSL_GUARDED_BY(mu) = 0;
  };

  static constexpr int64_t kMaxShards = 16;
  // A small cache has few: the bound of a shard bounds its entries, too.
  static constexpr int64_t kMinShardBytes = 1 << 20;
  // What an entry costs beside its value's heap, about: the value and its
  // control block, the node with two links, the hash slot in a table that is
  // never full, and the allocator's headers.
  static constexpr int64_t kEntryBytes =
      static_cast<int64_t>(sizeof(Value) + 16 + sizeof(Node) + 16 +
                           2 * (sizeof(Key) + sizeof(void*)) + 4 * 16);

  Shard& ShardOf(const Key& key) {
    // The table uses the low bits.
    const auto hash = static_cast<uint64_t>(absl::Hash<Key>()(key));
    return shards_[(hash >> 48) % shards_.size()];
  }

  const CacheMetrics metrics_;
  std::vector<Shard> shards_;  // fixed
  const int64_t max_shard_bytes_;
};

}  // namespace vitrine
