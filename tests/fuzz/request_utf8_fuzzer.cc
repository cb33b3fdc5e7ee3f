// Any bytes as a request: after the repair it parses, or was no message.

#include "google/protobuf/stubs/logging.h"
#include "model/unicode.h"
#include "server/utf8_repair.h"
#include "tests/fuzz/fuzz.h"
#include "vitrine/v1/inference.pb.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  // It would print a line for nearly every input.
  google::protobuf::SetLogHandler(nullptr);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  const std::string before = bytes;
  vitrine::v1::RankRequest request;
  const bool parsed = request.ParseFromString(bytes);
  const auto bad =
      vitrine::RepairUtf8(*vitrine::v1::RankRequest::descriptor(), &bytes);
  if (parsed) {
    // It may refuse odd forms that the parser takes, such as tags of more
    // than 32 bits, but nothing that a client would write.
    std::string canonical = request.SerializeAsString();
    const auto none = vitrine::RepairUtf8(
        *vitrine::v1::RankRequest::descriptor(), &canonical);
    FUZZ_CHECK(none.ok() && none->empty());
  }
  if (!bad.ok()) return 0;
  FUZZ_CHECK(bytes.size() == before.size());
  FUZZ_CHECK(bad->empty() == (bytes == before));
  if (parsed) FUZZ_CHECK(bad->empty());
  for (const auto& one : *bad) {
    FUZZ_CHECK(!vitrine::FindInvalidUtf8(one.path));
  }
  if (!bad->empty()) {
    vitrine::v1::RankRequest repaired;
    FUZZ_CHECK(repaired.ParseFromString(bytes));
  }
  return 0;
}
