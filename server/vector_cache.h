#pragma once

// Vectors of items that were seen before, so that a history is scored without
// running the same catalogue through the encoder again and again. Keys carry
// the version and the head; old versions' entries age out.

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/item_key.h"
#include "server/lru_cache.h"

namespace vitrine {

struct ItemVector {
  std::vector<float> vector;
  bool truncated = false;  // whether text was cut to make it
};

using VectorCache = LruCache<ItemKey, ItemVector>;

// The maker, as KeyOf wants it, of the vectors by head `head` of a version.
std::string VectorMaker(absl::string_view model, absl::string_view version,
                        absl::string_view head);

}  // namespace vitrine
