#pragma once

// Where training runs. Parameters, gradients and what the optimizer remembers
// are there, in fp32; losses over a batch's outputs and checkpoints are the
// CPU's.

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
    kCuda,
    kOther,  // LibTorch's PrivateUse1, for tests/testing/other_device.h
  };
  Kind kind = Kind::kCpu;
  int index = 0;  // of the GPU

  bool cpu() const { return kind == Kind::kCpu; }
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
