#pragma once

// Reading and writing the safetensors format, nothing else: no pickle.
// https://github.com/huggingface/safetensors#format

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace vitrine {

enum class TensorType { kF32, kF16, kBF16, kI64, kOther };

struct TensorView {
  TensorType type = TensorType::kOther;
  std::vector<int64_t> shape;
  absl::string_view bytes;  // row-major, little-endian, in the mapped file

  int64_t elements() const;
};

// One file or all shards of one index, mapped read-only. Immutable.
class Safetensors {
 public:
  virtual ~Safetensors() = default;

  // Null when there is no such tensor.
  virtual const TensorView* Find(const std::string& name) const = 0;
  virtual const std::map<std::string, TensorView>& tensors() const = 0;
};

// kInvalidArgument names the file and the tensor: a header that is not JSON or
// points outside the file, sizes that do not fit shapes, overlaps, holes.
absl::StatusOr<std::unique_ptr<Safetensors>> OpenSafetensors(
    const std::string& path);

// <folder>/model.safetensors, or the shards of model.safetensors.index.json.
// A shard's name must be a plain file name.
absl::StatusOr<std::unique_ptr<Safetensors>> OpenSharded(
    const std::string& folder);

// F32, F16 or BF16 to float; kInvalidArgument for other types.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);

struct NamedTensor {
  std::string name;
  TensorType type = TensorType::kF32;  // kF32, kF16 or kBF16
  std::vector<int64_t> shape;
  std::vector<float> values;  // converted to `type`
};

// Names are written in the given order; the file is fsynced.
absl::Status WriteSafetensors(const std::string& path,
                              const std::vector<NamedTensor>& tensors);

}  // namespace vitrine
