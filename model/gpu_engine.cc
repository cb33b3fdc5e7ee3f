#include "model/gpu_engine.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "model/batch_checks.h"
#include "model/cuda_graphs.h"
#include "model/gpu_batch.h"
#include "model/gpu_encoder.h"
#include "model/length_buckets.h"
#include "model/task_head.h"
#include "model/torch_status.h"

namespace vitrine {
namespace {

// Below this many tokens times hidden size squared, a layer's products take a
// fast GPU less time than the CPU takes to launch its kernels: 24 times this in
// operations, at 500 TFLOP/s, against a dozen launches of 5 microseconds. An
// estimate, not measured.
constexpr double kGraphWork = 1.2e9;
constexpr int kGraphTokens = 8192;

absl::StatusOr<at::Device> ChooseDevice(internal::Device device) {
  if (device == internal::DEVICE_CPU) return at::Device(at::kCPU);
  if (!at::hasCUDA()) {
    return absl::FailedPreconditionError(
        "device CUDA: LibTorch sees no CUDA device");
  }
  return at::Device(at::kCUDA, 0);
}

absl::StatusOr<at::ScalarType> ChooseDtype(internal::Dtype dtype) {
  switch (dtype) {
    case internal::DTYPE_FP32:
      return at::kFloat;
    case internal::DTYPE_AUTO:
    case internal::DTYPE_BF16:
      return at::kBFloat16;
    case internal::DTYPE_FP16:
      return at::kHalf;
    case internal::DTYPE_INT8:
      return absl::FailedPreconditionError("dtype INT8: oneDNN's engine only");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("dtype ", dtype, ": unknown"));
  }
}

class GpuEngine final : public Engine {
 public:
  GpuEngine(GpuEncoder encoder, std::vector<TaskHead> heads,
            const at::Device& device, at::ScalarType dtype)
      : encoder_(std::move(encoder)),
        heads_(std::move(heads)),
        device_(device),
        dtype_(dtype),
        // Buckets differ from batch to batch and would need a graph each.
        graphs_(encoder_.attends_packed()
                    ? NewCudaGraphs(
                          [this](const at::Tensor& block, const GraphKey& key) {
                            return Compute(ViewBlock(block, key.shape, {}),
                                           key.heads);
                          })
                    : nullptr) {}

  absl::StatusOr<Outputs> Run(const Batch& batch) const override {
    RETURN_IF_ERROR(CheckBatch(batch, encoder_.config(), heads_.size()));
    if (batch.sequences() == 0) return Outputs();
    try {
      return RunChecked(batch);
    } catch (const std::exception& e) {
      return TorchStatus(e);
    }
  }

  int width(int head) const override {
    return static_cast<int>(heads_[head].width());
  }
  std::string name() const override { return "torch"; }
  std::string device() const override {
    return device_.is_cuda() ? "cuda" : "cpu";
  }
  std::string dtype() const override {
    return dtype_ == at::kFloat  ? "fp32"
           : dtype_ == at::kHalf ? "fp16"
                                 : "bf16";
  }

 private:
  Outputs RunChecked(const Batch& batch) const {
    const c10::InferenceMode inference;
    // Every head that any sequence asks for runs on all of them: that is next
    // to nothing beside the encoder, and needs no lists of who wants what.
    HeadMask heads = 0;
    for (const HeadMask mask : batch.heads) heads |= mask;
    return Split(batch, heads, OnHost(batch, heads));
  }

  // (sequences or more, widths of `heads`), fp32, in the host's memory.
  at::Tensor OnHost(const Batch& batch, HeadMask heads) const {
    const EncoderConfig& config = encoder_.config();
    const double hidden = static_cast<double>(config.hidden_size);
    if (graphs_ != nullptr && batch.tokens() <= kGraphTokens &&
        batch.tokens() * hidden * hidden <= kGraphWork) {
      const GpuShape shape = RoundedShapeOf(batch);
      return graphs_->Run({shape, heads},
                          PackBlock(batch, config, shape, {}, /*pinned=*/true));
    }
    std::vector<LengthBucket> buckets;
    if (!encoder_.attends_packed()) buckets = GroupByLength(batch.offsets);
    const GpuShape shape = ShapeOf(batch);
    const at::Tensor block =
        PackBlock(batch, config, shape, buckets, device_.is_cuda())
            .to(device_, /*non_blocking=*/true);
    return Compute(ViewBlock(block, shape, buckets), heads).to(at::kCPU);
  }

  // (sequences, widths of `heads`), fp32: enqueued, not waited for.
  at::Tensor Compute(const GpuBatch& batch, HeadMask heads) const {
    const at::Tensor hidden = encoder_.Forward(batch);
    const at::Tensor first =
        batch.offsets.narrow(0, 0, batch.offsets.size(0) - 1);
    // By pooling, made when the first head asks.
    at::Tensor pooled_by_kind[internal::Pooling_ARRAYSIZE];
    std::vector<at::Tensor> outputs;
    for (size_t h = 0; h < heads_.size(); ++h) {
      if ((heads >> h & 1) == 0) continue;
      const internal::Pooling pooling = heads_[h].head().pooling();
      at::Tensor& pooled = pooled_by_kind[pooling];
      if (!pooled.defined()) pooled = Pool(hidden, first, pooling);
      outputs.push_back(heads_[h].Forward(pooled));
    }
    return at::cat(outputs, 1);
  }

  // What each sequence asked for.
  Outputs Split(const Batch& batch, HeadMask heads,
                const at::Tensor& rows) const {
    Outputs outputs;
    const auto* row = rows.data_ptr<float>();
    for (const HeadMask mask : batch.heads) {
      const float* value = row;
      for (size_t h = 0; h < heads_.size(); ++h) {
        if ((heads >> h & 1) == 0) continue;
        const int64_t width = heads_[h].width();
        if (mask >> h & 1) {
          outputs.values.insert(outputs.values.end(), value, value + width);
        }
        value += width;
      }
      outputs.offsets.push_back(static_cast<int64_t>(outputs.values.size()));
      row += rows.size(1);
    }
    return outputs;
  }

  const GpuEncoder encoder_;
  const std::vector<TaskHead> heads_;
  const at::Device device_;
  const at::ScalarType dtype_;
  const std::unique_ptr<CudaGraphs> graphs_;  // null for none; last: calls us
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> NewGpuEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  RETURN_IF_ERROR(CheckHeads(heads));
  try {
    ASSIGN_OR_RETURN(const at::Device device, ChooseDevice(options.device));
    ASSIGN_OR_RETURN(const at::ScalarType dtype, ChooseDtype(options.dtype));
    // Weights born under InferenceMode carry no autograd state.
    const c10::InferenceMode inference;
    ASSIGN_OR_RETURN(GpuEncoder encoder,
                     GpuEncoder::FromCheckpoint(checkpoint, device, dtype));
    std::vector<TaskHead> task_heads;
    for (const internal::Head& head : heads) {
      ASSIGN_OR_RETURN(TaskHead task_head,
                       TaskHead::FromCheckpoint(checkpoint, head));
      // Small, so in fp32 whatever the encoder runs in.
      task_head.To(device, at::kFloat);
      task_heads.push_back(std::move(task_head));
    }
    Log(LogLevel::kInfo, "gpu_engine",
        {{"packed_attention", encoder.attends_packed()}});
    return std::make_unique<GpuEngine>(std::move(encoder),
                                       std::move(task_heads), device, dtype);
  } catch (const std::exception& e) {
    return TorchStatus(e);
  }
}

}  // namespace vitrine
