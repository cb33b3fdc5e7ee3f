#pragma once

// The parts of training between matrix products, for the CPU: fused passes
// over memory in place of chains of LibTorch calls. The counterpart of
// model/cpu_kernels.h, and made the same way: plain loops that the compiler
// turns into AVX-512 or AVX2, arithmetic in fp32. Free of LibTorch; any
// thread.

#include <cstdint>

#include "model/cpu_kernels.h"

namespace vitrine {

struct SoftmaxRow {
  float loss = 0;
  bool found = false;  // the target is the likeliest
};

// Turns one row of logits into the gradient of its cross-entropy with
// `target`: softmax, less 1 at the target. `target` -1: the row becomes 0.
SoftmaxRow SoftmaxGradient(float* row, int64_t size, int64_t target);
SoftmaxRow SoftmaxGradient(Bf16* row, int64_t size, int64_t target);

}  // namespace vitrine
