#include "trainer/mlm_network.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/bert.h"
#include "model/to_tensor.h"
#include "trainer/autocast.h"
#include "trainer/batches.h"
#include "trainer/named_tensors.h"
#include "trainer/softmax_loss.h"

namespace vitrine {

void MaskedBatch::Add(const MaskedText& text) {
  const int64_t begin = batch.tokens();
  batch.Add({text.ids, std::vector<int32_t>(text.ids.size()), false},
            HeadMask{1});
  for (const int32_t place : text.places) places.push_back(begin + place);
  targets.insert(targets.end(), text.targets.begin(), text.targets.end());
}

void MaskedBatch::Pad(int32_t pad_id, int64_t max_tokens) {
  constexpr int64_t kPlaces = 64;
  PadTokens(pad_id, max_tokens, &batch);
  while (places.size() % kPlaces != 0) {
    places.push_back(0);
    targets.push_back(-1);
  }
}

// LayerNorm(gelu(dense)), then the table and a bias.
struct MlmNetwork::Head {
  at::Tensor dense_weight, dense_bias;  // (hidden, hidden), (hidden)
  at::Tensor norm_weight, norm_bias;    // (hidden)
  at::Tensor bias;                      // (vocab)

  std::vector<at::Tensor*> all() {
    return {&dense_weight, &dense_bias, &norm_weight, &norm_bias, &bias};
  }
};

namespace {

constexpr char kWords[] = "embeddings.word_embeddings.weight";

struct HeadNames {
  const char* base;  // of the encoder's tensors
  const char *dense_weight, *dense_bias, *norm_weight, *norm_bias, *bias;
};

HeadNames NamesFor(const EncoderConfig& config) {
  if (config.model_type == "bert") {
    return {"bert.",
            "cls.predictions.transform.dense.weight",
            "cls.predictions.transform.dense.bias",
            "cls.predictions.transform.LayerNorm.weight",
            "cls.predictions.transform.LayerNorm.bias",
            "cls.predictions.bias"};
  }
  return {"roberta.",
          "lm_head.dense.weight",
          "lm_head.dense.bias",
          "lm_head.layer_norm.weight",
          "lm_head.layer_norm.bias",
          "lm_head.bias"};
}

}  // namespace

MlmNetwork::MlmNetwork(std::unique_ptr<Bert> bert, bool bf16, Workers* workers,
                       PassDevice device)
    : bf16_(bf16), workers_(workers), device_(device), bert_(std::move(bert)) {}
MlmNetwork::~MlmNetwork() = default;

void MlmNetwork::MakeTransform(uint64_t seed) {
  const int64_t hidden = config().hidden_size;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  head_ = std::make_unique<Head>();
  head_->dense_weight = at::normal(0.0, 0.02, {hidden, hidden}, generator);
  head_->dense_bias = at::zeros({hidden});
  head_->norm_weight = at::ones({hidden});
  head_->norm_bias = at::zeros({hidden});
  head_->bias = at::zeros({config().vocab_size});
}

void MlmNetwork::ToDevice() {
  if (device_.cpu()) return;
  const at::Device device = ToTorchDevice(device_);
  bert_->To(device, at::kFloat);
  for (at::Tensor* const tensor : head_->all()) {
    *tensor = CopyTo(*tensor, device, at::kFloat);
  }
}

std::unique_ptr<MlmNetwork> MlmNetwork::Random(const EncoderConfig& config,
                                               uint64_t seed, bool bf16,
                                               Workers* workers,
                                               PassDevice device) {
  std::unique_ptr<MlmNetwork> network(
      new MlmNetwork(std::make_unique<Bert>(Bert::Random(config, seed)), bf16,
                     workers, device));
  network->MakeTransform(seed + 1);
  network->ToDevice();
  return network;
}

absl::StatusOr<std::unique_ptr<MlmNetwork>> MlmNetwork::Load(
    const std::string& folder, const Checkpoint& checkpoint, uint64_t seed,
    bool bf16, Workers* workers, PassDevice device) {
  ASSIGN_OR_RETURN(Bert bert, Bert::FromCheckpoint(checkpoint));
  std::unique_ptr<MlmNetwork> network(new MlmNetwork(
      std::make_unique<Bert>(std::move(bert)), bf16, workers, device));
  network->MakeTransform(seed + 1);
  ASSIGN_OR_RETURN(const std::unique_ptr<Safetensors> file,
                   OpenSharded(folder));
  Head& head = *network->head_;
  const HeadNames names = NamesFor(checkpoint.config);
  const std::pair<const char*, at::Tensor*> parts[] = {
      {names.dense_weight, &head.dense_weight},
      {names.dense_bias, &head.dense_bias},
      {names.norm_weight, &head.norm_weight},
      {names.norm_bias, &head.norm_bias},
      {names.bias, &head.bias}};
  for (const auto& [name, tensor] : parts) {
    const TensorView* const view = file->Find(name);
    if (view == nullptr) continue;
    if (view->shape != tensor->sizes().vec()) {
      return absl::InvalidArgumentError(absl::StrCat(
          folder, ": ", name, ": its shape is not what config.json says"));
    }
    ASSIGN_OR_RETURN(*tensor, ToTensor(*view));
  }
  network->ToDevice();
  return network;
}

const EncoderConfig& MlmNetwork::config() const { return bert_->config(); }

std::vector<std::pair<std::string, at::Tensor>> MlmNetwork::parameters() const {
  const HeadNames names = NamesFor(config());
  std::vector<std::pair<std::string, at::Tensor>> out;
  for (const auto& [name, tensor] : bert_->parameters()) {
    if (absl::StartsWith(name, "pooler.")) continue;
    out.emplace_back(names.base + name, tensor);
  }
  out.emplace_back(names.dense_weight, head_->dense_weight);
  out.emplace_back(names.dense_bias, head_->dense_bias);
  out.emplace_back(names.norm_weight, head_->norm_weight);
  out.emplace_back(names.norm_bias, head_->norm_bias);
  out.emplace_back(names.bias, head_->bias);
  return out;
}

void MlmNetwork::StartTraining(uint64_t seed) {
  parameters_.clear();
  for (auto& [name, tensor] : parameters()) {
    tensor.set_requires_grad(true);
    parameters_.push_back(tensor);
  }
  dropout_.clear();
  for (int i = 0; i < workers_->count(); ++i) {
    dropout_.emplace_back(seed * 1000003 + i);
  }
}

// The hidden places' states, ready for the output layer: (places, hidden).
at::Tensor MlmNetwork::Transform(const MaskedBatch& batch,
                                 Dropout* dropout) const {
  const PackedInput input =
      ToPackedInput(batch.batch, config(), ToTorchDevice(device_));
  const at::Tensor states =
      bert_->Forward(input, dropout)
          .index_select(0, at::tensor(batch.places).to(input.ids.device()));
  const at::Tensor dense =
      at::gelu(at::linear(states, head_->dense_weight, head_->dense_bias));
  return at::layer_norm(dense.to(at::kFloat), {config().hidden_size},
                        head_->norm_weight, head_->norm_bias,
                        config().layer_norm_eps);
}

MaskedLoss MlmNetwork::ForwardBackward(absl::Span<const MaskedBatch> batches) {
  // Worker w has the batches w, w + workers, …, in order.
  const int count = std::min<int>(device_.cpu() ? workers_->count() : 1,
                                  static_cast<int>(batches.size()));
  const auto type = bf16_ ? at::kBFloat16 : at::kFloat;
  const at::Tensor words = parameters_[0].detach().to(type);  // (vocab, hidden)
  std::vector<MaskedLoss> losses(count);
  std::vector<std::vector<at::Tensor>> gradients(count);
  // The output layer's bias is the last of the parameters, the table the first.
  const std::vector<at::Tensor> inner(parameters_.begin(),
                                      parameters_.end() - 1);
  workers_->Run(count, [&](int w) {
    std::vector<at::Tensor>& sums = gradients[w];
    for (size_t b = w; b < batches.size(); b += count) {
      const MaskedBatch& batch = batches[b];
      at::Tensor states;
      {
        const Autocast autocast(bf16_, device_.cuda());
        states = Transform(batch, &dropout_[w]);
      }
      at::Tensor by_states, by_words, by_bias;
      {
        const at::NoGradGuard no_grad;
        const at::Tensor x = states.detach().to(type);
        at::Tensor logits = at::linear(x, words, head_->bias.to(type));
        const SoftmaxLoss loss = SoftmaxCrossEntropy(batch.targets, &logits);
        losses[w].loss += loss.loss;
        losses[w].found += loss.found;
        losses[w].places += batch.real_places();
        by_states = at::mm(logits, words).to(states.scalar_type());
        by_words = at::mm(logits.t(), x).to(at::kFloat);
        by_bias = logits.sum(0, /*keepdim=*/false, at::kFloat);
      }
      std::vector<at::Tensor> parts = torch::autograd::grad(
          {states}, inner, {by_states}, /*retain_graph=*/{},
          /*create_graph=*/false, /*allow_unused=*/true);
      parts[0].add_(by_words);
      parts.push_back(by_bias);
      if (sums.empty()) {
        sums = std::move(parts);
        continue;
      }
      for (size_t p = 0; p < parts.size(); ++p) sums[p].add_(parts[p]);
    }
  });
  // In the order of the workers, so that sums are the same every time.
  workers_->Run(static_cast<int>(parameters_.size()), [&](int p) {
    const at::NoGradGuard no_grad;
    at::Tensor sum = gradients[0][p];
    for (int w = 1; w < count; ++w) sum.add_(gradients[w][p]);
    parameters_[p].mutable_grad() = sum;
  });
  MaskedLoss sum;
  for (const MaskedLoss& loss : losses) {
    sum.loss += loss.loss;
    sum.places += loss.places;
    sum.found += loss.found;
  }
  return sum;
}

MaskedLoss MlmNetwork::Evaluate(absl::Span<const MaskedBatch> batches) const {
  const auto type = bf16_ ? at::kBFloat16 : at::kFloat;
  const at::Tensor words = parameters().front().second.detach().to(type);
  std::vector<MaskedLoss> losses(batches.size());
  workers_->Run(static_cast<int>(batches.size()), [&](int b) {
    const at::NoGradGuard no_grad;
    const Autocast autocast(bf16_, device_.cuda());
    at::Tensor logits = at::linear(Transform(batches[b], nullptr).to(type),
                                   words, head_->bias.to(type));
    const SoftmaxLoss loss = SoftmaxCrossEntropy(batches[b].targets, &logits);
    losses[b] = {loss.loss, batches[b].real_places(), loss.found};
  });
  MaskedLoss sum;
  for (const MaskedLoss& loss : losses) {
    sum.loss += loss.loss;
    sum.places += loss.places;
    sum.found += loss.found;
  }
  return sum;
}

std::vector<NamedTensor> MlmNetwork::Save(TensorType type) const {
  std::vector<NamedTensor> out;
  for (const auto& [name, tensor] : parameters()) {
    out.push_back(ToNamed(name, tensor, type));
  }
  for (const auto& [name, tensor] : bert_->parameters()) {
    if (!absl::StartsWith(name, "pooler.")) continue;
    out.push_back(ToNamed(NamesFor(config()).base + name, tensor, type));
  }
  return out;
}

}  // namespace vitrine
