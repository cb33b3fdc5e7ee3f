#pragma once

// Which ids are of the same word, whatever its case and number. Immutable; any
// thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace vitrine {

class WordMatcher {
 public:
  explicit WordMatcher(const Tokenizer& tokenizer);

  // For each id a hash of its word's stem; 0 for punctuation and for pieces
  // that are no text (special tokens, unknown).
  std::vector<uint32_t> WordsOf(const std::vector<int32_t>& ids) const;

 private:
  struct Piece {
    std::string text;         // lower-case, without the marks of its kind
    uint32_t word = 0;        // where it is a word by itself
    bool starts_word = true;  // else it goes on with the piece before it
  };
  std::vector<Piece> pieces_;  // by id
};

// `word` without an English plural's ending: shoes, shoe; berries, berry;
// glass, glass. Harman's S-stemmer.
std::string StemOf(std::string_view word);

}  // namespace vitrine
