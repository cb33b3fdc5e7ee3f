#pragma once

// The BERT encoder in LibTorch, for training and for serving on a CPU. One of
// few headers that include LibTorch (tests/base/layers_test.cc names them);
// keep it out of others.

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/batch.h"
#include "model/checkpoint.h"

namespace vitrine {

class Dropout;
struct AttentionPlan;

// A batch as tensors on the encoder's device.
struct PackedInput {
  at::Tensor ids;                // (tokens) int64
  at::Tensor segments;           // (tokens) int64
  at::Tensor positions;          // (tokens) int64
  std::vector<int32_t> offsets;  // (sequences + 1), on the host
};

PackedInput ToPackedInput(const Batch& batch, const EncoderConfig& config,
                          const at::Device& device);

// Parameters are leaf tensors with Hugging Face names; the trainer sets
// requires_grad on them. Forward is const and thread-safe while nobody
// changes the parameters.
class Bert {
 public:
  // fp32, on the CPU.
  static absl::StatusOr<Bert> FromCheckpoint(const Checkpoint& checkpoint);
  // Normal(0, 0.02) weights, zero biases, as BERT was initialised.
  static Bert Random(const EncoderConfig& config, uint64_t seed);

  const EncoderConfig& config() const { return config_; }

  // All tensors in the checkpoint's order: name, tensor.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;

  void To(const at::Device& device, at::ScalarType dtype);

  // Moves the encoder to where and how it will serve, and fuses what can be:
  // afterwards Forward is for inference only and the parameters are final. On
  // a CPU only the products are in `dtype` (kFloat or kBFloat16): the tables,
  // the norms and the hidden states stay fp32.
  void PrepareForInference(const at::Device& device, at::ScalarType dtype);

  // Hidden states of the last layer, (tokens, hidden). No token sees another
  // sequence. `dropout` (training): with the config's probabilities; null:
  // none. What else is in the batch changes a sequence's result in the last
  // bits only.
  at::Tensor Forward(const PackedInput& input,
                     Dropout* dropout = nullptr) const;

 private:
  struct Linear {
    at::Tensor weight;  // (out, in)
    at::Tensor bias;    // (out)
  };
  struct LayerNorm {
    at::Tensor weight;  // (hidden)
    at::Tensor bias;    // (hidden)
  };
  struct Layer {
    Linear query, key, value, attention_output, intermediate, output;
    LayerNorm attention_norm, output_norm;
    Linear query_key_value;  // once prepared: (3 * hidden, hidden)
  };

  explicit Bert(const EncoderConfig& config);
  // Calls f(name, &tensor) for every tensor, in the checkpoint's order.
  template <typename F>
  void Visit(F f);
  at::Tensor Attention(const Layer& layer, const at::Tensor& x,
                       const AttentionPlan& plan,
                       const std::vector<int32_t>& offsets,
                       Dropout* dropout) const;
  // T: what the products are in.
  template <typename T>
  at::Tensor ForwardOnCpu(const PackedInput& input) const;

  EncoderConfig config_;
  at::Tensor word_embeddings_;      // (vocab, hidden)
  at::Tensor position_embeddings_;  // (max_positions, hidden)
  at::Tensor segment_embeddings_;   // (type_vocab, hidden)
  LayerNorm embeddings_norm_;
  std::vector<Layer> layers_;
  Linear pooler_;  // kept for publishing; undefined when there is none
  bool prepared_ = false;
};

}  // namespace vitrine
