#pragma once

// A held-out user as the mixture is fitted on.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/cooccurrence.h"
#include "trainer/dataset.h"
#include "trainer/mixture_fit.h"

namespace vitrine {

// The last of `items` is to be told from all items that the others speak for,
// and from some 200 that stand for the rest: every n-th of the catalogue, by
// user from another one on. cosines[i] is that of the others with listed item
// i. What the user had is no candidate.
MixtureRow MixtureRowOf(const Cooccurrence& counts, const Catalogue& catalogue,
                        const std::vector<int32_t>& items,
                        absl::Span<const float> cosines, size_t user);

}  // namespace vitrine
