#include "trainer/masking.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "model/unicode.h"
#include "trainer/batches.h"

namespace vitrine {
namespace {

constexpr std::string_view kContinuation = "##";     // WordPiece
constexpr std::string_view kSpace = "\xE2\x96\x81";  // SentencePiece's ▁

bool StartsWith(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

// "<0xE4>": one byte of a character that no piece covers.
bool IsBytePiece(std::string_view text) {
  return text.size() == 6 && StartsWith(text, "<0x") && text[5] == '>';
}

// Scripts that are written without spaces: pieces stand for words there.
bool IsUnspaced(char32_t c) {
  return IsCjk(c) || (c >= 0x3040 && c <= 0x30FF) ||  // kana
         (c >= 0x0E00 && c <= 0x0EFF);                // Thai, Lao
}

bool IsOfWord(char32_t c) { return !IsPunctuation(c) && !IsUnspaced(c); }

double Uniform(std::mt19937_64* random) {
  return static_cast<double>((*random)() >> 11) * 0x1p-53;
}

}  // namespace

WordMasker::WordMasker(const Tokenizer& tokenizer,
                       const MaskingOptions& options)
    : options_(options), special_(tokenizer.special()) {
  const int32_t size = tokenizer.vocab_size();
  const bool wordpiece = tokenizer.kind() == "wordpiece";
  continues_.resize(size);
  joins_.resize(size);
  for (int32_t id = 0; id < size; ++id) {
    if (id == special_.cls || id == special_.sep || id == special_.pad ||
        id == special_.unk || id == special_.mask) {
      continue;
    }
    const std::string text = tokenizer.Piece(id);
    if (text.empty()) continue;
    ordinary_.push_back(id);
    if (wordpiece) {
      continues_[id] =
          StartsWith(text, kContinuation) && text.size() > kContinuation.size();
      joins_[id] = true;
    } else if (IsBytePiece(text)) {
      continues_[id] = joins_[id] = true;
    } else {
      size_t offset = 0;
      char32_t c = NextCodePoint(text, &offset);
      continues_[id] = !StartsWith(text, kSpace) && IsOfWord(c);
      while (offset < text.size()) c = NextCodePoint(text, &offset);
      joins_[id] = IsOfWord(c);  // a lone space too: what follows is its word
    }
  }
}

std::vector<int32_t> WordMasker::WordStarts(
    absl::Span<const int32_t> ids) const {
  std::vector<int32_t> starts;
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto at = static_cast<int32_t>(i);
    if (i == 0 || !continues_[ids[i]] || !joins_[ids[i - 1]] ||
        at - starts.back() >= kMaxWordTokens) {
      starts.push_back(at);
    }
  }
  return starts;
}

MaskedText WordMasker::Mask(absl::Span<const int32_t> ids,
                            std::mt19937_64* random) const {
  MaskedText out;
  out.ids.reserve(ids.size() + 2);
  out.ids.push_back(special_.cls);
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.ids.push_back(special_.sep);

  const std::vector<int32_t> starts = WordStarts(ids);
  const auto end_of = [&](int32_t word) {
    return word + 1 < starts.size() ? starts[word + 1]
                                    : static_cast<int32_t>(ids.size());
  };
  std::vector<int32_t> words(starts.size());
  std::iota(words.begin(), words.end(), 0);
  Shuffle(&words, random);
  // Chance rounds, so that short texts have their share too.
  const auto wanted = static_cast<int64_t>(
      std::floor(options_.share * ids.size() + Uniform(random)));
  int64_t hidden = 0;
  for (const int32_t word : words) {
    if (hidden > 0 && hidden >= wanted) break;
    const int32_t begin = starts[word], end = end_of(word);
    // One word above the share is no harm, a long one is.
    if (hidden > 0 && hidden + (end - begin) > wanted + 1) continue;
    const double draw = Uniform(random);
    for (int32_t i = begin; i < end; ++i) {
      out.places.push_back(i + 1);
      int32_t& id = out.ids[i + 1];
      if (draw < options_.substitute) {
        id = ordinary_[(*random)() % ordinary_.size()];
      } else if (draw >= options_.substitute + options_.keep) {
        id = special_.mask;
      }
    }
    hidden += end - begin;
  }
  std::sort(out.places.begin(), out.places.end());
  for (const int32_t place : out.places) out.targets.push_back(ids[place - 1]);
  return out;
}

}  // namespace vitrine
