#pragma once

// Softmax over the pairs of a batch: each text finds its other half among all
// the others' (InfoNCE: van den Oord and others, 2018), in both directions.

#include <cstdint>

#include "absl/types/span.h"

namespace at {
class Tensor;
}

namespace vitrine {

// `vectors` is (2 * pairs, width) fp32, of length 1 each: first the left half
// of every pair, then the right ones in the same order. The loss of left half
// i is -log softmax(l_i R^T / temperature)[i], that of right half i
// -log softmax(r_i L^T / temperature)[i]; returns their sum, a scalar.
//
// keys[v] is the same for equal texts: another pair's half that equals one's
// own (a category many products have) is no negative. `found`, where not null,
// gets how many halves have their own other half for the nearest.
at::Tensor ContrastiveLoss(const at::Tensor& vectors,
                           absl::Span<const uint64_t> keys, double temperature,
                           int64_t* found = nullptr);

}  // namespace vitrine
