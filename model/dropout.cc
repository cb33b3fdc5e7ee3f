#include "model/dropout.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vitrine {
namespace {

// SplitMix64 (Steele, Lea, Flood, 2014), of a counter.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace

// Mixed, for seeds come in rows: the streams of counters that start close by
// would be the same, a few draws apart.
Dropout::Dropout(uint64_t seed) : state_(Mix(seed + 1)) {}

at::Tensor Dropout::Apply(const at::Tensor& x, double p) {
  if (p <= 0) return x;
  if (!x.is_cpu()) {
    // LibTorch's generator there, seeded anew each time.
    state_ += 0x9E3779B97F4A7C15u;
    at::Generator generator = at::globalContext().defaultGenerator(x.device());
    generator.set_current_seed(Mix(state_));
    return x * at::empty_like(x).bernoulli_(1 - p, generator).div_(1 - p);
  }
  const int64_t size = x.numel();
  at::Tensor mask = at::empty(x.sizes(), at::kFloat);
  float* const out = mask.data_ptr<float>();
  const auto keep = static_cast<float>(1 / (1 - p));
  // 16 bits decide on one element.
  const auto threshold = static_cast<uint32_t>(p * 65536);
  uint64_t state = state_;
  for (int64_t i = 0; i < size; i += 4) {
    state += 0x9E3779B97F4A7C15u;
    const uint64_t bits = Mix(state);
    const int64_t count = std::min<int64_t>(4, size - i);
    for (int64_t j = 0; j < count; ++j) {
      out[i + j] = ((bits >> (16 * j)) & 0xFFFF) < threshold ? 0.0f : keep;
    }
  }
  state_ = state;
  return x * mask.to(x.device(), x.scalar_type());
}

}  // namespace vitrine
