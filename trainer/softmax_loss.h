#pragma once

// Cross-entropy over a wide softmax, one pass for loss and gradient.

#include <cstdint>
#include <vector>

namespace at {
class Tensor;
}

namespace vitrine {

struct SoftmaxLoss {
  double loss = 0;    // summed over the rows
  int64_t found = 0;  // rows whose target has the highest logit
};

// `logits`, (rows, classes) fp32 or bf16, contiguous, become the gradient of
// the summed loss by them. targets[r] is row r's class; -1: the row counts for
// nothing, and its gradient is 0. Any thread. On a GPU by LibTorch's operators.
SoftmaxLoss SoftmaxCrossEntropy(const std::vector<int64_t>& targets,
                                at::Tensor* logits);
// What it is there, on any device.
SoftmaxLoss SoftmaxByOperators(const std::vector<int64_t>& targets,
                               at::Tensor* logits);

}  // namespace vitrine
