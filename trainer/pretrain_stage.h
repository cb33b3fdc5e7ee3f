#pragma once

// What a stage of pre-training learns from: its examples, its network, its
// loss. The run around it (pretrain.cc) draws each step's examples, moves the
// parameters and keeps checkpoints. For one thread.

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/dropout.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "trainer/corpus.h"
#include "trainer/pretrain.h"
#include "trainer/process_group.h"
#include "trainer/source_model.h"
#include "trainer/workers.h"

namespace at {
class Tensor;
}

namespace vitrine {

struct StageLoss {
  double loss = 0;     // summed
  int64_t count = 0;   // of what has a loss: hidden places, halves of pairs
  int64_t found = 0;   // where the right answer was the likeliest
  int64_t tokens = 0;  // that went through the network
};

// A text as it is learnt from at one time through them: chance falls
// differently in each.
struct StageExample {
  int32_t text = 0;
  int32_t epoch = 0;
};

// All outlive the stage.
struct StageSettings {
  const PretrainOptions& options;
  const EncoderConfig& config;  // with the dropout to train with
  const Tokenizer& tokenizer;
  const SourceModel* source;  // null: random weights
  bool bf16;
  Workers* workers;
  ProcessGroup* processes;  // null: this process is alone
};

class PretrainStage {
 public:
  virtual ~PretrainStage() = default;

  // Name and tensor of all that is trained; the tensors are handles.
  virtual std::vector<std::pair<std::string, at::Tensor>> parameters()
      const = 0;

  // Once, before what follows. kCancelled soon after `stop` is set.
  virtual absl::StatusOr<CorpusSize> Read(const std::atomic<bool>& stop) = 0;
  virtual int64_t texts() const = 0;
  // The most that an example of this text can have, or about as many as it has
  // where other texts are in it, too.
  virtual int64_t tokens(int64_t text) const = 0;
  virtual int64_t held_out_tokens() const = 0;
  // Among how many the right answer is looked for; 0: that says little.
  virtual int64_t candidates() const { return 0; }

  // The parameters get gradients from now on; masks of dropout from `seed`.
  virtual void StartTraining(uint64_t seed) = 0;
  virtual std::vector<Dropout>& dropout() = 0;

  // Sets the parameters' gradients to this process's part of those of the
  // step's summed loss, and returns its part of that. `own` of the step's
  // examples, one span of them, are this process's: all where it is alone,
  // maybe none where it is not.
  virtual absl::StatusOr<StageLoss> ForwardBackward(
      absl::Span<const StageExample> step,
      absl::Span<const StageExample> own) = 0;

  // Of the held-out texts, without gradients; the same draws every time.
  virtual StageLoss Evaluate() const = 0;

  // The encoder's files, as the result has them.
  virtual absl::StatusOr<std::vector<NamedTensor>> Save(
      TensorType type) const = 0;
};

// Masked language modelling.
absl::StatusOr<std::unique_ptr<PretrainStage>> NewMlmStage(
    const StageSettings& settings);
// Softmax over a query's items (match_groups.h); needs a source, which sees
// match marks.
absl::StatusOr<std::unique_ptr<PretrainStage>> NewMatchingStage(
    const StageSettings& settings);
// In-batch softmax over pairs of texts (text_pairs.h); needs a source.
absl::StatusOr<std::unique_ptr<PretrainStage>> NewContrastiveStage(
    const StageSettings& settings);

// The round of chance that held-out texts always have.
inline constexpr uint64_t kHeldOutRound = ~uint64_t{0};
// Enough held-out tokens for a perplexity to two digits.
inline constexpr int64_t kMaxHeldOutTokens = 1 << 17;

// A generator of its own for each text and round, so that what chance does
// depends on neither the order nor the number of workers.
std::mt19937_64 RandomFor(uint64_t seed, uint64_t round, uint64_t text);

}  // namespace vitrine
