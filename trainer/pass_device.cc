#include "trainer/pass_device.h"

#include <ATen/Context.h>
#include <c10/core/Device.h>
#include <torch/cuda.h>

#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace vitrine {

absl::StatusOr<PassDevice> ChoosePassDevice(internal::Device wanted) {
  PassDevice out;
  if (wanted == internal::DEVICE_CPU) return out;
  if (!at::hasCUDA()) {
    if (wanted == internal::DEVICE_AUTO) return out;
    return absl::FailedPreconditionError(
        "--device cuda: LibTorch sees no GPU here, or is built without CUDA");
  }
  out.kind = PassDevice::Kind::kCuda;
  const char* const rank = std::getenv("LOCAL_RANK");
  if (rank == nullptr) return out;
  const auto count = static_cast<int>(torch::cuda::device_count());
  if (!absl::SimpleAtoi(rank, &out.index) || out.index < 0 ||
      out.index >= count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "LOCAL_RANK: \"", rank, "\" is none of the ", count, " GPUs here"));
  }
  return out;
}

internal::Device DeviceOf(absl::string_view name) {
  return name == "cpu"    ? internal::DEVICE_CPU
         : name == "cuda" ? internal::DEVICE_CUDA
                          : internal::DEVICE_AUTO;
}

c10::Device ToTorchDevice(const PassDevice& device) {
  const auto type = device.cpu()    ? c10::kCPU
                    : device.cuda() ? c10::kCUDA
                                    : c10::kPrivateUse1;
  return {type, device.cpu() ? c10::DeviceIndex{-1}
                             : static_cast<c10::DeviceIndex>(device.index)};
}

}  // namespace vitrine
