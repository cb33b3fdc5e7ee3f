#include "model/task_head.h"

#include <ATen/CPUGeneratorImpl.h>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/dropout.h"
#include "model/to_tensor.h"

namespace vitrine {
namespace {

bool Embeds(const internal::Head& head) {
  return head.kind() == internal::HEAD_KIND_RECOMMENDATION;
}

std::string LastLayer(const internal::Head& head) {
  return absl::StrCat(head.name(), Embeds(head) ? ".projection" : ".out_proj");
}

}  // namespace

at::Tensor Pool(const at::Tensor& hidden, const std::vector<int32_t>& offsets,
                internal::Pooling pooling) {
  const std::vector<int64_t> starts(offsets.begin(), offsets.end() - 1);
  return Pool(hidden, at::tensor(starts, at::kLong).to(hidden.device()),
              pooling);
}

at::Tensor Pool(const at::Tensor& hidden, const at::Tensor& first,
                internal::Pooling pooling) {
  if (pooling != internal::POOLING_MEAN) {
    return hidden.index_select(0, first).to(at::kFloat);
  }
  // One call for all sequences; sums are in fp32 whatever comes in.
  const at::Tensor rows = at::arange(hidden.size(0), first.options());
  return std::get<0>(at::embedding_bag(hidden.to(at::kFloat), rows, first,
                                       /*scale_grad_by_freq=*/false,
                                       /*mode=*/1));
}

absl::StatusOr<TaskHead> TaskHead::FromCheckpoint(const Checkpoint& checkpoint,
                                                  const internal::Head& head) {
  TaskHead out;
  out.head_ = head;
  out.hidden_size_ = checkpoint.config.hidden_size;
  const auto load = [&checkpoint](const std::string& name,
                                  at::Tensor* tensor) -> absl::Status {
    const auto it = checkpoint.heads.find(name);
    if (it == checkpoint.heads.end()) return absl::OkStatus();
    absl::StatusOr<at::Tensor> loaded = ToTensor(it->second);
    if (!loaded.ok()) return Annotate(loaded.status(), name);
    *tensor = *std::move(loaded);
    return absl::OkStatus();
  };
  const std::string last = LastLayer(head);
  RETURN_IF_ERROR(load(head.name() + ".dense.weight", &out.dense_weight_));
  RETURN_IF_ERROR(load(head.name() + ".dense.bias", &out.dense_bias_));
  RETURN_IF_ERROR(load(last + ".weight", &out.out_weight_));
  RETURN_IF_ERROR(load(last + ".bias", &out.out_bias_));
  if (!Embeds(head) && !out.out_weight_.defined()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no tensor ", last, ".weight"));
  }
  return out;
}

TaskHead TaskHead::Random(const internal::Head& head, int64_t hidden_size,
                          uint64_t seed) {
  TaskHead out;
  out.head_ = head;
  out.hidden_size_ = hidden_size;
  if (Embeds(head)) {
    out.out_weight_ = at::eye(hidden_size);
    out.out_bias_ = at::zeros({hidden_size});
    return out;
  }
  const int64_t width =
      head.kind() == internal::HEAD_KIND_RELEVANCE ? 1 : head.labels_size();
  at::Generator generator = at::detail::createCPUGenerator(seed);
  out.dense_weight_ =
      at::normal(0.0, 0.02, {hidden_size, hidden_size}, generator);
  out.dense_bias_ = at::zeros({hidden_size});
  out.out_weight_ = at::normal(0.0, 0.02, {width, hidden_size}, generator);
  out.out_bias_ = at::zeros({width});
  return out;
}

int64_t TaskHead::width() const {
  return out_weight_.defined() ? out_weight_.size(0) : hidden_size_;
}

std::vector<std::pair<std::string, at::Tensor>> TaskHead::parameters() const {
  const std::string last = LastLayer(head_);
  std::vector<std::pair<std::string, at::Tensor>> out;
  const auto add = [&out](const std::string& name, const at::Tensor& tensor) {
    if (tensor.defined()) out.emplace_back(name, tensor);
  };
  add(head_.name() + ".dense.weight", dense_weight_);
  add(head_.name() + ".dense.bias", dense_bias_);
  add(last + ".weight", out_weight_);
  add(last + ".bias", out_bias_);
  return out;
}

void TaskHead::To(const at::Device& device, at::ScalarType dtype) {
  for (at::Tensor* tensor :
       {&dense_weight_, &dense_bias_, &out_weight_, &out_bias_}) {
    if (tensor->defined()) *tensor = CopyTo(*tensor, device, dtype);
  }
}

at::Tensor TaskHead::Forward(const at::Tensor& pooled, Dropout* dropout,
                             double rate) const {
  at::Tensor x = pooled;
  if (dense_weight_.defined()) {
    x = at::tanh(at::linear(x, dense_weight_, dense_bias_));
  }
  if (dropout != nullptr) x = dropout->Apply(x, rate);
  if (out_weight_.defined()) x = at::linear(x, out_weight_, out_bias_);
  if (!Embeds(head_)) return x;
  x = x.to(at::kFloat);
  // The bound keeps a vector of zeros from becoming NaN.
  return x / x.norm(2, {1}, /*keepdim=*/true).clamp_min(1e-12);
}

}  // namespace vitrine
