#pragma once

// An encoder with its heads, as fine-tuning sees it: parameters to change, a
// forward pass with gradients, an inference pass without. For one thread.
//
// Free of LibTorch (only names at::Tensor), like every header but two.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/checkpoint.h"
#include "model/dropout.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "trainer/inference.h"
#include "trainer/pass_device.h"
#include "trainer/workers.h"
#include "vitrine/internal/manifest.pb.h"

namespace at {
class Tensor;
}

namespace vitrine {

class Bert;
class TaskHead;

class Network : public Inference {
 public:
  // Heads of `heads` are loaded from the checkpoint. `bf16`: products run
  // under autocast, parameters stay fp32. Dropout is as the config says.
  // `workers` outlives the network.
  static absl::StatusOr<std::unique_ptr<Network>> Create(
      const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
      bool bf16, Workers* workers, PassDevice device = {});
  // A fresh encoder without heads.
  static std::unique_ptr<Network> Random(const EncoderConfig& config,
                                         uint64_t seed);
  ~Network() override;

  const EncoderConfig& config() const;
  int head_count() const { return static_cast<int>(heads_.size()); }
  const internal::Head& head(int h) const { return heads_[h]; }
  // All of them, as a manifest lists them.
  const std::vector<internal::Head>& head_list() const { return heads_; }
  // -1 when there is none of that name.
  int FindHead(const std::string& name) const;

  // Adds a head with fresh weights, or extends the one of its name by the
  // labels that follow its own. Returns its number. kInvalidArgument: the
  // head there is of another kind.
  absl::StatusOr<int> PutHead(const internal::Head& head, uint64_t seed);
  void SetScoreScale(int h, float scale, float bias);

  // Name and tensor, the encoder's first; the tensors are handles.
  std::vector<std::pair<std::string, at::Tensor>> EncoderParameters() const;
  std::vector<std::pair<std::string, at::Tensor>> HeadParameters(int h) const;

  // Starts training: gradients will be of `parameters`, masks of dropout from
  // `seed`.
  void StartTraining(std::vector<at::Tensor> parameters, uint64_t seed);
  // The streams of dropout, one a worker: with the parameters, all that
  // ForwardBackward depends on.
  std::vector<Dropout>& dropout() { return dropout_; }

  // From now on every batch is filled up as PadTokens says.
  void PadBatches(int32_t pad_id, int longest) {
    pad_id_ = pad_id;
    longest_padding_ = longest;
  }

  // The loss of head `h`'s raw outputs, (sequences, width) fp32, as a scalar.
  using LossFunction = std::function<at::Tensor(const at::Tensor& outputs)>;

  // Runs the sequences with dropout, each worker a share of them (on a GPU one
  // has all), and sets the parameters' gradients to those of `weight` times the
  // loss, which sees the outputs on the CPU. Returns the loss; where that is
  // not finite, gradients are left as they were.
  double ForwardBackward(int h, absl::Span<const Encoding* const> sequences,
                         const LossFunction& loss, double weight);

  // Without gradients or dropout; batched by length inside.
  std::vector<float> Infer(
      int h, absl::Span<const Encoding* const> sequences) const override;
  int width(int h) const override;

  // Weights as they are saved: the encoder's names are BertModel's.
  std::vector<NamedTensor> SaveEncoder(TensorType type) const;
  std::vector<NamedTensor> SaveHeads(TensorType type) const;

 private:
  Network();

  at::Tensor Run(int h, absl::Span<const Encoding* const> sequences,
                 Dropout* dropout) const;

  bool bf16_ = false;
  PassDevice device_;
  int32_t pad_id_ = 0;
  int longest_padding_ = 0;  // 0: no padding
  Workers* workers_ = nullptr;
  std::vector<at::Tensor> parameters_;
  std::vector<Dropout> dropout_;  // of each worker
  std::unique_ptr<Bert> bert_;
  std::vector<internal::Head> heads_;
  std::vector<std::unique_ptr<TaskHead>> weights_;  // of each head
};

// Whether bf16 products are a gain for such an encoder on this processor: 1.5
// times as fast at a width of 256 with AVX512-BF16, more with AMX.
bool Bf16Pays(const EncoderConfig& config);

// Whether this processor multiplies bf16 itself, with AMX or without.
bool ProcessorHasBf16();

}  // namespace vitrine
