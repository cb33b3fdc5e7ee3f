// Any bytes as text, under every mode of WordPiece.

#include <memory>

#include "base/file.h"
#include "model/load_tokenizer.h"
#include "model/unicode.h"
#include "tests/fuzz/fuzz.h"

namespace vitrine {
namespace {

// By the bits of the mode: lower_case, strip_accents, split_cjk.
std::vector<std::unique_ptr<Tokenizer>> MakeAll() {
  const auto vocab = ReadFile(VITRINE_TEST_DATA "/tokenizer/vocab.txt");
  FUZZ_CHECK(vocab.ok());
  std::vector<std::unique_ptr<Tokenizer>> all;
  for (int mode = 0; mode < 8; ++mode) {
    all.push_back(
        *NewWordPieceTokenizer(*vocab, {.lower_case = (mode & 1) != 0,
                                        .strip_accents = (mode & 2) != 0,
                                        .split_cjk = (mode & 4) != 0}));
  }
  return all;
}

}  // namespace
}  // namespace vitrine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizers = vitrine::MakeAll();
  vitrine::FuzzInput input(data, size);
  const int mode = input.Byte() % 8;
  const size_t max_tokens = input.Byte();
  const std::string_view text = input.rest();
  vitrine::CheckTokenize(*tokenizers[mode], text, max_tokens);

  // The two readers of UTF-8 agree on what is valid.
  bool replaced = false;
  for (size_t offset = 0; offset < text.size();) {
    const size_t before = offset;
    const char32_t c = vitrine::NextCodePoint(text, &offset);
    replaced = replaced || (c == 0xFFFD && offset == before + 1);
  }
  FUZZ_CHECK(replaced == vitrine::FindInvalidUtf8(text).has_value());
  const std::string_view prefix = vitrine::Utf8Prefix(text, max_tokens);
  FUZZ_CHECK(prefix.size() <= max_tokens);
  if (!replaced) FUZZ_CHECK(!vitrine::FindInvalidUtf8(prefix));
  return 0;
}
