#include "trainer/softmax_loss.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/training_kernels.h"

namespace vitrine {

SoftmaxLoss SoftmaxByOperators(const std::vector<int64_t>& targets,
                               at::Tensor* logits) {
  const at::Tensor all = at::tensor(targets, at::kLong).to(logits->device());
  const at::Tensor counts = all.ge(0).unsqueeze(1);
  const at::Tensor target = all.clamp_min(0).unsqueeze(1);
  const at::Tensor log = at::log_softmax(*logits, 1, at::kFloat);
  SoftmaxLoss sum;
  sum.loss = -(log.gather(1, target) * counts).sum().item<double>();
  sum.found = (log.argmax(1, /*keepdim=*/true).eq(target) & counts)
                  .sum()
                  .item<int64_t>();
  const at::Tensor one = at::ones_like(target, log.options());
  *logits = (log.exp().scatter_add_(1, target, -one) * counts)
                .to(logits->scalar_type());
  return sum;
}

SoftmaxLoss SoftmaxCrossEntropy(const std::vector<int64_t>& targets,
                                at::Tensor* logits) {
  if (!logits->is_cpu()) return SoftmaxByOperators(targets, logits);
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
