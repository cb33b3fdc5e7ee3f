#pragma once

#include "absl/status/statusor.h"
#include "model/safetensors.h"

namespace at {
class Tensor;
}  // namespace at

namespace vitrine {

// An fp32 copy on the CPU, of the view's shape.
absl::StatusOr<at::Tensor> ToTensor(const TensorView& view);

}  // namespace vitrine
