#include "model/gpu_encoder.h"

#include <torch/version.h>

#include <cmath>
#include <exception>
#include <limits>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/to_tensor.h"

// Since 2.2 this is FlashAttention 2. Later versions have added arguments, all
// of them optional.
#define VITRINE_PACKED_ATTENTION \
  (TORCH_VERSION_MAJOR > 2 ||    \
   (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 2))

namespace vitrine {
namespace {

// Each of (tokens, heads, size), rows apart by any stride; `offsets`
// (sequences + 1), int32. Tokens after the last offset get no value.
at::Tensor PackedAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value, const at::Tensor& offsets,
                           int64_t longest) {
#if VITRINE_PACKED_ATTENTION
  return std::get<0>(at::_flash_attention_forward(
      query, key, value, offsets, offsets, longest, longest, /*dropout_p=*/0.0,
      /*is_causal=*/false, /*return_debug_mask=*/false));
#else
  (void)key, (void)value, (void)offsets, (void)longest;
  return query;
#endif
}

// Whether the device, its generation and this build of LibTorch have it: found
// out by asking, since no property says so.
bool HasPackedAttention(const at::Device& device, at::ScalarType dtype,
                        const EncoderConfig& config) {
  const int64_t size = config.hidden_size / config.num_heads;
  if (!VITRINE_PACKED_ATTENTION || !device.is_cuda() || dtype == at::kFloat ||
      size % 8 != 0 || size > 256) {
    return false;
  }
  try {
    const at::Tensor x = at::zeros({16, config.num_heads, size},
                                   at::TensorOptions(device).dtype(dtype));
    const at::Tensor offsets =
        at::tensor(at::IntArrayRef({0, 5, 16}), at::kInt).to(device);
    PackedAttention(x, x, x, offsets, 11).to(at::kCPU);  // waits for errors
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Each of (sequences, heads, length, size); `mask` (sequences, 1, 1, length) is
// true for keys to be seen, undefined for all.
at::Tensor PaddedAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value, const at::Tensor& mask) {
#if TORCH_VERSION_MAJOR >= 2
  return mask.defined()
             ? at::scaled_dot_product_attention(query, key, value, mask)
             : at::scaled_dot_product_attention(query, key, value);
#else
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(-1)));
  at::Tensor scores = at::matmul(query * scale, key.transpose(-2, -1));
  if (mask.defined()) {
    scores.masked_fill_(mask.logical_not(),
                        -std::numeric_limits<double>::infinity());
  }
  return at::matmul(at::softmax(scores, -1), value);
#endif
}

}  // namespace

absl::StatusOr<GpuEncoder> GpuEncoder::FromCheckpoint(
    const Checkpoint& checkpoint, const at::Device& device,
    at::ScalarType dtype) {
  GpuEncoder out;
  out.config_ = checkpoint.config;
  out.attends_packed_ = HasPackedAttention(device, dtype, checkpoint.config);
  out.fuses_activation_ = device.is_cuda() && dtype != at::kFloat;

  absl::Status status;
  const auto load = [&](const std::string& name) {
    const auto it = checkpoint.encoder.find(name);
    if (it == checkpoint.encoder.end()) {
      status.Update(
          absl::InvalidArgumentError(absl::StrCat("no tensor ", name)));
      return at::Tensor();
    }
    const absl::StatusOr<at::Tensor> loaded = ToTensor(it->second);
    if (!loaded.ok()) {
      status.Update(Annotate(loaded.status(), name));
      return at::Tensor();
    }
    return loaded->to(device, dtype);
  };
  const auto norm = [&load](const std::string& name) {
    return LayerNorm{load(name + ".weight"), load(name + ".bias")};
  };
  const auto linear = [&load](const std::string& name) {
    return Linear{load(name + ".weight"), load(name + ".bias")};
  };
  out.word_embeddings_ = load("embeddings.word_embeddings.weight");
  out.position_embeddings_ = load("embeddings.position_embeddings.weight");
  out.segment_embeddings_ = load("embeddings.token_type_embeddings.weight");
  out.embeddings_norm_ = norm("embeddings.LayerNorm");
  for (int64_t i = 0; i < checkpoint.config.num_layers; ++i) {
    const std::string scope = absl::StrCat("encoder.layer.", i, ".");
    const Linear query = linear(scope + "attention.self.query");
    const Linear key = linear(scope + "attention.self.key");
    const Linear value = linear(scope + "attention.self.value");
    Layer layer;
    layer.attention_output = linear(scope + "attention.output.dense");
    layer.attention_norm = norm(scope + "attention.output.LayerNorm");
    layer.intermediate = linear(scope + "intermediate.dense");
    layer.output = linear(scope + "output.dense");
    layer.output_norm = norm(scope + "output.LayerNorm");
    if (!status.ok()) return status;
    layer.query_key_value = {at::cat({query.weight, key.weight, value.weight}),
                             at::cat({query.bias, key.bias, value.bias})};
    out.layers_.push_back(std::move(layer));
  }
  if (!status.ok()) return status;
  return out;
}

at::Tensor GpuEncoder::Normalize(const LayerNorm& norm,
                                 const at::Tensor& x) const {
  return at::layer_norm(x, {config_.hidden_size}, norm.weight, norm.bias,
                        config_.layer_norm_eps);
}

at::Tensor GpuEncoder::ProjectAndActivate(const Linear& layer,
                                          const at::Tensor& x) const {
  const std::string& act = config_.hidden_act;
  if (fuses_activation_) {
    return at::_addmm_activation(layer.bias, x, layer.weight.t(), /*beta=*/1,
                                 /*alpha=*/1, /*use_gelu=*/act != "relu");
  }
  const at::Tensor y = at::linear(x, layer.weight, layer.bias);
  if (act == "relu") return at::relu(y);
  return at::gelu(y, act == "gelu_new" ? "tanh" : "none");
}

at::Tensor GpuEncoder::Attend(const at::Tensor& query_key_value,
                              const GpuBatch& batch,
                              const std::vector<at::Tensor>& masks) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t heads = config_.num_heads;
  const int64_t size = hidden / heads;
  if (attends_packed_) {
    // (tokens, 3, heads, size)
    const at::Tensor split = query_key_value.view({-1, 3, heads, size});
    return PackedAttention(split.select(1, 0), split.select(1, 1),
                           split.select(1, 2), batch.offsets, batch.longest)
        .reshape({-1, hidden});
  }
  std::vector<at::Tensor> parts;
  for (size_t b = 0; b < batch.buckets.size(); ++b) {
    const GpuBatch::Bucket& bucket = batch.buckets[b];
    const int64_t sequences = bucket.tokens.size(0);
    // (3, sequences, heads, length, size)
    const at::Tensor split =
        query_key_value.index_select(0, bucket.tokens.view(-1))
            .view({sequences, bucket.length, 3, heads, size})
            .permute({2, 0, 3, 1, 4});
    parts.push_back(PaddedAttention(split.select(0, 0), split.select(0, 1),
                                    split.select(0, 2), masks[b])
                        .transpose(1, 2)
                        .reshape({sequences * bucket.length, hidden}));
  }
  return at::cat(parts).index_select(0, batch.places);
}

at::Tensor GpuEncoder::Forward(const GpuBatch& batch) const {
  std::vector<at::Tensor> masks;  // (sequences, 1, 1, length), true: seen
  for (const GpuBatch::Bucket& bucket : batch.buckets) {
    masks.emplace_back();
    if (!bucket.lengths.defined()) continue;
    masks.back() = at::arange(bucket.length, bucket.lengths.options())
                       .view({1, 1, 1, -1})
                       .lt(bucket.lengths.view({-1, 1, 1, 1}));
  }

  at::Tensor x = at::embedding(word_embeddings_, batch.ids);
  x.add_(at::embedding(position_embeddings_, batch.positions));
  x.add_(at::embedding(segment_embeddings_, batch.segments));
  x = Normalize(embeddings_norm_, x);
  for (const Layer& layer : layers_) {
    at::Tensor y =
        at::linear(x, layer.query_key_value.weight, layer.query_key_value.bias);
    y = Attend(y, batch, masks);
    y = at::linear(y, layer.attention_output.weight,
                   layer.attention_output.bias);
    x = Normalize(layer.attention_norm, y.add_(x));
    y = ProjectAndActivate(layer.intermediate, x);
    y = at::linear(y, layer.output.weight, layer.output.bias);
    x = Normalize(layer.output_norm, y.add_(x));
  }
  return x;  // (tokens, hidden)
}

}  // namespace vitrine
