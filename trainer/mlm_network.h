#pragma once

// A BERT that learns to find hidden words: the encoder, a transform of its
// states, and an output layer that is the word embeddings' table again. For
// one thread.
//
// The output layer is as wide as the vocabulary: it sees the hidden places
// only, and its gradient is made by hand, so that logits are kept once.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/batch.h"
#include "model/checkpoint.h"
#include "model/dropout.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "trainer/masking.h"
#include "trainer/pass_device.h"
#include "trainer/workers.h"

namespace at {
class Tensor;
}

namespace vitrine {

class Bert;

// Texts that go through the network together.
struct MaskedBatch {
  Batch batch;
  std::vector<int64_t> places;   // of the batch's tokens: what is hidden
  std::vector<int64_t> targets;  // the id at each of them; -1: padding

  void Add(const MaskedText& text);
  // Fills it up to whole multiples with tokens and places that count for
  // nothing, for oneDNN makes code for every new shape of a product.
  void Pad(int32_t pad_id, int64_t max_tokens);
  int64_t real_places() const {
    return std::count_if(targets.begin(), targets.end(),
                         [](int64_t target) { return target >= 0; });
  }
};

// Sums over hidden places.
struct MaskedLoss {
  double loss = 0;  // minus the log of the probability of what was hidden
  int64_t places = 0;
  int64_t found = 0;  // where it was the likeliest
};

class MlmNetwork {
 public:
  // Fresh weights. `workers` outlives the network; `bf16`: products run under
  // autocast, parameters stay fp32. Dropout is as the config says.
  static std::unique_ptr<MlmNetwork> Random(const EncoderConfig& config,
                                            uint64_t seed, bool bf16,
                                            Workers* workers,
                                            PassDevice device = {});
  // The folder's encoder, and its transform where it has one.
  static absl::StatusOr<std::unique_ptr<MlmNetwork>> Load(
      const std::string& folder, const Checkpoint& checkpoint, uint64_t seed,
      bool bf16, Workers* workers, PassDevice device = {});
  ~MlmNetwork();

  const EncoderConfig& config() const;

  // Name and tensor, by the names of BertForMaskedLM (RobertaForMaskedLM); the
  // tensors are handles. A pooler has no part in this.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;

  // The parameters get gradients from now on; masks of dropout from `seed`.
  void StartTraining(uint64_t seed);
  std::vector<Dropout>& dropout() { return dropout_; }

  // Sets the parameters' gradients to those of the summed loss of all batches.
  // The batches are shared out among the workers (on a GPU one has all), the
  // same way every time.
  MaskedLoss ForwardBackward(absl::Span<const MaskedBatch> batches);

  // Without gradients or dropout.
  MaskedLoss Evaluate(absl::Span<const MaskedBatch> batches) const;

  // As files have them. A pooler that was there is kept.
  std::vector<NamedTensor> Save(TensorType type) const;

 private:
  // The transform and the output layer's bias, in a struct of tensors.
  struct Head;

  MlmNetwork(std::unique_ptr<Bert> bert, bool bf16, Workers* workers,
             PassDevice device);
  void MakeTransform(uint64_t seed);
  void ToDevice();
  at::Tensor Transform(const MaskedBatch& batch, Dropout* dropout) const;

  const bool bf16_;
  Workers* const workers_;
  const PassDevice device_;
  std::unique_ptr<Bert> bert_;
  std::unique_ptr<Head> head_;
  std::vector<at::Tensor> parameters_;
  std::vector<Dropout> dropout_;  // of each worker
};

}  // namespace vitrine
