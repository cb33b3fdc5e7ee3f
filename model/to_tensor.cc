#include "model/to_tensor.h"

#include <ATen/ATen.h>

#include <vector>

#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<at::Tensor> ToTensor(const TensorView& view) {
  ASSIGN_OR_RETURN(std::vector<float> values, ToFloats(view));
  return at::from_blob(values.data(), view.shape, at::kFloat).clone();
}

at::Tensor CopyTo(const at::Tensor& tensor, const c10::Device& device,
                  c10::ScalarType dtype) {
  return tensor.detach().to(device, dtype, /*non_blocking=*/false,
                            /*copy=*/true);
}

}  // namespace vitrine
