#include "trainer/training_kernels.h"

#include <cmath>

#include "model/vector_code.h"

namespace vitrine {
namespace {

template <typename T>
VITRINE_INLINE SoftmaxRow SoftmaxGradientImpl(T* row, int64_t size,
                                              int64_t target) {
  if (target < 0) {
    for (int64_t i = 0; i < size; ++i) Store(0.0f, &row[i]);
    return {};
  }
  float highest = Load(row[0]);
#pragma omp simd reduction(max : highest)
  for (int64_t i = 0; i < size; ++i) {
    highest = std::max(highest, Load(row[i]));
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += Exp(Load(row[i]) - highest);
  const float at_target = Load(row[target]);
  const float scale = 1.0f / sum;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    Store(Exp(Load(row[i]) - highest) * scale, &row[i]);
  }
  Store(Exp(at_target - highest) * scale - 1.0f, &row[target]);
  return {std::log(sum) + highest - at_target, at_target >= highest};
}

}  // namespace

VITRINE_MULTIVERSION
SoftmaxRow SoftmaxGradient(float* row, int64_t size, int64_t target) {
  return SoftmaxGradientImpl(row, size, target);
}

VITRINE_MULTIVERSION
SoftmaxRow SoftmaxGradient(Bf16* row, int64_t size, int64_t target) {
  return SoftmaxGradientImpl(row, size, target);
}

}  // namespace vitrine
