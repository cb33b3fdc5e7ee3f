#include "model/raw_safetensors.h"

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {

absl::Status CheckRawNames(const Safetensors& file,
                           const std::set<std::string>& names) {
  for (const auto& [name, unused] : file.tensors()) {
    if (names.count(name) > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(absl::CHexEscape(name), ": no such tensor is known"));
  }
  return absl::OkStatus();
}

absl::StatusOr<const TensorView*> FindRaw(const Safetensors& file,
                                          const std::string& name,
                                          size_t dimensions,
                                          size_t element_bytes) {
  const TensorView* const tensor = file.Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": missing"));
  }
  if (tensor->shape.size() != dimensions ||
      tensor->bytes.size() != tensor->elements() * element_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": not a ", dimensions == 1 ? "list" : "table",
                     " of elements of ", element_bytes, " bytes"));
  }
  return tensor;
}

absl::StatusOr<std::vector<int32_t>> ReadRawInts(const Safetensors& file,
                                                 const std::string& name,
                                                 size_t dimensions) {
  ASSIGN_OR_RETURN(const TensorView* const tensor,
                   FindRaw(file, name, dimensions, sizeof(int32_t)));
  std::vector<int32_t> values(tensor->elements());
  if (!values.empty()) {
    std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
  }
  return values;
}

absl::StatusOr<std::vector<float>> ReadRawFloats(const Safetensors& file,
                                                 const std::string& name,
                                                 size_t dimensions) {
  ASSIGN_OR_RETURN(const TensorView* const tensor,
                   FindRaw(file, name, dimensions, sizeof(float)));
  absl::StatusOr<std::vector<float>> values = ToFloats(*tensor);
  if (!values.ok()) return Annotate(values.status(), name);
  return values;
}

absl::StatusOr<std::vector<float>> ReadRawNumbers(const Safetensors& file,
                                                  const std::string& name,
                                                  size_t count) {
  ASSIGN_OR_RETURN(std::vector<float> numbers, ReadRawFloats(file, name));
  if (numbers.size() != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", numbers.size(), " numbers, not ", count));
  }
  return numbers;
}

}  // namespace vitrine
