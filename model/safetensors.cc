#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/raw_safetensors.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

// The limit of the reference implementation: no real header comes near.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxDimensions = 8;

struct Dtype {
  const char* name;
  TensorType type;
  int bytes;
};

constexpr Dtype kDtypes[] = {
    {"F32", TensorType::kF32, 4},       {"F16", TensorType::kF16, 2},
    {"BF16", TensorType::kBF16, 2},     {"I64", TensorType::kI64, 8},
    {"BOOL", TensorType::kOther, 1},    {"U8", TensorType::kOther, 1},
    {"I8", TensorType::kOther, 1},      {"F8_E5M2", TensorType::kOther, 1},
    {"F8_E4M3", TensorType::kOther, 1}, {"I16", TensorType::kOther, 2},
    {"U16", TensorType::kOther, 2},     {"I32", TensorType::kOther, 4},
    {"U32", TensorType::kOther, 4},     {"F64", TensorType::kOther, 8},
    {"U64", TensorType::kOther, 8},
};

const Dtype* FindDtype(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return &dtype;
  }
  return nullptr;
}

// Names come from a file that may be anything: shown escaped and not at
// length.
std::string Shown(const std::string& name) {
  std::string out;
  for (const char c : name.substr(0, 128)) {
    out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
  }
  return out;
}

// nlohmann keeps the last of two equal keys without a word: this finds them.
class DuplicateFinder {
 public:
  bool operator()(int depth, nlohmann::json::parse_event_t event,
                  nlohmann::json& parsed) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1) {
      if (!seen_.insert(parsed.get<std::string>()).second &&
          duplicate_.empty()) {
        duplicate_ = Shown(parsed.get<std::string>());
      }
    }
    return true;
  }
  const std::string& duplicate() const { return duplicate_; }

 private:
  std::set<std::string> seen_;
  std::string duplicate_;
};

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text,
                                               const std::string& what) {
  try {
    DuplicateFinder finder;
    nlohmann::json json = nlohmann::json::parse(
        text.begin(), text.end(),
        [&finder](int depth, nlohmann::json::parse_event_t event,
                  nlohmann::json& parsed) {
          return finder(depth, event, parsed);
        });
    if (!finder.duplicate().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": ", finder.duplicate(), " is there twice"));
    }
    if (!json.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " is not a JSON object"));
    }
    return json;
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is not JSON: ", Shown(e.what())));
  }
}

bool IsCount(const nlohmann::json& value) {
  return value.is_number_unsigned() ||
         (value.is_number_integer() && value.get<int64_t>() >= 0);
}

struct Extent {
  uint64_t begin;
  uint64_t end;
  std::string name;
};

// One entry of the header. `where` names file and tensor.
absl::StatusOr<TensorView> ParseTensor(const nlohmann::json& entry,
                                       absl::string_view data,
                                       const std::string& where,
                                       Extent* extent) {
  const auto bad = [&where](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", parts...));
  };
  if (!entry.is_object()) return bad("its header entry is not an object");
  const auto dtype_it = entry.find("dtype");
  const auto shape_it = entry.find("shape");
  const auto offsets_it = entry.find("data_offsets");
  if (dtype_it == entry.end() || !dtype_it->is_string()) {
    return bad("no dtype");
  }
  const Dtype* dtype = FindDtype(dtype_it->get<std::string>());
  if (dtype == nullptr) {
    return bad("unknown dtype ", Shown(dtype_it->get<std::string>()));
  }
  if (shape_it == entry.end() || !shape_it->is_array() ||
      shape_it->size() > kMaxDimensions) {
    return bad("its shape is not a list of at most ", kMaxDimensions, " sizes");
  }
  if (offsets_it == entry.end() || !offsets_it->is_array() ||
      offsets_it->size() != 2 || !IsCount((*offsets_it)[0]) ||
      !IsCount((*offsets_it)[1])) {
    return bad("its data_offsets are not two counts of bytes");
  }

  TensorView tensor;
  tensor.type = dtype->type;
  uint64_t size = dtype->bytes;
  for (const nlohmann::json& dimension : *shape_it) {
    if (!IsCount(dimension) ||
        dimension.get<uint64_t>() > (uint64_t{1} << 40)) {
      return bad("size ", tensor.shape.size(), " of its shape is no count");
    }
    tensor.shape.push_back(dimension.get<int64_t>());
    if (__builtin_mul_overflow(size, dimension.get<uint64_t>(), &size)) {
      return bad("its shape is too large");
    }
  }
  extent->begin = (*offsets_it)[0].get<uint64_t>();
  extent->end = (*offsets_it)[1].get<uint64_t>();
  if (extent->begin > extent->end || extent->end > data.size()) {
    return bad("bytes ", extent->begin, " to ", extent->end,
               " are not within the file's ", data.size(), " bytes of data");
  }
  if (extent->end - extent->begin != size) {
    return bad("its shape needs ", size, " bytes, it has ",
               extent->end - extent->begin);
  }
  tensor.bytes = data.substr(extent->begin, size);
  return tensor;
}

absl::StatusOr<std::map<std::string, TensorView>> ParseFile(
    absl::string_view file, const std::string& path) {
  if (file.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file.size(), " bytes hold no header"));
  }
  uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) {
    header_size = header_size << 8 | static_cast<unsigned char>(file[i]);
  }
  if (header_size > kMaxHeaderBytes || header_size > file.size() - 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a header of ", header_size,
                     " bytes in a file of ", file.size()));
  }
  const absl::string_view data = file.substr(8 + header_size);
  ASSIGN_OR_RETURN(const nlohmann::json header,
                   ParseJsonObject(file.substr(8, header_size),
                                   absl::StrCat(path, ": header")));

  std::map<std::string, TensorView> tensors;
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    Extent extent;
    ASSIGN_OR_RETURN(
        TensorView tensor,
        ParseTensor(entry, data, absl::StrCat(path, ": ", Shown(name)),
                    &extent));
    extent.name = Shown(name);
    extents.push_back(std::move(extent));
    tensors.emplace(name, std::move(tensor));
  }

  // The format wants the data covered once: two tensors over the same bytes,
  // or bytes of nobody, are a damaged or a forged header.
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) {
              return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
            });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": ", extent.name, " begins at byte ", extent.begin,
          extent.begin < covered
              ? ", within the tensor before it, which ends at "
              : ", after a hole that begins at ",
          covered));
    }
    covered = extent.end;
  }
  if (covered != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", data.size() - covered,
                     " bytes after the last tensor belong to none"));
  }
  return tensors;
}

class MappedSafetensors final : public Safetensors {
 public:
  absl::Status Add(const std::string& path) {
    ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
    ASSIGN_OR_RETURN(auto tensors, ParseFile(file->data(), path));
    for (auto& [name, tensor] : tensors) {
      if (!tensors_.emplace(name, std::move(tensor)).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": ", Shown(name), " is in another shard too"));
      }
    }
    files_.push_back(std::move(file));
    return absl::OkStatus();
  }

  const TensorView* Find(const std::string& name) const override {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }
  const std::map<std::string, TensorView>& tensors() const override {
    return tensors_;
  }

 private:
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, TensorView> tensors_;  // into files_
};

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {  // infinity, NaN
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {  // zero, subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    memcpy(&bits, &magnitude, sizeof(bits));
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounds to nearest, ties to even.
uint16_t FloatToHalf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;   // NaN
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above
  if (bits < 0x38800000) {                       // below 2^-14: subnormal
    float magnitude;
    memcpy(&magnitude, &bits, sizeof(magnitude));
    // Adding 0.5 leaves 24 bits of fraction: the multiples of 2^-24.
    const float shifted = magnitude + 0.5f;
    uint32_t shifted_bits;
    memcpy(&shifted_bits, &shifted, sizeof(shifted_bits));
    return sign | (shifted_bits - 0x3f000000);
  }
  const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
  return sign | (rounded - (112u << 23)) >> 13;
}

uint16_t FloatToBfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;  // NaN
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

absl::Status ErrnoError(const std::string& path, const char* what) {
  return absl::InternalError(
      absl::StrCat(path, ": ", what, ": ", strerror(errno)));
}

// Appends to a file descriptor in pieces; a tensor at a time is converted, so
// that a large model is not held twice.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path) : path_(path) {}
  ~FileWriter() {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Open() {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd_ < 0 ? ErrnoError(path_, "open") : absl::OkStatus();
  }
  absl::Status Append(absl::string_view data) {
    while (!data.empty()) {
      const ssize_t n = write(fd_, data.data(), data.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoError(path_, "write");
      data.remove_prefix(n);
    }
    return absl::OkStatus();
  }
  absl::Status Close() {
    if (fsync(fd_) != 0) return ErrnoError(path_, "fsync");
    const int fd = std::exchange(fd_, -1);
    return close(fd) != 0 ? ErrnoError(path_, "close") : absl::OkStatus();
  }

 private:
  const std::string path_;
  int fd_ = -1;
};

// The header of a file to be written: its tensors in their order.
class HeaderWriter {
 public:
  explicit HeaderWriter(const std::string& path) : path_(path) {
    json_["__metadata__"] = {{"format", "pt"}};  // transformers wants it
  }

  // `values`: how many there are.
  absl::Status Add(const std::string& name, const Dtype& dtype,
                   const std::vector<int64_t>& shape, size_t values) {
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    if (elements != static_cast<int64_t>(values)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": ", name, ": ", values, " values for the shape [",
          absl::StrJoin(shape, ", "), "]"));
    }
    if (json_.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": ", name, " is there twice"));
    }
    const uint64_t size = uint64_t{values} * dtype.bytes;
    json_[name] = {{"dtype", dtype.name},
                   {"shape", shape},
                   {"data_offsets", {offset_, offset_ + size}}};
    offset_ += size;
    return absl::OkStatus();
  }

  absl::Status Write(FileWriter* writer) const {
    std::string text;
    try {
      text = json_.dump();
    } catch (const std::exception& e) {  // a name that is not UTF-8
      return absl::InvalidArgumentError(absl::StrCat(path_, ": ", e.what()));
    }
    // Padded with spaces so that the data is aligned for who maps it.
    text.append((8 - text.size() % 8) % 8, ' ');
    char length[8];
    for (int i = 0; i < 8; ++i) {
      length[i] = uint64_t{text.size()} >> 8 * i & 0xff;
    }
    RETURN_IF_ERROR(writer->Open());
    RETURN_IF_ERROR(writer->Append(absl::string_view(length, sizeof(length))));
    return writer->Append(text);
  }

 private:
  const std::string path_;
  nlohmann::ordered_json json_ = nlohmann::ordered_json::object();
  uint64_t offset_ = 0;
};

std::string Encode(const NamedTensor& tensor) {
  std::string bytes;
  if (tensor.type == TensorType::kF32) {
    bytes.assign(reinterpret_cast<const char*>(tensor.values.data()),
                 tensor.values.size() * sizeof(float));
    return bytes;
  }
  bytes.resize(tensor.values.size() * 2);
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    const uint16_t half = tensor.type == TensorType::kF16
                              ? FloatToHalf(tensor.values[i])
                              : FloatToBfloat16(tensor.values[i]);
    memcpy(&bytes[2 * i], &half, sizeof(half));
  }
  return bytes;
}

}  // namespace

int64_t TensorView::elements() const {
  // Before any product: sizes beside a zero may be of any magnitude.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

absl::StatusOr<std::unique_ptr<Safetensors>> OpenSafetensors(
    const std::string& path) {
  auto file = std::make_unique<MappedSafetensors>();
  RETURN_IF_ERROR(file->Add(path));
  return std::unique_ptr<Safetensors>(std::move(file));
}

absl::StatusOr<std::unique_ptr<Safetensors>> OpenSharded(
    const std::string& folder) {
  const std::string single = JoinPath(folder, "model.safetensors");
  if (PathExists(single)) return OpenSafetensors(single);
  const std::string index_path =
      JoinPath(folder, "model.safetensors.index.json");
  if (!PathExists(index_path)) {
    return absl::NotFoundError(absl::StrCat(
        folder,
        ": neither model.safetensors nor model.safetensors.index.json"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, 64 << 20));
  ASSIGN_OR_RETURN(const nlohmann::json index,
                   ParseJsonObject(text, index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": no object weight_map"));
  }

  std::map<std::string, std::string> shard_of;  // by tensor
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": ", Shown(name), ": its shard is not a string"));
    }
    const std::string file = shard.get<std::string>();
    // A path could lead out of the folder.
    if (file.empty() || file[0] == '.' ||
        file.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": ", Shown(name), ": the shard \"",
                       Shown(file), "\" is not a plain file name"));
    }
    shard_of[name] = file;
    shards.insert(file);
  }

  auto files = std::make_unique<MappedSafetensors>();
  std::map<std::string, std::string> found;  // shard by tensor
  for (const std::string& shard : shards) {
    RETURN_IF_ERROR(files->Add(JoinPath(folder, shard)));
    for (const auto& [name, tensor] : files->tensors()) {
      found.emplace(name, shard);
    }
  }
  for (const auto& [name, shard] : shard_of) {
    const auto it = found.find(name);
    if (it == found.end() || it->second != shard) {
      return absl::InvalidArgumentError(
          absl::StrCat(JoinPath(folder, shard), ": no tensor ", Shown(name),
                       ", which ", index_path, " says is in it"));
    }
  }
  for (const auto& [name, shard] : found) {
    if (!shard_of.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(JoinPath(folder, shard), ": ", Shown(name),
                       " is not in ", index_path));
    }
  }
  return std::unique_ptr<Safetensors>(std::move(files));
}

absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor) {
  const int64_t n = tensor.elements();
  std::vector<float> values(n);
  const char* bytes = tensor.bytes.data();  // of any alignment
  switch (tensor.type) {
    case TensorType::kF32:
      if (n > 0) memcpy(values.data(), bytes, n * sizeof(float));
      return values;
    case TensorType::kF16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, sizeof(half));
        values[i] = HalfToFloat(half);
      }
      return values;
    case TensorType::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, sizeof(half));
        const uint32_t bits = uint32_t{half} << 16;
        memcpy(&values[i], &bits, sizeof(bits));
      }
      return values;
    case TensorType::kI64:
    case TensorType::kOther:
      break;
  }
  return absl::InvalidArgumentError("its dtype is none of F32, F16, BF16");
}

absl::Status WriteSafetensors(const std::string& path,
                              const std::vector<NamedTensor>& tensors) {
  HeaderWriter header(path);
  for (const NamedTensor& tensor : tensors) {
    const char* dtype = tensor.type == TensorType::kF32    ? "F32"
                        : tensor.type == TensorType::kF16  ? "F16"
                        : tensor.type == TensorType::kBF16 ? "BF16"
                                                           : nullptr;
    if (dtype == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": ", tensor.name, ": only F32, F16 and BF16 are written"));
    }
    RETURN_IF_ERROR(header.Add(tensor.name, *FindDtype(dtype), tensor.shape,
                               tensor.values.size()));
  }
  FileWriter writer(path);
  RETURN_IF_ERROR(header.Write(&writer));
  for (const NamedTensor& tensor : tensors) {
    RETURN_IF_ERROR(writer.Append(Encode(tensor)));
  }
  return writer.Close();
}

absl::Status WriteRawSafetensors(const std::string& path,
                                 const std::vector<RawTensor>& tensors) {
  HeaderWriter header(path);
  for (const RawTensor& tensor : tensors) {
    const Dtype* const dtype = FindDtype(tensor.dtype);
    if (dtype == nullptr || tensor.bytes.size() % dtype->bytes != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", tensor.name, ": ", tensor.bytes.size(),
                       " bytes are no tensor of ", tensor.dtype));
    }
    RETURN_IF_ERROR(header.Add(tensor.name, *dtype, tensor.shape,
                               tensor.bytes.size() / dtype->bytes));
  }
  FileWriter writer(path);
  RETURN_IF_ERROR(header.Write(&writer));
  for (const RawTensor& tensor : tensors) {
    RETURN_IF_ERROR(writer.Append(tensor.bytes));
  }
  return writer.Close();
}

}  // namespace vitrine
