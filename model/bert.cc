#include "model/bert.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/cpu_kernels.h"
#include "model/dropout.h"
#include "model/length_buckets.h"
#include "model/packed_attention.h"
#include "model/to_tensor.h"

namespace vitrine {

// Sequences of like lengths side by side, for batched products: padding exists
// inside attention only, and is masked there.
struct AttentionPlan {
  struct Bucket {
    int64_t sequences = 0;
    int64_t length = 0;  // of the longest
    // (sequences * length): the token of each place; a padded place repeats
    // the first token of its own sequence.
    at::Tensor tokens;
    // (sequences, 1, 1, length): 0, or minus infinity where padded; undefined
    // when no place is.
    at::Tensor mask;
  };
  std::vector<Bucket> buckets;
  // The place of each token in the concatenated buckets; undefined when they
  // hold the tokens in order already.
  at::Tensor places;  // (tokens)
};

namespace {

at::Tensor FromHost(const std::vector<int64_t>& values,
                    const at::Device& device) {
  return at::tensor(values, at::kLong).to(device);
}

AttentionPlan MakePlan(const std::vector<int32_t>& offsets,
                       const at::Device& device) {
  AttentionPlan plan;
  std::vector<int64_t> places(offsets.back());
  int64_t place = 0;
  bool in_order = true;
  for (const LengthBucket& lengths : GroupByLength(offsets)) {
    AttentionPlan::Bucket bucket;
    bucket.sequences = static_cast<int64_t>(lengths.sequences.size());
    bucket.length = lengths.longest;
    std::vector<int64_t> tokens(bucket.sequences * bucket.length);
    std::vector<float> mask(tokens.size(), 0.0f);
    size_t i = 0;
    for (const int s : lengths.sequences) {
      const int length = offsets[s + 1] - offsets[s];
      for (int64_t j = 0; j < bucket.length; ++j, ++i, ++place) {
        if (j < length) {
          tokens[i] = offsets[s] + j;
          places[tokens[i]] = place;
          in_order = in_order && tokens[i] == place;
        } else {
          tokens[i] = offsets[s];
          mask[i] = -INFINITY;
        }
      }
    }
    bucket.tokens = FromHost(tokens, device);
    if (lengths.shortest != lengths.longest) {
      bucket.mask = at::tensor(mask, at::kFloat)
                        .view({bucket.sequences, 1, 1, bucket.length})
                        .to(device);
      in_order = false;
    }
    plan.buckets.push_back(std::move(bucket));
  }
  if (!in_order) plan.places = FromHost(places, device);
  return plan;
}

at::Tensor Activate(const std::string& name, const at::Tensor& x) {
  if (name == "relu") return at::relu(x);
  return at::gelu(x, name == "gelu_new" ? "tanh" : "none");
}

}  // namespace

PackedInput ToPackedInput(const Batch& batch, const EncoderConfig& config,
                          const at::Device& device) {
  std::vector<int64_t> positions(batch.tokens());
  for (int s = 0; s < batch.sequences(); ++s) {
    std::iota(positions.begin() + batch.offsets[s],
              positions.begin() + batch.offsets[s + 1],
              config.first_position());
  }
  PackedInput input;
  input.ids = FromHost({batch.ids.begin(), batch.ids.end()}, device);
  input.segments =
      FromHost({batch.segment_ids.begin(), batch.segment_ids.end()}, device);
  input.positions = FromHost(positions, device);
  input.offsets = batch.offsets;
  return input;
}

Bert::Bert(const EncoderConfig& config)
    : config_(config), layers_(config.num_layers) {}

template <typename F>
void Bert::Visit(F f) {
  const auto linear = [&f](const std::string& name, Linear& layer) {
    f(name + ".weight", &layer.weight);
    f(name + ".bias", &layer.bias);
  };
  const auto norm = [&f](const std::string& name, LayerNorm& layer) {
    f(name + ".weight", &layer.weight);
    f(name + ".bias", &layer.bias);
  };
  f("embeddings.word_embeddings.weight", &word_embeddings_);
  f("embeddings.position_embeddings.weight", &position_embeddings_);
  f("embeddings.token_type_embeddings.weight", &segment_embeddings_);
  norm("embeddings.LayerNorm", embeddings_norm_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string scope = absl::StrCat("encoder.layer.", i, ".");
    Layer& layer = layers_[i];
    linear(scope + "attention.self.query", layer.query);
    linear(scope + "attention.self.key", layer.key);
    linear(scope + "attention.self.value", layer.value);
    linear(scope + "attention.output.dense", layer.attention_output);
    norm(scope + "attention.output.LayerNorm", layer.attention_norm);
    linear(scope + "intermediate.dense", layer.intermediate);
    linear(scope + "output.dense", layer.output);
    norm(scope + "output.LayerNorm", layer.output_norm);
  }
  linear("pooler.dense", pooler_);
}

absl::StatusOr<Bert> Bert::FromCheckpoint(const Checkpoint& checkpoint) {
  Bert bert(checkpoint.config);
  absl::Status status;
  bert.Visit([&](const std::string& name, at::Tensor* tensor) {
    const auto it = checkpoint.encoder.find(name);
    if (it == checkpoint.encoder.end()) {
      if (name.rfind("pooler.", 0) != 0) {
        status.Update(
            absl::InvalidArgumentError(absl::StrCat("no tensor ", name)));
      }
      return;
    }
    absl::StatusOr<at::Tensor> loaded = ToTensor(it->second);
    if (loaded.ok()) {
      *tensor = *std::move(loaded);
    } else {
      status.Update(Annotate(loaded.status(), name));
    }
  });
  if (!status.ok()) return status;
  return bert;
}

Bert Bert::Random(const EncoderConfig& config, uint64_t seed) {
  Bert bert(config);
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&generator](int64_t rows, int64_t columns) {
    return at::normal(0.0, 0.02, {rows, columns}, generator);
  };
  const auto linear = [&normal](int64_t to, int64_t from) {
    return Linear{normal(to, from), at::zeros({to})};
  };
  const auto norm = [hidden] {
    return LayerNorm{at::ones({hidden}), at::zeros({hidden})};
  };
  bert.word_embeddings_ = normal(config.vocab_size, hidden);
  bert.position_embeddings_ = normal(config.max_positions, hidden);
  bert.segment_embeddings_ = normal(config.type_vocab_size, hidden);
  bert.embeddings_norm_ = norm();
  for (Layer& layer : bert.layers_) {
    layer.query = linear(hidden, hidden);
    layer.key = linear(hidden, hidden);
    layer.value = linear(hidden, hidden);
    layer.attention_output = linear(hidden, hidden);
    layer.attention_norm = norm();
    layer.intermediate = linear(inner, hidden);
    layer.output = linear(hidden, inner);
    layer.output_norm = norm();
  }
  bert.pooler_ = linear(hidden, hidden);
  return bert;
}

std::vector<std::pair<std::string, at::Tensor>> Bert::parameters() const {
  std::vector<std::pair<std::string, at::Tensor>> out;
  Bert handles = *this;  // tensors are handles: the same storage
  handles.Visit([&out](const std::string& name, at::Tensor* tensor) {
    if (tensor->defined()) out.emplace_back(name, *tensor);
  });
  return out;
}

void Bert::To(const at::Device& device, at::ScalarType dtype) {
  Visit([&](const std::string&, at::Tensor* tensor) {
    if (tensor->defined()) *tensor = CopyTo(*tensor, device, dtype);
  });
}

void Bert::PrepareForInference(const at::Device& device, at::ScalarType dtype) {
  for (Layer& layer : layers_) {
    layer.query_key_value.weight =
        at::cat({layer.query.weight, layer.key.weight, layer.value.weight});
    layer.query_key_value.bias =
        at::cat({layer.query.bias, layer.key.bias, layer.value.bias});
    layer.query = layer.key = layer.value = Linear();
  }
  pooler_ = Linear();  // a head's, by now
  const auto move = [&](at::Tensor* tensor, at::ScalarType type) {
    if (tensor->defined()) {
      *tensor = tensor->to(device, type).detach().contiguous();
    }
  };
  // On a CPU what is not a factor of a product stays fp32.
  const at::ScalarType rest = device.is_cpu() ? at::kFloat : dtype;
  Visit([&](const std::string& name, at::Tensor* tensor) {
    const bool factor = tensor->defined() && tensor->dim() == 2 &&
                        name.rfind("embeddings.", 0) != 0;
    move(tensor, factor ? dtype : rest);
  });
  for (Layer& layer : layers_) {
    move(&layer.query_key_value.weight, dtype);
    move(&layer.query_key_value.bias, rest);
  }
  prepared_ = true;
}

at::Tensor Bert::Attention(const Layer& layer, const at::Tensor& x,
                           const AttentionPlan& plan,
                           const std::vector<int32_t>& offsets,
                           Dropout* dropout) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t heads = config_.num_heads;
  const int64_t size = hidden / heads;
  const double scale = 1 / std::sqrt(static_cast<double>(size));
  // (tokens, 3 * hidden)
  const at::Tensor projected =
      layer.query_key_value.weight.defined()
          ? at::linear(x, layer.query_key_value.weight,
                       layer.query_key_value.bias)
          : at::linear(
                x,
                at::cat(
                    {layer.query.weight, layer.key.weight, layer.value.weight}),
                at::cat({layer.query.bias, layer.key.bias, layer.value.bias}));
  if (plan.buckets.empty()) {
    return PackedAttention(projected, offsets, heads);
  }

  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (const AttentionPlan::Bucket& bucket : plan.buckets) {
    const int64_t n = bucket.sequences;
    const int64_t length = bucket.length;
    const at::Tensor rows = plan.places.defined()
                                ? projected.index_select(0, bucket.tokens)
                                : projected.narrow(0, begin, n * length);
    begin += n * length;
    // (3, n * heads, length, size)
    const at::Tensor split = rows.view({n, length, 3, heads, size})
                                 .permute({2, 0, 3, 1, 4})
                                 .reshape({3, n * heads, length, size});
    // (n * heads, length, length)
    at::Tensor weights =
        at::bmm(split.select(0, 0) * scale, split.select(0, 1).transpose(1, 2));
    if (bucket.mask.defined()) {
      weights = (weights.view({n, heads, length, length}) +
                 bucket.mask.to(weights.scalar_type()))
                    .view({n * heads, length, length});
    }
    weights = at::softmax(weights, -1);
    if (dropout != nullptr)
      weights = dropout->Apply(weights, config_.attention_dropout);
    parts.push_back(at::bmm(weights, split.select(0, 2))
                        .view({n, heads, length, size})
                        .transpose(1, 2)
                        .reshape({n * length, hidden}));
  }
  const at::Tensor all = parts.size() == 1 ? parts[0] : at::cat(parts);
  return plan.places.defined() ? all.index_select(0, plan.places) : all;
}

at::Tensor Bert::Forward(const PackedInput& input, Dropout* dropout) const {
  if (prepared_ && input.ids.is_cpu()) {
    return layers_[0].output.weight.scalar_type() == at::kBFloat16
               ? ForwardOnCpu<Bf16>(input)
               : ForwardOnCpu<float>(input);
  }
  const auto norm = [this](const LayerNorm& layer, const at::Tensor& x) {
    return at::layer_norm(x, {config_.hidden_size}, layer.weight, layer.bias,
                          config_.layer_norm_eps);
  };
  const auto linear = [](const Linear& layer, const at::Tensor& x) {
    return at::linear(x, layer.weight, layer.bias);
  };
  const auto drop = [this, dropout](const at::Tensor& x) {
    return dropout != nullptr ? dropout->Apply(x, config_.hidden_dropout) : x;
  };

  // Fused on the CPU, where that does not have to drop weights.
  const bool fused = input.ids.is_cpu() &&
                     (dropout == nullptr || config_.attention_dropout <= 0);
  const AttentionPlan plan =
      fused ? AttentionPlan() : MakePlan(input.offsets, input.ids.device());
  at::Tensor x = at::embedding(word_embeddings_, input.ids) +
                 at::embedding(position_embeddings_, input.positions) +
                 at::embedding(segment_embeddings_, input.segments);
  x = drop(norm(embeddings_norm_, x));
  for (const Layer& layer : layers_) {
    at::Tensor y = Attention(layer, x, plan, input.offsets, dropout);
    x = norm(layer.attention_norm, x + drop(linear(layer.attention_output, y)));
    y = Activate(config_.hidden_act, linear(layer.intermediate, x));
    x = norm(layer.output_norm, x + drop(linear(layer.output, y)));
  }
  return x;  // (tokens, hidden)
}

}  // namespace vitrine
