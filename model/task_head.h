#pragma once

// Heads over the encoder's hidden states, in LibTorch: see manifest.proto for
// their kinds, names and weights. One of few headers that include LibTorch.

#include <ATen/ATen.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// One vector per sequence of the packed hidden states (tokens, hidden): the
// mean's for MEAN, the first token's otherwise. Returns (sequences, hidden),
// fp32.
at::Tensor Pool(const at::Tensor& hidden, const std::vector<int32_t>& offsets,
                internal::Pooling pooling);
// The same where the sequences' first tokens are on the hidden states' device,
// (sequences) int32 or int64. The last sequence goes on to the end.
at::Tensor Pool(const at::Tensor& hidden, const at::Tensor& first,
                internal::Pooling pooling);

class Dropout;

class TaskHead {
 public:
  static absl::StatusOr<TaskHead> FromCheckpoint(const Checkpoint& checkpoint,
                                                 const internal::Head& head);
  // A fresh head; for RECOMMENDATION a projection that starts as identity.
  static TaskHead Random(const internal::Head& head, int64_t hidden_size,
                         uint64_t seed);

  const internal::Head& head() const { return head_; }
  // Outputs per sequence.
  int64_t width() const;
  // "<head>.<part>", tensor.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  void To(const at::Device& device, at::ScalarType dtype);

  // pooled (sequences, hidden) -> logits (sequences, width), or unit vectors
  // for RECOMMENDATION. `dropout` (training) comes before the last layer, with
  // probability `rate`; null: none.
  at::Tensor Forward(const at::Tensor& pooled, Dropout* dropout = nullptr,
                     double rate = 0) const;

 private:
  internal::Head head_;
  at::Tensor dense_weight_, dense_bias_;  // may be undefined
  at::Tensor out_weight_, out_bias_;      // may be undefined
  int64_t hidden_size_ = 0;
};

}  // namespace vitrine
