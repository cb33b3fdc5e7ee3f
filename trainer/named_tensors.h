#pragma once

#include <string>

#include "model/safetensors.h"

namespace at {
class Tensor;
}

namespace vitrine {

// The tensor's values as they are written, in fp32 until then.
NamedTensor ToNamed(const std::string& name, const at::Tensor& tensor,
                    TensorType type);

}  // namespace vitrine
