// Any bytes as text, through both SentencePiece layouts.

#include <memory>

#include "base/file.h"
#include "model/sentencepiece_tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace vitrine {
namespace {

std::unique_ptr<Tokenizer> Make(const std::string& name,
                                const SentencePieceOptions& options) {
  const auto model = ReadFile(VITRINE_TEST_DATA "/tokenizer/" + name);
  FUZZ_CHECK(model.ok());
  std::string error;
  auto tokenizer = NewSentencePieceTokenizer(*model, options, &error);
  FUZZ_CHECK(tokenizer != nullptr);
  return tokenizer;
}

}  // namespace
}  // namespace vitrine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using vitrine::SentencePieceLayout;
  static const std::unique_ptr<vitrine::Tokenizer> tokenizers[] = {
      vitrine::Make("xlmr.model",
                    {.layout = SentencePieceLayout::kOffsetByOne}),
      vitrine::Make("albert.model", {}),
      vitrine::Make("albert.model",
                    {.lower_case = true, .strip_accents = true}),
  };
  vitrine::FuzzInput input(data, size);
  const int which = input.Byte() % 3;
  const size_t max_tokens = input.Byte();
  vitrine::CheckTokenize(*tokenizers[which], input.rest(), max_tokens);
  return 0;
}
