#pragma once

// Tensors of LibTorch from stored ones and from others. One of few headers that
// include LibTorch.

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include "absl/status/statusor.h"
#include "model/safetensors.h"

namespace at {
class Tensor;
}  // namespace at

namespace vitrine {

// An fp32 copy on the CPU, of the view's shape.
absl::StatusOr<at::Tensor> ToTensor(const TensorView& view);

// A copy on the device, of no graph; also where the tensor is there already.
at::Tensor CopyTo(const at::Tensor& tensor, const c10::Device& device,
                  c10::ScalarType dtype);

}  // namespace vitrine
