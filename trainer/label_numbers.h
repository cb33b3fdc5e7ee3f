#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

using LabelNumbers = absl::flat_hash_map<std::string, int32_t>;

// The head's labels, then those of `names` that are new, in sorted order; the
// head gets the new ones too.
LabelNumbers AddLabels(const std::set<std::string>& names,
                       internal::Head* head);

}  // namespace vitrine
