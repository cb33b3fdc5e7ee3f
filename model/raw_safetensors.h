#pragma once

// Safetensors of numbers that no network computes with, such as indices and
// bytes: safetensors.h opens them, as kOther or kI64.

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "model/safetensors.h"

namespace vitrine {

struct RawTensor {
  std::string name;
  std::string dtype;  // the format's name, such as "I32"
  std::vector<int64_t> shape;
  std::string bytes;  // row-major, little-endian
};

// `dtype` is the format's name of T.
template <typename T>
RawTensor ToRaw(const char* name, const char* dtype, std::vector<int64_t> shape,
                const std::vector<T>& values) {
  return {name, dtype, std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()),
                      values.size() * sizeof(T))};
}

// As WriteSafetensors().
absl::Status WriteRawSafetensors(const std::string& path,
                                 const std::vector<RawTensor>& tensors);

// kInvalidArgument names a tensor of the file that is none of `names`.
absl::Status CheckRawNames(const Safetensors& file,
                           const std::set<std::string>& names);
// The tensor `name`; kInvalidArgument where it is missing, or is no list (of
// one dimension) or table (of two) of elements of so many bytes.
absl::StatusOr<const TensorView*> FindRaw(const Safetensors& file,
                                          const std::string& name,
                                          size_t dimensions,
                                          size_t element_bytes);
// Its elements, which must be I32 or of a type that ToFloats() takes.
absl::StatusOr<std::vector<int32_t>> ReadRawInts(const Safetensors& file,
                                                 const std::string& name,
                                                 size_t dimensions = 1);
absl::StatusOr<std::vector<float>> ReadRawFloats(const Safetensors& file,
                                                 const std::string& name,
                                                 size_t dimensions = 1);
// A list of just `count` of them.
absl::StatusOr<std::vector<float>> ReadRawNumbers(const Safetensors& file,
                                                  const std::string& name,
                                                  size_t count);

// Made::Create() of read(file), the file at `path`; errors name it.
template <typename Made, typename Read>
absl::StatusOr<std::unique_ptr<const Made>> OpenRaw(const std::string& path,
                                                    Read read) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Safetensors> file,
                   OpenSafetensors(path));
  const auto make = [&]() -> absl::StatusOr<std::unique_ptr<const Made>> {
    ASSIGN_OR_RETURN(auto table, read(*file));
    return Made::Create(std::move(table));
  };
  absl::StatusOr<std::unique_ptr<const Made>> made = make();
  if (!made.ok()) return Annotate(made.status(), path);
  return made;
}

}  // namespace vitrine
