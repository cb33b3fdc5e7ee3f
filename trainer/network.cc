#include "trainer/network.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/bert.h"
#include "model/task_head.h"
#include "trainer/autocast.h"
#include "trainer/batches.h"
#include "trainer/named_tensors.h"

namespace vitrine {
namespace {

// Tokens in one batch of inference: enough to fill the matrix products.
constexpr int kInferTokens = 4096;

// Bounds of at most `shares` runs of sequences with about as many tokens each.
std::vector<size_t> SplitByTokens(absl::Span<const Encoding* const> sequences,
                                  int shares) {
  int64_t total = 0;
  for (const Encoding* const s : sequences) total += s->ids.size();
  std::vector<size_t> bounds = {0};
  int64_t tokens = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    tokens += sequences[i]->ids.size();
    if (tokens * shares >= total * static_cast<int64_t>(bounds.size())) {
      bounds.push_back(i + 1);
    }
  }
  return bounds;
}

// Moves an encoder or a head that was made on the CPU to where it is trained.
template <typename Part>
void ToDevice(const PassDevice& device, Part* part) {
  if (!device.cpu()) part->To(ToTorchDevice(device), at::kFloat);
}

// A head whose weights are `tensors`.
absl::StatusOr<TaskHead> HeadOf(const EncoderConfig& config,
                                const internal::Head& head,
                                const std::vector<NamedTensor>& tensors) {
  Checkpoint checkpoint;
  checkpoint.config = config;
  for (const NamedTensor& tensor : tensors) {
    TensorView& view = checkpoint.heads[tensor.name];
    view.type = TensorType::kF32;
    view.shape = tensor.shape;
    view.bytes = {reinterpret_cast<const char*>(tensor.values.data()),
                  tensor.values.size() * sizeof(float)};
  }
  return TaskHead::FromCheckpoint(checkpoint, head);
}

}  // namespace

Network::Network() = default;
Network::~Network() = default;

absl::StatusOr<std::unique_ptr<Network>> Network::Create(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    bool bf16, Workers* workers, PassDevice device) {
  std::unique_ptr<Network> network(new Network());
  network->device_ = device;
  network->workers_ = workers;
  network->bf16_ = bf16;
  ASSIGN_OR_RETURN(Bert bert, Bert::FromCheckpoint(checkpoint));
  ToDevice(device, &bert);
  network->bert_ = std::make_unique<Bert>(std::move(bert));
  for (const internal::Head& head : heads) {
    ASSIGN_OR_RETURN(TaskHead loaded,
                     TaskHead::FromCheckpoint(checkpoint, head));
    ToDevice(device, &loaded);
    network->heads_.push_back(head);
    network->weights_.push_back(std::make_unique<TaskHead>(std::move(loaded)));
  }
  return network;
}

std::unique_ptr<Network> Network::Random(const EncoderConfig& config,
                                         uint64_t seed) {
  std::unique_ptr<Network> network(new Network());
  network->bert_ = std::make_unique<Bert>(Bert::Random(config, seed));
  return network;
}

const EncoderConfig& Network::config() const { return bert_->config(); }

int Network::width(int h) const {
  return static_cast<int>(weights_[h]->width());
}

int Network::FindHead(const std::string& name) const {
  for (int h = 0; h < head_count(); ++h) {
    if (heads_[h].name() == name) return h;
  }
  return -1;
}

absl::StatusOr<int> Network::PutHead(const internal::Head& head,
                                     uint64_t seed) {
  TaskHead fresh = TaskHead::Random(head, config().hidden_size, seed);
  const int h = FindHead(head.name());
  if (h < 0) {
    ToDevice(device_, &fresh);
    heads_.push_back(head);
    weights_.push_back(std::make_unique<TaskHead>(std::move(fresh)));
    return head_count() - 1;
  }
  if (heads_[h].kind() != head.kind()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head ", head.name(), " is there already, of another kind: ",
        internal::HeadKind_Name(heads_[h].kind()), ", not ",
        internal::HeadKind_Name(head.kind())));
  }
  if (heads_[h].labels_size() < head.labels_size()) {
    std::vector<NamedTensor> tensors;
    const auto fresh_parameters = fresh.parameters();
    for (const auto& [name, old] : weights_[h]->parameters()) {
      NamedTensor tensor = ToNamed(name, old, TensorType::kF32);
      if (absl::StartsWith(name, head.name() + ".out_proj.")) {
        const auto it =
            std::find_if(fresh_parameters.begin(), fresh_parameters.end(),
                         [&n = name](const auto& p) { return p.first == n; });
        const NamedTensor more = ToNamed(name, it->second, TensorType::kF32);
        tensor.values.insert(tensor.values.end(),
                             more.values.begin() + tensor.values.size(),
                             more.values.end());
        tensor.shape = more.shape;
      }
      tensors.push_back(std::move(tensor));
    }
    ASSIGN_OR_RETURN(TaskHead extended, HeadOf(config(), head, tensors));
    ToDevice(device_, &extended);
    *weights_[h] = std::move(extended);
  }
  heads_[h] = head;
  return h;
}

void Network::SetScoreScale(int h, float scale, float bias) {
  heads_[h].set_score_scale(scale);
  heads_[h].set_score_bias(bias);
}

std::vector<std::pair<std::string, at::Tensor>> Network::EncoderParameters()
    const {
  return bert_->parameters();
}

std::vector<std::pair<std::string, at::Tensor>> Network::HeadParameters(
    int h) const {
  return weights_[h]->parameters();
}

at::Tensor Network::Run(int h, absl::Span<const Encoding* const> sequences,
                        Dropout* dropout) const {
  Batch batch;
  for (const Encoding* const sequence : sequences) {
    batch.Add(*sequence, HeadMask{1});
  }
  if (longest_padding_ > 0) PadTokens(pad_id_, longest_padding_, &batch);
  const PackedInput input =
      ToPackedInput(batch, config(), ToTorchDevice(device_));
  const Autocast autocast(bf16_, device_.cuda());
  // UNSPECIFIED means the first token's for heads.
  const internal::Pooling pooling =
      heads_[h].pooling() == internal::POOLING_MEAN ? internal::POOLING_MEAN
                                                    : internal::POOLING_CLS;
  const at::Tensor pooled =
      Pool(bert_->Forward(input, dropout), input.offsets, pooling)
          .narrow(0, 0, static_cast<int64_t>(sequences.size()));
  return weights_[h]
      ->Forward(pooled, dropout, config().hidden_dropout)
      .to(at::kFloat);
}

void Network::StartTraining(std::vector<at::Tensor> parameters, uint64_t seed) {
  parameters_ = std::move(parameters);
  for (at::Tensor& tensor : parameters_) tensor.set_requires_grad(true);
  dropout_.clear();
  for (int i = 0; i < workers_->count(); ++i) {
    dropout_.emplace_back(seed * 1000003 + i);
  }
}

double Network::ForwardBackward(int h,
                                absl::Span<const Encoding* const> sequences,
                                const LossFunction& loss, double weight) {
  const std::vector<size_t> bounds =
      SplitByTokens(sequences, device_.cpu() ? workers_->count() : 1);
  const auto shares = static_cast<int>(bounds.size()) - 1;
  std::vector<at::Tensor> outputs(shares);
  workers_->Run(shares, [&](int i) {
    outputs[i] = Run(h, sequences.subspan(bounds[i], bounds[i + 1] - bounds[i]),
                     &dropout_[i]);
  });
  // The loss sees all outputs at once, in the softmax over a batch too.
  at::Tensor all = at::cat(outputs).detach().to(at::kCPU);
  all.set_requires_grad(true);
  const at::Tensor value = loss(all);
  const double result = value.item<double>();
  if (!std::isfinite(result)) return result;
  (value * weight).backward();
  const at::Tensor gradient = all.grad().to(outputs[0].device());

  std::vector<std::vector<at::Tensor>> gradients(shares);
  workers_->Run(shares, [&](int i) {
    const auto begin = static_cast<int64_t>(bounds[i]);
    const auto length = static_cast<int64_t>(bounds[i + 1] - bounds[i]);
    gradients[i] = torch::autograd::grad(
        {outputs[i]}, parameters_, {gradient.narrow(0, begin, length)},
        /*retain_graph=*/{}, /*create_graph=*/false,
        /*allow_unused=*/true);
  });
  // Sums in the order of the shares, so that they are the same every time.
  workers_->Run(static_cast<int>(parameters_.size()), [&](int p) {
    const at::NoGradGuard no_grad;
    at::Tensor sum = gradients[0][p];
    for (int i = 1; i < shares && sum.defined(); ++i) {
      sum = sum + gradients[i][p];
    }
    parameters_[p].mutable_grad() = sum;
  });
  return result;
}

std::vector<float> Network::Infer(
    int h, absl::Span<const Encoding* const> sequences) const {
  std::vector<int> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&sequences](int a, int b) {
    return sequences[a]->ids.size() < sequences[b]->ids.size();
  });
  std::vector<const Encoding*> sorted(sequences.size());
  std::vector<size_t> bounds = {0};
  int64_t tokens = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    sorted[i] = sequences[order[i]];
    tokens += static_cast<int64_t>(sorted[i]->ids.size());
    if (tokens >= kInferTokens || i + 1 == order.size()) {
      bounds.push_back(i + 1);
      tokens = 0;
    }
  }
  const int64_t columns = width(h);
  std::vector<float> out(sequences.size() * columns);
  workers_->Run(static_cast<int>(bounds.size()) - 1, [&](int b) {
    const at::NoGradGuard no_grad;
    const auto batch = absl::MakeConstSpan(sorted).subspan(
        bounds[b], bounds[b + 1] - bounds[b]);
    const at::Tensor rows =
        Run(h, batch, /*dropout=*/nullptr).to(at::kCPU).contiguous();
    const float* row = rows.data_ptr<float>();
    for (size_t i = bounds[b]; i < bounds[b + 1]; ++i, row += columns) {
      std::copy(row, row + columns, out.begin() + order[i] * columns);
    }
  });
  return out;
}

std::vector<NamedTensor> Network::SaveEncoder(TensorType type) const {
  std::vector<NamedTensor> out;
  for (const auto& [name, tensor] : bert_->parameters()) {
    out.push_back(ToNamed(name, tensor, type));
  }
  return out;
}

std::vector<NamedTensor> Network::SaveHeads(TensorType type) const {
  std::vector<NamedTensor> out;
  for (const auto& head : weights_) {
    for (const auto& [name, tensor] : head->parameters()) {
      out.push_back(ToNamed(name, tensor, type));
    }
  }
  return out;
}

bool ProcessorHasBf16() {
  const absl::StatusOr<std::string> info = ReadFile("/proc/cpuinfo");
  return info.ok() && (absl::StrContains(*info, " amx_bf16") ||
                       absl::StrContains(*info, " avx512_bf16"));
}

bool Bf16Pays(const EncoderConfig& config) {
  // Narrower products cost no more than the casts around them.
  constexpr int64_t kNarrowest = 256;
  return config.hidden_size >= kNarrowest && ProcessorHasBf16();
}

}  // namespace vitrine
