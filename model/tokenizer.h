#pragma once

// Text to token ids. A Tokenizer is immutable and any thread may use it.
//
// This header stays free of Abseil: sentencepiece's header puts a string_view
// of its own into namespace absl, and the file that includes it includes this
// one too.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vitrine {

// The ids around and between texts, as the encoder was trained with them.
struct SpecialTokens {
  int32_t cls = 0;   // [CLS] or <s>
  int32_t sep = 0;   // [SEP] or </s>
  int32_t pad = 0;   // [PAD] or <pad>
  int32_t unk = 0;   // [UNK] or <unk>
  int32_t mask = 0;  // [MASK] or <mask>
  // Pairs: false: cls a sep b sep (BERT); true: cls a sep sep b sep (RoBERTa).
  bool double_separator = false;
};

// The ids of one text without special tokens.
struct Tokens {
  std::vector<int32_t> ids;
  bool truncated = false;
  // The word that each id is of, by a hash of its stem; empty unless the
  // featurizer marks matching words (see featurizer.h).
  std::vector<uint32_t> words;
};

// One sequence, ready for an encoder. The two vectors have one length.
struct Encoding {
  std::vector<int32_t> ids;
  std::vector<int32_t> segment_ids;
  bool truncated = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The first `max_tokens` ids of `text`, without special tokens. `text` is
  // valid UTF-8 (callers check: see unicode.h) but otherwise anything: null
  // bytes, unassigned code points and any length do no harm, and the time
  // taken is bounded by max_tokens, not by the text's length.
  virtual Tokens Tokenize(std::string_view text, size_t max_tokens) const = 0;

  virtual const SpecialTokens& special() const = 0;

  // Ids are in [0, vocab_size).
  virtual int32_t vocab_size() const = 0;

  // "wordpiece" or "sentencepiece".
  virtual std::string_view kind() const = 0;

  // The same for two tokenizers only where they give the same ids for every
  // text: a digest of what they were made of.
  virtual std::string_view digest() const = 0;

  // The piece of an id, for people: "##ing", "▁sofa". Empty when out of range.
  virtual std::string Piece(int32_t id) const = 0;
};

// cls text sep, cut to `max_tokens` in all; segment 0.
Encoding EncodeSingle(const SpecialTokens& special, const Tokens& text,
                      size_t max_tokens);

// cls a sep [sep] b sep, cut to `max_tokens` in all by cutting b only; a is
// cut only where it alone does not fit. Segments: 0 up to and including the
// separator(s) before b, then 1; all 0 where `segments` is 1 (a model with one
// row of token types).
Encoding EncodePair(const SpecialTokens& special, const Tokens& a,
                    const Tokens& b, size_t max_tokens, int segments);

}  // namespace vitrine
