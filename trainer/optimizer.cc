#include "trainer/optimizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/match.h"

namespace vitrine {
namespace {

// Elements that one worker takes at a time.
constexpr int64_t kPart = 1 << 16;

// One tensor with its state: `a` and `b` are as large as it.
struct Slot {
  at::Tensor tensor;
  double learning_rate;
  double weight_decay;
  std::vector<float> a, b;
};

std::vector<Slot> MakeSlots(const std::vector<ParameterGroup>& groups,
                            bool two) {
  std::vector<Slot> slots;
  for (const ParameterGroup& group : groups) {
    for (const at::Tensor& tensor : group.tensors) {
      Slot slot{tensor, group.learning_rate, group.weight_decay, {}, {}};
      slot.a.resize(tensor.numel());
      if (two) slot.b.resize(tensor.numel());
      slots.push_back(std::move(slot));
    }
  }
  return slots;
}

// Calls update(slot, parameters, gradients, begin, end) over every slot that
// has a gradient, and drops the gradient.
template <typename Update>
void ForEachSlot(std::vector<Slot>* slots, Workers* workers,
                 const Update& update) {
  struct Part {
    Slot* slot;
    at::Tensor gradient;
    int64_t begin;
  };
  std::vector<Part> parts;
  for (Slot& slot : *slots) {
    if (!slot.tensor.grad().defined()) continue;
    const at::Tensor gradient = slot.tensor.grad().contiguous();
    for (int64_t begin = 0; begin < slot.tensor.numel(); begin += kPart) {
      parts.push_back({&slot, gradient, begin});
    }
    slot.tensor.mutable_grad() = at::Tensor();
  }
  workers->Run(static_cast<int>(parts.size()), [&](int i) {
    const Part& part = parts[i];
    update(part.slot, part.slot->tensor.template data_ptr<float>(),
           part.gradient.template data_ptr<float>(), part.begin,
           std::min(part.begin + kPart, part.slot->tensor.numel()));
  });
}

std::vector<absl::Span<float>> SpansOf(std::vector<Slot>* slots,
                                       std::vector<float> Slot::*moment) {
  std::vector<absl::Span<float>> spans;
  for (Slot& slot : *slots) spans.push_back(absl::MakeSpan(slot.*moment));
  return spans;
}

class AdamW : public Optimizer {
 public:
  AdamW(const std::vector<ParameterGroup>& groups, Workers* workers,
        double beta2)
      : beta2_(static_cast<float>(beta2)),
        workers_(workers),
        slots_(MakeSlots(groups, /*two=*/true)) {}

  void Step(double rate_factor, double gradient_scale) override {
    ++steps_;
    const float correct1 = static_cast<float>(1 - std::pow(kBeta1, steps_));
    const float correct2 = static_cast<float>(1 - std::pow(beta2_, steps_));
    const auto scale = static_cast<float>(gradient_scale);
    ForEachSlot(
        &slots_, workers_,
        [&](Slot* slot, float* p, const float* g, int64_t begin, int64_t end) {
          const auto rate =
              static_cast<float>(slot->learning_rate * rate_factor);
          const auto keep = static_cast<float>(
              1 - slot->learning_rate * rate_factor * slot->weight_decay);
          const float step = rate / correct1;
          const float root = 1 / std::sqrt(correct2);
          float* const m = slot->a.data();
          float* const v = slot->b.data();
          for (int64_t i = begin; i < end; ++i) {
            const float gradient = g[i] * scale;
            m[i] = kBeta1 * m[i] + (1 - kBeta1) * gradient;
            v[i] = beta2_ * v[i] + (1 - beta2_) * gradient * gradient;
            p[i] =
                keep * p[i] - step * m[i] / (std::sqrt(v[i]) * root + kEpsilon);
          }
        });
  }

  State GetState() override {
    return {&steps_, {SpansOf(&slots_, &Slot::a), SpansOf(&slots_, &Slot::b)}};
  }

 private:
  static constexpr float kBeta1 = 0.9f;
  static constexpr float kEpsilon = 1e-8f;

  const float beta2_;
  Workers* const workers_;
  std::vector<Slot> slots_;
  int64_t steps_ = 0;
};

class Sgd : public Optimizer {
 public:
  Sgd(const std::vector<ParameterGroup>& groups, Workers* workers)
      : workers_(workers), slots_(MakeSlots(groups, /*two=*/false)) {}

  void Step(double rate_factor, double gradient_scale) override {
    const auto scale = static_cast<float>(gradient_scale);
    ForEachSlot(
        &slots_, workers_,
        [&](Slot* slot, float* p, const float* g, int64_t begin, int64_t end) {
          const auto rate =
              static_cast<float>(slot->learning_rate * rate_factor);
          const auto keep = static_cast<float>(
              1 - slot->learning_rate * rate_factor * slot->weight_decay);
          float* const momentum = slot->a.data();
          for (int64_t i = begin; i < end; ++i) {
            momentum[i] = kMomentum * momentum[i] + g[i] * scale;
            p[i] = keep * p[i] - rate * momentum[i];
          }
        });
  }

  State GetState() override { return {nullptr, {SpansOf(&slots_, &Slot::a)}}; }

 private:
  static constexpr float kMomentum = 0.9f;

  Workers* const workers_;
  std::vector<Slot> slots_;
};

}  // namespace

std::unique_ptr<Optimizer> NewAdamW(std::vector<ParameterGroup> groups,
                                    Workers* workers, double beta2) {
  return std::make_unique<AdamW>(groups, workers, beta2);
}

std::unique_ptr<Optimizer> NewSgd(std::vector<ParameterGroup> groups,
                                  Workers* workers) {
  return std::make_unique<Sgd>(groups, workers);
}

bool IsDecayed(absl::string_view name) {
  return !absl::EndsWith(name, ".bias") &&
         !absl::StrContains(name, "LayerNorm") &&
         !absl::StrContains(name, "layer_norm");
}

double GradientNorm(const std::vector<at::Tensor>& tensors, Workers* workers) {
  std::vector<double> squares(tensors.size());
  workers->Run(static_cast<int>(tensors.size()), [&](int i) {
    const at::NoGradGuard no_grad;
    if (!tensors[i].grad().defined()) return;
    const double norm = tensors[i].grad().norm().item<double>();
    squares[i] = norm * norm;
  });
  return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
}

}  // namespace vitrine
