#pragma once

// The encoder as a GPU serves it, in LibTorch: packed tokens from the
// embeddings to the last norm, and nothing on the way that waits for the
// device. It runs on CPU tensors too, slowly, for tests. One of few headers
// that include LibTorch.

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/gpu_batch.h"

namespace vitrine {

// Immutable; any thread may call Forward.
class GpuEncoder {
 public:
  // Weights and hidden states are in `dtype` on `device`.
  static absl::StatusOr<GpuEncoder> FromCheckpoint(const Checkpoint& checkpoint,
                                                   const at::Device& device,
                                                   at::ScalarType dtype);

  const EncoderConfig& config() const { return config_; }

  // Attention runs over packed tokens. Otherwise it wants a batch with buckets
  // of like lengths, and pads within them.
  bool attends_packed() const { return attends_packed_; }

  // The last layer's hidden states, (tokens, hidden). GELU is the form with
  // tanh where the device adds it to the product for free, which is off by 5e-4
  // at most; never in fp32.
  at::Tensor Forward(const GpuBatch& batch) const;

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
    Linear query_key_value;  // (3 * hidden, hidden)
    Linear attention_output, intermediate, output;
    LayerNorm attention_norm, output_norm;
  };

  GpuEncoder() = default;
  at::Tensor Normalize(const LayerNorm& norm, const at::Tensor& x) const;
  at::Tensor ProjectAndActivate(const Linear& layer, const at::Tensor& x) const;
  // (tokens, 3 * hidden) to (tokens, hidden); a mask for each bucket, see
  // Forward.
  at::Tensor Attend(const at::Tensor& query_key_value, const GpuBatch& batch,
                    const std::vector<at::Tensor>& masks) const;

  EncoderConfig config_;
  at::Tensor word_embeddings_;      // (vocab, hidden)
  at::Tensor position_embeddings_;  // (max_positions, hidden)
  at::Tensor segment_embeddings_;   // (type_vocab, hidden)
  LayerNorm embeddings_norm_;
  std::vector<Layer> layers_;
  bool attends_packed_ = false;
  bool fuses_activation_ = false;
};

}  // namespace vitrine
