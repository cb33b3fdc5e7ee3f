// Any bytes as vocab.txt, then some of them as text.

#include "model/load_tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vitrine::FuzzInput input(data, size);
  const size_t max_tokens = input.Byte();
  const int max_chars = input.Byte();
  const std::string_view vocab = input.rest();
  const auto tokenizer = vitrine::NewWordPieceTokenizer(
      {vocab.data(), vocab.size()}, {.lower_case = false,
                                     .strip_accents = false,
                                     .max_word_chars = max_chars});
  if (!tokenizer.ok()) {
    FUZZ_CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  FUZZ_CHECK((*tokenizer)->special().unk < (*tokenizer)->vocab_size());
  vitrine::CheckTokenize(**tokenizer, vocab, max_tokens);
  return 0;
}
