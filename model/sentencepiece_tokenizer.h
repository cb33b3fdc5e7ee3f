#pragma once

// SentencePiece through its library. Free of Abseil, as tokenizer.h explains.

#include <memory>
#include <string>
#include <string_view>

#include "model/tokenizer.h"

namespace vitrine {

// How a SentencePiece model's piece numbers become the encoder's ids.
enum class SentencePieceLayout {
  kOwnIds,       // ALBERT: the model's own numbers; [CLS] a [SEP] b [SEP]
  kOffsetByOne,  // XLM-R: <s>=0 <pad>=1 </s>=2 <unk>=3, then piece + 1, <mask>
                 // last; <s> a </s></s> b </s>
};

struct SentencePieceOptions {
  SentencePieceLayout layout = SentencePieceLayout::kOwnIds;
  // What ALBERT's tokenizer does before the library sees the text.
  bool lower_case = false;
  bool strip_accents = false;
};

// `model` is the serialized SentencePiece model. Null, and `error` says why,
// when it is not one or lacks the layout's special pieces.
std::unique_ptr<Tokenizer> NewSentencePieceTokenizer(
    std::string_view model, const SentencePieceOptions& options,
    std::string* error);

}  // namespace vitrine
