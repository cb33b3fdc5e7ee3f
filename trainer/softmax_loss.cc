#include "trainer/softmax_loss.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/training_kernels.h"

namespace vitrine {

SoftmaxLoss SoftmaxCrossEntropy(const std::vector<int64_t>& targets,
                                at::Tensor* logits) {
  SoftmaxLoss sum;
  const auto rows = static_cast<int64_t>(targets.size());
  const int64_t classes = logits->size(1);
  for (int64_t r = 0; r < rows; ++r) {
    const SoftmaxRow row =
        logits->scalar_type() == at::kBFloat16
            ? SoftmaxGradient(
                  reinterpret_cast<Bf16*>(logits->data_ptr<at::BFloat16>()) +
                      r * classes,
                  classes, targets[r])
            : SoftmaxGradient(logits->data_ptr<float>() + r * classes, classes,
                              targets[r]);
    sum.loss += row.loss;
    sum.found += row.found;
  }
  return sum;
}

}  // namespace vitrine
