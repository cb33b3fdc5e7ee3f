#pragma once

// Dropout with a generator of its own: several threads train at once, each
// with masks that depend on nothing but its seed. (LibTorch's generator is one
// for the process, behind a lock, and an order of magnitude slower.)

#include <cstdint>

namespace at {
class Tensor;
}

namespace vitrine {

// For one thread at a time.
class Dropout {
 public:
  explicit Dropout(uint64_t seed);

  // Each element of `x` with probability `p` 0, else divided by 1 - p.
  at::Tensor Apply(const at::Tensor& x, double p);

  // Where its stream stands: all there is to keep of it.
  uint64_t state() const { return state_; }
  void set_state(uint64_t state) { state_ = state; }

 private:
  uint64_t state_;
};

}  // namespace vitrine
