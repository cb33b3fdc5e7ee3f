#include "model/word_matcher.h"

#include <algorithm>

#include "model/unicode.h"

namespace vitrine {
namespace {

constexpr std::string_view kContinuation = "##";     // WordPiece
constexpr std::string_view kSpace = "\xE2\x96\x81";  // SentencePiece's ▁

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() &&
         text.substr(text.size() - end.size()) == end;
}

// FNV-1a, never 0.
uint32_t HashOf(std::string_view text) {
  uint32_t hash = 2166136261u;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  }
  return hash == 0 ? 1 : hash;
}

std::string LowerAscii(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

bool IsText(std::string_view text) {
  if (FindInvalidUtf8(text)) return false;  // a piece of a byte
  for (size_t offset = 0; offset < text.size();) {
    if (!IsPunctuation(NextCodePoint(text, &offset))) return true;
  }
  return false;
}

}  // namespace

std::string StemOf(std::string_view word) {
  if (word.size() > 3) {
    if (EndsWith(word, "ies") && !EndsWith(word, "eies") &&
        !EndsWith(word, "aies")) {
      return std::string(word.substr(0, word.size() - 3)) + "y";
    }
    if (EndsWith(word, "es") && !EndsWith(word, "aes") &&
        !EndsWith(word, "ees") && !EndsWith(word, "oes")) {
      return std::string(word.substr(0, word.size() - 1));
    }
    if (EndsWith(word, "s") && !EndsWith(word, "us") && !EndsWith(word, "ss")) {
      return std::string(word.substr(0, word.size() - 1));
    }
  }
  return std::string(word);
}

WordMatcher::WordMatcher(const Tokenizer& tokenizer) {
  const SpecialTokens& special = tokenizer.special();
  const bool wordpiece = tokenizer.kind() == "wordpiece";
  pieces_.resize(tokenizer.vocab_size());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (id == special.cls || id == special.sep || id == special.pad ||
        id == special.unk || id == special.mask) {
      continue;
    }
    Piece& piece = pieces_[id];
    const std::string whole = tokenizer.Piece(id);
    std::string_view text = whole;
    const std::string_view mark = wordpiece ? kContinuation : kSpace;
    const bool marked =
        text.size() >= mark.size() && text.substr(0, mark.size()) == mark;
    // A space by itself begins a word and adds nothing to it; "##" alone is
    // two signs.
    if (marked && (!wordpiece || text.size() > mark.size())) {
      text.remove_prefix(mark.size());
    }
    piece.starts_word = marked != wordpiece;
    if (!IsText(text)) {
      piece.starts_word = true;  // punctuation parts words
      continue;
    }
    piece.text = LowerAscii(text);
    piece.word = HashOf(StemOf(piece.text));
  }
}

std::vector<uint32_t> WordMatcher::WordsOf(
    const std::vector<int32_t>& ids) const {
  std::vector<uint32_t> words(ids.size());
  for (size_t begin = 0; begin < ids.size();) {
    const Piece& first = pieces_[ids[begin]];
    size_t end = begin + 1;
    while (end < ids.size() && !pieces_[ids[end]].starts_word) ++end;
    uint32_t word = first.word;
    if (end - begin > 1) {
      std::string text = first.text;
      for (size_t i = begin + 1; i < end; ++i) text += pieces_[ids[i]].text;
      word = HashOf(StemOf(text));
    }
    std::fill(words.begin() + begin, words.begin() + end, word);
    begin = end;
  }
  return words;
}

}  // namespace vitrine
