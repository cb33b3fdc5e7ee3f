#pragma once

// Names what was made of an item's text, in the caches of such things.

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// 128 bits of a SHA-256: callers choose the text, and must not be able to make
// two items meet.
using ItemKey = std::array<uint64_t, 2>;

// Of all the item's text, whatever its id. `maker` names all else that what is
// cached was made of.
ItemKey KeyOf(absl::string_view maker, const v1::Item& item);

}  // namespace vitrine
