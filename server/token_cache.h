#pragma once

// Tokens of items' texts that were seen before. A catalogue comes again with
// every query, and splitting a text costs several times what finding it does.
//
// Keys name the text and what split it, not the version: versions with one
// tokenizer and encoding share their entries, so that a swap does not start
// cold. Owned by the server. Any thread.

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "model/featurizer.h"
#include "server/item_key.h"
#include "server/lru_cache.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

class TokenCache {
 public:
  // max_bytes <= 0: keeps nothing.
  TokenCache(int64_t max_bytes, CacheMetrics metrics)
      : cache_(max_bytes, metrics) {}

  // featurizer.ItemText(item). Errors are not kept.
  absl::StatusOr<std::shared_ptr<const Tokens>> ItemText(
      const Featurizer& featurizer, const v1::Item& item);

  int64_t bytes() const { return cache_.bytes(); }

  // Items of more bytes, as messages, are split each time: budgets bound what
  // that costs, while a digest costs more with every byte.
  static constexpr size_t kMaxItemBytes = 4096;

 private:
  LruCache<ItemKey, Tokens> cache_;
};

}  // namespace vitrine
