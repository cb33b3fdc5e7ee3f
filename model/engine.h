#pragma once

// Runs an encoder and its heads over packed batches. An Engine is immutable
// after construction and any thread may call Run, several at once.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/batch.h"
#include "model/checkpoint.h"
#include "vitrine/internal/config.pb.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// What calibration asks an engine in int8: how large the inputs of its
// products are.
class ActivationObserver {
 public:
  virtual ~ActivationObserver() = default;
  // The largest magnitude of each of `rows` rows (tokens) that go into the
  // product. Called by any thread, several at once.
  virtual void Observe(int layer, internal::Product product,
                       const float* maxima, int64_t rows) = 0;
};

struct EngineOptions {
  internal::Device device = internal::DEVICE_AUTO;
  internal::Dtype dtype = internal::DTYPE_AUTO;
  internal::EngineKind kind = internal::ENGINE_KIND_AUTO;
  // The manifest's; null: none. Read while the engine is made.
  const internal::Quantization* quantization = nullptr;
  // In int8: told of every product's input. Outlives the engine; null: nobody.
  ActivationObserver* observer = nullptr;
  // Threads inside one batch; 0: as LibTorch finds it. LibTorch and the BLAS
  // have one such number per process: the engine made last sets it for all.
  int inner_threads = 0;
  // False: Run uses the caller's thread alone until StartThreads.
  bool start_threads = true;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // kInvalidArgument: an id outside the vocabulary, a sequence that is empty
  // or longer than the position table, a head that is not there.
  virtual absl::StatusOr<Outputs> Run(const Batch& batch) const = 0;

  // Starts the threads that share batches out, where that has not been done.
  // They get the priority of this thread, so that a version loaded by a thread
  // of low priority asks another one for this.
  virtual void StartThreads() const {}

  // How many floats head `h` gives per sequence.
  virtual int width(int head) const = 0;

  virtual std::string name() const = 0;    // "torch", "onednn"
  virtual std::string device() const = 0;  // "cpu", "cuda"
  virtual std::string dtype() const = 0;   // "fp32", "bf16", "fp16", "int8"
};

// The engine that `options` name, or the better one for the device.

// Head number h of every batch is heads[h]; `checkpoint` holds the encoder
// and `heads` their weights. After the call the checkpoint may go.
// kFailedPrecondition: a device or dtype that this machine does not have.
absl::StatusOr<std::unique_ptr<Engine>> NewEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options);

// LibTorch, on a CPU or on CUDA: the reference.
absl::StatusOr<std::unique_ptr<Engine>> NewTorchEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options);

// oneDNN's products with packed weights and kernels of our own between them, on
// a CPU: the fast one.
absl::StatusOr<std::unique_ptr<Engine>> NewOneDnnEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options);

}  // namespace vitrine
