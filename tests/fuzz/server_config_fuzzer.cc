// Any bytes as the server's configuration text.

#include "base/textproto.h"
#include "google/protobuf/stubs/logging.h"
#include "server/config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  // It would print a line for nearly every input.
  google::protobuf::SetLogHandler(nullptr);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  vitrine::internal::ServerConfig config;
  const absl::Status parsed =
      vitrine::ParseTextProto(text, "fuzz.textproto", &config);
  if (!parsed.ok()) {
    FUZZ_CHECK(!parsed.message().empty());
    return 0;
  }
  if (!vitrine::ResolveServerConfig(&config).ok()) return 0;
  // What is taken survives being printed and read again, defaults and all.
  vitrine::internal::ServerConfig again;
  FUZZ_CHECK(
      vitrine::ParseTextProto(vitrine::PrintTextProto(config), "again", &again)
          .ok());
  FUZZ_CHECK(vitrine::ResolveServerConfig(&again).ok());
  FUZZ_CHECK(again.SerializeAsString() == config.SerializeAsString());
  return 0;
}
