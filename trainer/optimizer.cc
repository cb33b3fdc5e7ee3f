#include "trainer/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/match.h"

namespace vitrine {
namespace {

// Elements that one worker takes at a time.
constexpr int64_t kPart = 1 << 16;

// A group's tensors and what is remembered of each.
struct Slots {
  std::vector<at::Tensor> tensors;
  std::vector<std::vector<at::Tensor>> moments;
  double learning_rate;
  double weight_decay;
};

std::vector<Slots> MakeSlots(const std::vector<ParameterGroup>& groups,
                             int moments) {
  std::vector<Slots> all;
  for (const ParameterGroup& group : groups) {
    Slots& slots = all.emplace_back(
        Slots{group.tensors, {}, group.learning_rate, group.weight_decay});
    for (int m = 0; m < moments; ++m) {
      std::vector<at::Tensor>& zeros = slots.moments.emplace_back();
      for (const at::Tensor& tensor : group.tensors) {
        zeros.push_back(at::zeros_like(tensor, at::MemoryFormat::Contiguous));
      }
    }
  }
  return all;
}

// What a step does with a group's tensors.
struct Rates {
  float rate;   // of the step
  float keep;   // of the parameter, by weight decay
  float scale;  // of the gradient
};

// What one call of Step works on: of each tensor that has a gradient.
struct Update {
  std::vector<at::Tensor> parameters, gradients;
  std::vector<std::vector<at::Tensor>> moments;
};

// Takes the gradients from the tensors.
Update TakeGradients(Slots* slots) {
  Update update;
  update.moments.resize(slots->moments.size());
  for (size_t i = 0; i < slots->tensors.size(); ++i) {
    at::Tensor& tensor = slots->tensors[i];
    if (!tensor.grad().defined()) continue;
    update.parameters.push_back(tensor.detach());
    update.gradients.push_back(tensor.grad().contiguous());
    tensor.mutable_grad() = at::Tensor();
    for (size_t m = 0; m < slots->moments.size(); ++m) {
      update.moments[m].push_back(slots->moments[m][i]);
    }
  }
  return update;
}

template <typename Self>
void StepGroups(std::vector<Slots>* groups, Workers* workers,
                double rate_factor, double gradient_scale, const Self& self) {
  const at::NoGradGuard no_grad;
  struct Part {
    const Update* update;
    Rates rates;
    size_t tensor;
    int64_t begin;
  };
  std::vector<Update> updates;
  updates.reserve(groups->size());
  std::vector<Part> parts;
  for (Slots& slots : *groups) {
    Update& update = updates.emplace_back(TakeGradients(&slots));
    if (update.parameters.empty()) continue;
    const double rate = slots.learning_rate * rate_factor;
    const Rates rates{static_cast<float>(rate),
                      static_cast<float>(1 - rate * slots.weight_decay),
                      static_cast<float>(gradient_scale)};
    if (!update.parameters.front().is_cpu()) {
      self.Operators(rates, &update);
      continue;
    }
    for (size_t i = 0; i < update.parameters.size(); ++i) {
      const int64_t size = update.parameters[i].numel();
      for (int64_t begin = 0; begin < size; begin += kPart) {
        parts.push_back({&update, rates, i, begin});
      }
    }
  }
  workers->Run(static_cast<int>(parts.size()), [&](int p) {
    const Part& part = parts[p];
    const size_t i = part.tensor;
    std::vector<float*> moments;
    for (const std::vector<at::Tensor>& moment : part.update->moments) {
      moments.push_back(moment[i].template data_ptr<float>());
    }
    const at::Tensor& parameter = part.update->parameters[i];
    self.Pass(part.rates, parameter.template data_ptr<float>(),
              part.update->gradients[i].template data_ptr<float>(), moments,
              part.begin, std::min(part.begin + kPart, parameter.numel()));
  });
}

std::vector<std::vector<at::Tensor>> MomentsOf(
    const std::vector<Slots>& groups) {
  std::vector<std::vector<at::Tensor>> all;
  for (const Slots& slots : groups) {
    all.resize(slots.moments.size());
    for (size_t m = 0; m < slots.moments.size(); ++m) {
      all[m].insert(all[m].end(), slots.moments[m].begin(),
                    slots.moments[m].end());
    }
  }
  return all;
}

class AdamW : public Optimizer {
 public:
  AdamW(const std::vector<ParameterGroup>& groups, Workers* workers,
        double beta2)
      : beta2_(static_cast<float>(beta2)),
        workers_(workers),
        groups_(MakeSlots(groups, /*moments=*/2)) {}

  void Step(double rate_factor, double gradient_scale) override {
    ++steps_;
    correct1_ = static_cast<float>(1 - std::pow(kBeta1, steps_));
    root_ = 1 / std::sqrt(static_cast<float>(1 - std::pow(beta2_, steps_)));
    StepGroups(&groups_, workers_, rate_factor, gradient_scale, *this);
  }

  // Elements from `begin` to `end` of one tensor.
  void Pass(const Rates& rates, float* p, const float* g,
            const std::vector<float*>& moments, int64_t begin,
            int64_t end) const {
    // Local, for what is written could be members else.
    const float step = rates.rate / correct1_, root = root_, beta2 = beta2_;
    float* const m = moments[0];
    float* const v = moments[1];
    for (int64_t i = begin; i < end; ++i) {
      const float gradient = g[i] * rates.scale;
      m[i] = kBeta1 * m[i] + (1 - kBeta1) * gradient;
      v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
      p[i] =
          rates.keep * p[i] - step * m[i] / (std::sqrt(v[i]) * root + kEpsilon);
    }
  }

  // The same of a list of tensors, of which the gradients may be changed.
  void Operators(const Rates& rates, Update* update) const {
    std::vector<at::Tensor>& m = update->moments[0];
    std::vector<at::Tensor>& v = update->moments[1];
    at::_foreach_mul_(update->gradients, rates.scale);
    at::_foreach_mul_(m, kBeta1);
    at::_foreach_add_(m, update->gradients, 1 - kBeta1);
    at::_foreach_mul_(v, beta2_);
    at::_foreach_addcmul_(v, update->gradients, update->gradients, 1 - beta2_);
    std::vector<at::Tensor> roots = at::_foreach_sqrt(v);
    at::_foreach_mul_(roots, root_);
    at::_foreach_add_(roots, kEpsilon);
    at::_foreach_mul_(update->parameters, rates.keep);
    at::_foreach_addcdiv_(update->parameters, m, roots,
                          -rates.rate / correct1_);
  }

  State GetState() override { return {&steps_, MomentsOf(groups_)}; }

 private:
  static constexpr float kBeta1 = 0.9f;
  static constexpr float kEpsilon = 1e-8f;

  const float beta2_;
  Workers* const workers_;
  std::vector<Slots> groups_;
  int64_t steps_ = 0;
  // Of the step: corrections of the two moments.
  float correct1_ = 0, root_ = 0;
};

class Sgd : public Optimizer {
 public:
  Sgd(const std::vector<ParameterGroup>& groups, Workers* workers)
      : workers_(workers), groups_(MakeSlots(groups, /*moments=*/1)) {}

  void Step(double rate_factor, double gradient_scale) override {
    StepGroups(&groups_, workers_, rate_factor, gradient_scale, *this);
  }

  void Pass(const Rates& rates, float* p, const float* g,
            const std::vector<float*>& moments, int64_t begin,
            int64_t end) const {
    float* const momentum = moments[0];
    for (int64_t i = begin; i < end; ++i) {
      momentum[i] = kMomentum * momentum[i] + g[i] * rates.scale;
      p[i] = rates.keep * p[i] - rates.rate * momentum[i];
    }
  }

  void Operators(const Rates& rates, Update* update) const {
    std::vector<at::Tensor>& momentum = update->moments[0];
    at::_foreach_mul_(momentum, kMomentum);
    at::_foreach_add_(momentum, update->gradients, rates.scale);
    at::_foreach_mul_(update->parameters, rates.keep);
    at::_foreach_add_(update->parameters, momentum, -rates.rate);
  }

  State GetState() override { return {nullptr, MomentsOf(groups_)}; }

 private:
  static constexpr float kMomentum = 0.9f;

  Workers* const workers_;
  std::vector<Slots> groups_;
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
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.grad().defined()) gradients.push_back(tensor.grad());
  }
  if (gradients.empty()) return 0;
  if (!gradients.front().is_cpu()) {
    // One number comes from the device, not one for each tensor.
    return at::stack(at::_foreach_norm(gradients)).norm().item<double>();
  }
  std::vector<double> squares(gradients.size());
  workers->Run(static_cast<int>(gradients.size()), [&](int i) {
    const at::NoGradGuard no_grad;
    const double norm = gradients[i].norm().item<double>();
    squares[i] = norm * norm;
  });
  return std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
}

}  // namespace vitrine
