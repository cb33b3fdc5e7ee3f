#pragma once

// Where passes of training run, forward and backward. Parameters, gradients and
// the optimizer are in fp32 on the CPU; a pass elsewhere has copies made for
// it. So checkpoints, clipping and sums over processes are one code, at the
// price of moving the parameters there and the gradients back once a step.

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "vitrine/internal/config.pb.h"

namespace c10 {
struct Device;
}

namespace vitrine {

struct PassDevice {
  enum class Kind {
    kCpu,
    kCpuCopy,  // as on a GPU, but on the CPU: for tests
    kCuda,
  };
  Kind kind = Kind::kCpu;
  int index = 0;  // of the GPU

  bool copies() const { return kind != Kind::kCpu; }
  bool cuda() const { return kind == Kind::kCuda; }
  const char* name() const { return cuda() ? "cuda" : "cpu"; }
};

// AUTO is a GPU where LibTorch sees one. Of several that of LOCAL_RANK, which
// torchrun sets. kFailedPrecondition: there is none; kInvalidArgument: not of
// that number.
absl::StatusOr<PassDevice> ChoosePassDevice(internal::Device wanted);

// "cpu" and "cuda", as flags have them; AUTO else.
internal::Device DeviceOf(absl::string_view name);

c10::Device ToTorchDevice(const PassDevice& device);

}  // namespace vitrine
