#pragma once

#include "model/ngrams.h"
#include "model/tokenizer.h"

namespace vitrine {

// Of each piece of two ideographs or more, and of nothing else, those: by the
// id of the piece that is one alone, where there is such a piece, else by
// vocab_size
// + code point. Words are written without spaces there, and which of them share
// a piece is chance.
TokenSplits IdeographSplits(const Tokenizer& tokenizer);

}  // namespace vitrine
