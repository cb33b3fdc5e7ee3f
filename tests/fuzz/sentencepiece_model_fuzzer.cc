// Any bytes as a SentencePiece model: what a torn download may hold.

#include "model/sentencepiece_tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using vitrine::SentencePieceLayout;
  const std::string_view model(reinterpret_cast<const char*>(data), size);
  for (const auto layout :
       {SentencePieceLayout::kOwnIds, SentencePieceLayout::kOffsetByOne}) {
    std::string error;
    const auto tokenizer =
        vitrine::NewSentencePieceTokenizer(model, {.layout = layout}, &error);
    FUZZ_CHECK((tokenizer == nullptr) == !error.empty());
    if (tokenizer == nullptr) continue;
    for (const int32_t id :
         tokenizer->Tokenize("Two-seater sofa, größe 沙发 \x01", 32).ids) {
      FUZZ_CHECK(id >= 0 && id < tokenizer->vocab_size());
    }
  }
  return 0;
}
