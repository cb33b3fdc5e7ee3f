#pragma once

// Softmax over the scores of a group: which item a query belongs to.

#include <cstdint>

namespace at {
class Tensor;
}

namespace vitrine {

// `scores` is (groups * size), fp32, group after group; the first of each is
// the right one. Returns the sum of -log softmax(group)[0], a scalar. `found`,
// where not null, gets in how many groups the right one is above all others.
at::Tensor GroupLoss(const at::Tensor& scores, int64_t size,
                     int64_t* found = nullptr);

}  // namespace vitrine
