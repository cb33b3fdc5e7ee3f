#include "trainer/group_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace vitrine {

at::Tensor GroupLoss(const at::Tensor& scores, int64_t size, int64_t* found) {
  const at::Tensor groups = scores.view({-1, size});
  if (found != nullptr) {
    const at::NoGradGuard no_grad;
    const at::Tensor others = std::get<0>(groups.narrow(1, 1, size - 1).max(1));
    *found = groups.select(1, 0).gt(others).sum().item<int64_t>();
  }
  return -at::log_softmax(groups, 1).select(1, 0).sum();
}

}  // namespace vitrine
