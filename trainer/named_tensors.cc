#include "trainer/named_tensors.h"

#include <ATen/ATen.h>

namespace vitrine {

NamedTensor ToNamed(const std::string& name, const at::Tensor& tensor,
                    TensorType type) {
  const at::Tensor values =
      tensor.detach().to(at::kCPU, at::kFloat).contiguous();
  NamedTensor out;
  out.name = name;
  out.type = type;
  out.shape = values.sizes().vec();
  out.values.assign(values.data_ptr<float>(),
                    values.data_ptr<float>() + values.numel());
  return out;
}

}  // namespace vitrine
