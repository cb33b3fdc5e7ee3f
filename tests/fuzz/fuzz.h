#pragma once

// What the fuzz targets share.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

// A broken promise is a crash, which is what a fuzzer reports.
#define FUZZ_CHECK(condition)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

namespace vitrine {

// Takes small numbers from the front of an input.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size)
      : rest_(reinterpret_cast<const char*>(data), size) {}

  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return byte;
  }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

// What every tokenizer promises of any text: ids in range, no more than asked
// for, and a smaller budget gives a prefix and says that it cut.
inline void CheckTokenize(const Tokenizer& tokenizer, std::string_view text,
                          size_t max_tokens) {
  const Tokens some = tokenizer.Tokenize(text, max_tokens);
  FUZZ_CHECK(some.ids.size() <= max_tokens);
  for (const int32_t id : some.ids) {
    FUZZ_CHECK(id >= 0 && id < tokenizer.vocab_size());
  }
  const Tokens all = tokenizer.Tokenize(text, size_t{1} << 20);
  FUZZ_CHECK(!all.truncated);  // inputs are shorter than that
  FUZZ_CHECK(some.ids.size() == std::min(max_tokens, all.ids.size()));
  FUZZ_CHECK(some.truncated == (all.ids.size() > max_tokens));
  for (size_t i = 0; i < some.ids.size(); ++i) {
    FUZZ_CHECK(some.ids[i] == all.ids[i]);
  }
}

}  // namespace vitrine
