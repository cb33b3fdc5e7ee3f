#include "server/token_cache.h"

#include <utility>

namespace vitrine {

absl::StatusOr<std::shared_ptr<const Tokens>> TokenCache::ItemText(
    const Featurizer& featurizer, const v1::Item& item) {
  const bool cached = cache_.enabled() && item.ByteSizeLong() <= kMaxItemBytes;
  ItemKey key;
  if (cached) {
    key = KeyOf(featurizer.item_text_digest(), item);
    if (std::shared_ptr<const Tokens> found = cache_.Find(key)) return found;
  }
  absl::StatusOr<Tokens> made = featurizer.ItemText(item);
  if (!made.ok()) return made.status();
  auto tokens = std::make_shared<Tokens>(*std::move(made));
  if (cached) {
    // They were appended to, field by field.
    tokens->ids.shrink_to_fit();
    tokens->words.shrink_to_fit();
    cache_.Insert(
        key, tokens,
        static_cast<int64_t>(tokens->ids.size() * sizeof(int32_t) +
                             tokens->words.size() * sizeof(uint32_t)));
  }
  return tokens;
}

}  // namespace vitrine
