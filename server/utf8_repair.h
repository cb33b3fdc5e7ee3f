#pragma once

// Finds strings with invalid UTF-8 in a serialized message and makes them
// parseable.
//
// A proto3 parser refuses the whole message for one bad string, but one bad
// item must not fail a call: the repaired message parses, and the list says
// which fields are not what the caller sent.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"

namespace vitrine {

struct BadString {
  std::string path;     // "items[3].title", "context.query", "texts[2]"
  std::string element;  // the part of the path before the first dot: "items"
  int index = -1;       // that part's index; -1 where it is not repeated
  size_t offset = 0;    // of the first bad byte within the string

  // "items[3].title: invalid UTF-8 at byte 17"
  std::string message() const;
};

// Overwrites, in strings of `*serialized` that `type` declares, each byte that
// is not part of valid UTF-8 by '?'; lengths stay. Of each element of a
// repeated field at the top the first bad string is listed. kInvalidArgument
// when the bytes are not a message in wire format, or hold more than
// 65,536 bad elements. Unknown fields are passed over.
absl::StatusOr<std::vector<BadString>> RepairUtf8(
    const google::protobuf::Descriptor& type, std::string* serialized);

}  // namespace vitrine
