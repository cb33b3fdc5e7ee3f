#pragma once

// Writing safetensors of numbers that no network computes with, such as
// indices and bytes: safetensors.h reads them, as kOther or kI64.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace vitrine {

struct RawTensor {
  std::string name;
  std::string dtype;  // the format's name, such as "I32"
  std::vector<int64_t> shape;
  std::string bytes;  // row-major, little-endian
};

// As WriteSafetensors().
absl::Status WriteRawSafetensors(const std::string& path,
                                 const std::vector<RawTensor>& tensors);

}  // namespace vitrine
