#pragma once

// AdamW and SGD over fp32 tensors. On the CPU each step is one pass over
// memory: LibTorch's own make nine, and for a BERT the step is bound by memory.
// On other devices its operators work on lists of tensors.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "trainer/workers.h"

namespace at {
class Tensor;
}

namespace vitrine {

// Tensors that share settings, all groups' on one device. A tensor without a
// gradient is left alone.
struct ParameterGroup {
  std::vector<at::Tensor> tensors;
  double learning_rate = 0;  // before the schedule's factor
  double weight_decay = 0;   // decoupled: p -= lr * decay * p
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // Changes the parameters by their gradients times `gradient_scale` (how
  // clipping is done) with learning rates times `rate_factor`, and drops the
  // gradients.
  virtual void Step(double rate_factor, double gradient_scale) = 0;

  // What it remembers, in place: to be kept, and to be written back before the
  // first step. One moment after the other, each of every tensor in the
  // groups' order, of its shape and on its device.
  struct State {
    int64_t* steps = nullptr;  // null where they do not matter
    std::vector<std::vector<at::Tensor>> moments;
  };
  virtual State GetState() = 0;
};

// Loshchilov and Hutter, 2019; beta1 0.9, epsilon 1e-8.
// `workers` outlives the optimizer.
std::unique_ptr<Optimizer> NewAdamW(std::vector<ParameterGroup> groups,
                                    Workers* workers, double beta2 = 0.999);

// With momentum 0.9.
std::unique_ptr<Optimizer> NewSgd(std::vector<ParameterGroup> groups,
                                  Workers* workers);

// Whether weight decay is for a tensor of that name: not for biases and
// LayerNorm.
bool IsDecayed(absl::string_view name);

// The L2 norm of all gradients together.
double GradientNorm(const std::vector<at::Tensor>& tensors, Workers* workers);

}  // namespace vitrine
