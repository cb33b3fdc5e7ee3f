// Any bytes as an encoder's config.json.

#include "model/model_config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config =
      vitrine::ParseEncoderConfig({reinterpret_cast<const char*>(data), size});
  if (!config.ok()) {
    FUZZ_CHECK(!config.status().message().empty());
    return 0;
  }
  // What is taken is sound, and survives being written.
  FUZZ_CHECK(config->vocab_size > 0 && config->hidden_size > 0);
  FUZZ_CHECK(config->num_heads > 0);
  FUZZ_CHECK(config->hidden_size % config->num_heads == 0);
  FUZZ_CHECK(config->max_tokens() > 0);
  const auto again =
      vitrine::ParseEncoderConfig(vitrine::EncoderConfigToJson(*config));
  FUZZ_CHECK(again.ok());
  FUZZ_CHECK(again->hidden_size == config->hidden_size);
  FUZZ_CHECK(again->labels == config->labels);
  FUZZ_CHECK(again->max_tokens() == config->max_tokens());
  return 0;
}
