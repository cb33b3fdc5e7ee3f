#include "server/utf8_repair.h"

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "google/protobuf/descriptor.pb.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// As deep as protobuf's own parser goes.
constexpr int kMaxDepth = 100;

// Elements that are remembered: a message of nothing but bad strings must not
// take many times its own size.
constexpr size_t kMaxBad = 65536;

enum WireType : uint32_t {
  kVarint = 0,
  kFixed64 = 1,
  kLengthDelimited = 2,
  kStartGroup = 3,
  kEndGroup = 4,
  kFixed32 = 5,
};

class Walker {
 public:
  explicit Walker(std::string* bytes) : bytes_(*bytes) {}

  // Walks the message in [begin, end). `type` is null inside unknown groups.
  absl::Status Walk(const Descriptor* type, size_t begin, size_t end,
                    const std::string& prefix, int depth) {
    if (depth > kMaxDepth) return Malformed("nested too deeply");
    std::map<int, int> counts;  // field number -> elements seen
    size_t at = begin;
    while (at < end) {
      ASSIGN_OR_RETURN(const uint64_t tag, Varint(&at, end));
      const uint64_t number = tag >> 3;
      if (number == 0 || number > FieldDescriptor::kMaxNumber) {
        return Malformed("bad field number");
      }
      const FieldDescriptor* field =
          type == nullptr ? nullptr
                          : type->FindFieldByNumber(static_cast<int>(number));
      switch (tag & 7) {
        case kVarint:
          RETURN_IF_ERROR(Varint(&at, end).status());
          break;
        case kFixed64:
          RETURN_IF_ERROR(Skip(8, &at, end));
          break;
        case kFixed32:
          RETURN_IF_ERROR(Skip(4, &at, end));
          break;
        case kLengthDelimited: {
          ASSIGN_OR_RETURN(const uint64_t size, Varint(&at, end));
          const size_t from = at;
          RETURN_IF_ERROR(Skip(size, &at, end));
          if (field != nullptr) {
            RETURN_IF_ERROR(Delimited(*field, from, at, prefix,
                                      counts[field->number()]++, depth));
          }
          break;
        }
        case kStartGroup:
          RETURN_IF_ERROR(SkipGroup(number, &at, end, depth + 1));
          break;
        default:
          return Malformed("bad wire type");
      }
    }
    return absl::OkStatus();
  }

  std::vector<BadString> TakeBad() { return std::move(bad_); }

 private:
  static absl::Status Malformed(absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("malformed message: ", why));
  }

  absl::StatusOr<uint64_t> Varint(size_t* at, size_t end) {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (*at >= end) return Malformed("cut off");
      const uint8_t byte = static_cast<uint8_t>(bytes_[(*at)++]);
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    return Malformed("a number of more than 10 bytes");
  }

  absl::Status Skip(uint64_t size, size_t* at, size_t end) {
    if (size > end - *at) return Malformed("cut off");
    *at += size;
    return absl::OkStatus();
  }

  absl::Status SkipGroup(uint64_t number, size_t* at, size_t end, int depth) {
    if (depth > kMaxDepth) return Malformed("nested too deeply");
    while (true) {
      ASSIGN_OR_RETURN(const uint64_t tag, Varint(at, end));
      if (tag >> 3 == 0 || tag >> 3 > FieldDescriptor::kMaxNumber) {
        return Malformed("bad field number");
      }
      switch (tag & 7) {
        case kVarint:
          RETURN_IF_ERROR(Varint(at, end).status());
          break;
        case kFixed64:
          RETURN_IF_ERROR(Skip(8, at, end));
          break;
        case kFixed32:
          RETURN_IF_ERROR(Skip(4, at, end));
          break;
        case kLengthDelimited: {
          ASSIGN_OR_RETURN(const uint64_t size, Varint(at, end));
          RETURN_IF_ERROR(Skip(size, at, end));
          break;
        }
        case kStartGroup:
          RETURN_IF_ERROR(SkipGroup(tag >> 3, at, end, depth + 1));
          break;
        case kEndGroup:
          if (tag >> 3 != number) return Malformed("bad end of a group");
          return absl::OkStatus();
        default:
          return Malformed("bad wire type");
      }
    }
  }

  absl::Status Delimited(const FieldDescriptor& field, size_t from, size_t to,
                         const std::string& prefix, int index, int depth) {
    if (field.type() == FieldDescriptor::TYPE_STRING) {
      const std::optional<size_t> offset = FindInvalidUtf8(View(from, to));
      if (!offset.has_value()) return absl::OkStatus();
      Repair(from + *offset, to);
      AddBad(Path(field, prefix, index), *offset);
      if (bad_.size() > kMaxBad) {
        return absl::InvalidArgumentError(absl::StrCat(
            "more than ", kMaxBad, " parts with invalid UTF-8, the first in ",
            bad_.front().path));
      }
      return absl::OkStatus();
    }
    if (field.type() != FieldDescriptor::TYPE_MESSAGE) return absl::OkStatus();
    // An entry of a map goes by the map's name: its key may be the bad part.
    const bool entry = field.message_type()->options().map_entry();
    return Walk(field.message_type(), from, to,
                entry ? absl::StrCat(prefix, field.name(), " ")
                      : absl::StrCat(Path(field, prefix, index), "."),
                depth + 1);
  }

  static std::string Path(const FieldDescriptor& field,
                          const std::string& prefix, int index) {
    std::string path = absl::StrCat(prefix, field.name());
    if (field.is_repeated()) absl::StrAppend(&path, "[", index, "]");
    return path;
  }

  std::string_view View(size_t from, size_t to) const {
    return std::string_view(bytes_).substr(from, to - from);
  }

  // Overwrites bad bytes from the first one on.
  void Repair(size_t first, size_t to) {
    size_t at = first;
    while (true) {
      bytes_[at++] = '?';
      const std::optional<size_t> next = FindInvalidUtf8(View(at, to));
      if (!next.has_value()) return;
      at += *next;
    }
  }

  void AddBad(std::string path, size_t offset) {
    BadString bad;
    const std::string element = path.substr(0, path.find('.'));
    const size_t bracket = element.find('[');
    bad.element = element.substr(0, bracket);
    if (bracket != std::string::npos) {
      bad.index = std::stoi(element.substr(bracket + 1));
    }
    // One is enough to refuse an element.
    if (bad.index >= 0 && !bad_.empty() && bad_.back().index == bad.index &&
        bad_.back().element == bad.element) {
      return;
    }
    bad.path = std::move(path);
    bad.offset = offset;
    bad_.push_back(std::move(bad));
  }

  std::string& bytes_;
  std::vector<BadString> bad_;
};

}  // namespace

std::string BadString::message() const {
  return absl::StrCat(path, ": invalid UTF-8 at byte ", offset);
}

absl::StatusOr<std::vector<BadString>> RepairUtf8(const Descriptor& type,
                                                  std::string* serialized) {
  Walker walker(serialized);
  RETURN_IF_ERROR(walker.Walk(&type, 0, serialized->size(), "", 0));
  return walker.TakeBad();
}

}  // namespace vitrine
