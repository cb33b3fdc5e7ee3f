#pragma once

// Processes that train one model together, on one machine or several, as
// torchrun starts them: sums over all of them, and who is to blame where one is
// gone. Gloo over TCP, by LibTorch's c10d, which is included in the .cc alone;
// between GPUs NCCL, where LibTorch has it.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace at {
class Tensor;
}

namespace vitrine {

struct ProcessOptions {
  int rank = 0;
  int size = 1;         // 1: alone, and the rest does not matter
  std::string address;  // where rank 0 listens
  int port = 0;
  // For the others to come, and for each of the calls below.
  double timeout_seconds = 600;
};

// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; alone where none is set.
// kInvalidArgument: some are, or one is no such number.
absl::StatusOr<ProcessOptions> ProcessesOfEnvironment();

// All processes make the same calls in the same order, from one thread. A call
// that fails names the process that is gone, or what it said when it left
// (kUnavailable); no call is of use after that.
class ProcessGroup {
 public:
  // Waits for all the others. kUnimplemented: this program is built without.
  static absl::StatusOr<std::unique_ptr<ProcessGroup>> Join(
      const ProcessOptions& options);
  virtual ~ProcessGroup() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Each value becomes its sum over all processes: the same bits in each.
  // Tensors here are fp32 and contiguous, on any device.
  virtual absl::Status Sum(const at::Tensor& values) = 0;
  virtual absl::Status Sum(absl::Span<double> values) = 0;
  // Each value becomes what it is in process 0.
  virtual absl::Status Copy(const at::Tensor& values) = 0;
  // Process 0's value, in all. A name is used once.
  virtual absl::StatusOr<std::string> Share(const std::string& name,
                                            const std::string& value) = 0;

  // Before this process goes away with an error, for the others to know.
  virtual void Leave(const absl::Status& why) = 0;
};

}  // namespace vitrine
