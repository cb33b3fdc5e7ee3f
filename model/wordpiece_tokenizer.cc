// BERT's tokenizer in one pass over the bytes: clean, split, fold and match
// without a string per word. What it computes is BasicTokenizer followed by
// WordpieceTokenizer of BERT's reference code; where the implementations
// disagree it does as the Rust `tokenizers` library (see unicode.h), with one
// choice of its own: text is never a special token, so "[SEP]" in a title is
// three words, as in BERT's first code, and cannot forge a separator.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "model/load_tokenizer.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

// Time is bounded by looking at no more than this much of a text. Real text
// has about 4 bytes a token; only runs of spaces, control characters, marks
// or words of more than max_word_chars come near it.
constexpr size_t kBytesPerToken = 1024;
constexpr size_t kSlackBytes = 64 << 10;

constexpr int kMaxWordChars = 1000;
constexpr size_t kMaxVocabBytes = 16000000;  // fits a trie key of 24 bits

// What to do with an ASCII byte.
enum class AsciiClass : uint8_t { kWord, kSpace, kPunctuation, kDropped };

constexpr std::array<AsciiClass, 128> kAsciiClasses = [] {
  std::array<AsciiClass, 128> classes{};
  for (int c = 0; c < 128; ++c) {
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      classes[c] = AsciiClass::kSpace;
    } else if (c < 32 || c == 127) {
      classes[c] = AsciiClass::kDropped;
    } else if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
               (c >= 'A' && c <= 'Z')) {
      classes[c] = AsciiClass::kWord;
    } else {
      classes[c] = AsciiClass::kPunctuation;
    }
  }
  return classes;
}();

// The pieces as a trie of bytes. Its edges are in one open-addressing table,
// so building is one insertion an edge whatever the pieces look like.
class PieceTrie {
 public:
  static constexpr uint32_t kRoot = 0;

  struct Edge {
    uint32_t key = kNoKey;  // parent << 8 | byte
    uint32_t child = 0;
    int32_t piece = -1;  // the piece that ends at the child
  };

  explicit PieceTrie(size_t total_bytes) {
    int bits = 4;
    while ((size_t{1} << bits) < 2 * total_bytes) ++bits;
    edges_.resize(size_t{1} << bits);
    shift_ = 32 - bits;
  }

  // False when the piece is there already.
  bool Insert(absl::string_view piece, int32_t id) {
    uint32_t node = kRoot;
    Edge* edge = nullptr;
    for (const char byte : piece) {
      edge = Slot(node, byte);
      if (edge->key == kNoKey) {
        edge->key = Key(node, byte);
        edge->child = ++nodes_;
      }
      node = edge->child;
    }
    if (edge == nullptr) return true;
    if (edge->piece >= 0) return false;
    edge->piece = id;
    return true;
  }

  // Null when no piece goes that way.
  const Edge* Find(uint32_t node, char byte) const {
    const Edge* edge = const_cast<PieceTrie*>(this)->Slot(node, byte);
    return edge->key == kNoKey ? nullptr : edge;
  }

 private:
  static constexpr uint32_t kNoKey = ~uint32_t{0};

  static uint32_t Key(uint32_t node, char byte) {
    return node << 8 | static_cast<unsigned char>(byte);
  }

  // The edge, or the free slot where it belongs. At most half are taken.
  Edge* Slot(uint32_t node, char byte) {
    const uint32_t key = Key(node, byte);
    size_t i = key * 0x9E3779B1u >> shift_;
    while (edges_[i].key != key && edges_[i].key != kNoKey) {
      i = (i + 1) & (edges_.size() - 1);
    }
    return &edges_[i];
  }

  std::vector<Edge> edges_;  // a power of two
  int shift_;
  uint32_t nodes_ = 0;
};

class WordPieceTokenizer : public Tokenizer {
 public:
  WordPieceTokenizer(std::vector<std::string> pieces, PieceTrie trie,
                     const SpecialTokens& special,
                     const WordPieceOptions& options, std::string digest)
      : pieces_(std::move(pieces)),
        trie_(std::move(trie)),
        special_(special),
        options_(options),
        digest_(std::move(digest)) {
    const PieceTrie::Edge* first = trie_.Find(PieceTrie::kRoot, '#');
    const PieceTrie::Edge* second =
        first == nullptr ? nullptr : trie_.Find(first->child, '#');
    if (second != nullptr) {
      continuation_ = second->child;
      has_continuation_ = true;
    }
    for (int c = 0; c < 128; ++c) {
      fold_[c] = static_cast<char>(
          options_.lower_case && c >= 'A' && c <= 'Z' ? c + 32 : c);
    }
  }

  Tokens Tokenize(std::string_view text, size_t max_tokens) const override;

  const SpecialTokens& special() const override { return special_; }
  int32_t vocab_size() const override {
    return static_cast<int32_t>(pieces_.size());
  }
  std::string_view kind() const override { return "wordpiece"; }
  std::string_view digest() const override { return digest_; }
  std::string Piece(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return "";
    return pieces_[id];
  }

 private:
  friend class Run;

  const std::vector<std::string> pieces_;  // by id
  const PieceTrie trie_;
  const SpecialTokens special_;
  const WordPieceOptions options_;
  const std::string digest_;
  uint32_t continuation_ = 0;  // the trie's node of "##"
  bool has_continuation_ = false;
  std::array<char, 128> fold_;
};

// One call of Tokenize: the word being gathered and the ids so far.
class Run {
 public:
  Run(const WordPieceTokenizer& tokenizer, size_t max_tokens, Tokens* out)
      : t_(tokenizer),
        max_chars_(tokenizer.options_.max_word_chars),
        max_tokens_(max_tokens),
        out_(out) {}

  // Each returns false once the ids are full and one more was to come.

  // Consumes text[*offset] and what follows it up to the end of the ASCII run.
  bool Ascii(std::string_view text, size_t* offset) {
    size_t i = *offset;
    for (; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      if (byte >= 0x80) break;
      switch (kAsciiClasses[byte]) {
        case AsciiClass::kWord:
          if (chars_ < max_chars_) word_[size_++] = t_.fold_[byte];
          ++chars_;
          run_start_ = size_;
          break;
        case AsciiClass::kSpace:
          if (!EndWord()) return false;
          break;
        case AsciiClass::kPunctuation:
          if (!Alone(byte)) return false;
          break;
        case AsciiClass::kDropped:
          break;
      }
    }
    *offset = i;
    return true;
  }

  bool NonAscii(char32_t c) {
    if (c == 0xFFFD || IsControl(c)) return true;
    if (IsWhitespace(c)) return EndWord();
    const bool alone = t_.options_.split_cjk && IsCjk(c);
    if (alone && !EndWord()) return false;
    if (t_.options_.strip_accents) {
      char32_t parts[kMaxDecomposition];
      const int n = Decompose(c, parts);
      for (int i = 0; i < n; ++i) {
        const int combining = CombiningClass(parts[i]);
        if (IsNonspacingMark(parts[i])) {
          if (combining == 0) run_start_ = size_;
          continue;
        }
        if (!Folded(parts[i], combining)) return false;
      }
    } else if (!Folded(c, 0)) {
      return false;
    }
    return !alone || EndWord();
  }

  bool EndWord() {
    if (chars_ == 0) return true;
    const bool room = chars_ > max_chars_ ? Push(t_.special_.unk) : Match();
    chars_ = 0;
    size_ = 0;
    run_start_ = 0;
    return room;
  }

  // Whether the word is [UNK] whatever follows.
  bool overlong() const { return chars_ > max_chars_; }

 private:
  bool Folded(char32_t c, int combining) {
    if (!t_.options_.lower_case) return Normalized(c, combining);
    char32_t lower[2];
    const int n = LowerCase(c, lower);
    for (int i = 0; i < n; ++i) {
      if (!Normalized(lower[i], combining)) return false;
    }
    return true;
  }

  // A code point after cleaning and folding.
  bool Normalized(char32_t c, int combining) {
    if (IsPunctuation(c)) return Alone(c);
    if (chars_ < max_chars_) {
      char bytes[4];
      const int length = EncodeUtf8(c, bytes);
      const size_t at = combining == 0 ? size_ : CanonicalPlace(combining);
      std::memmove(word_ + at + length, word_ + at, size_ - at);
      std::memcpy(word_ + at, bytes, length);
      size_ += length;
    }
    ++chars_;
    if (combining == 0) run_start_ = size_;
    return true;
  }

  // Canonical order sorts the marks after a base by combining class. Nearly
  // all marks have been stripped by now; those of class Mc that have a class
  // (Hangul tone marks, musical stems) are put in place here.
  size_t CanonicalPlace(int combining) const {
    size_t at = size_;
    while (at > run_start_) {
      size_t before = at - 1;
      while ((static_cast<unsigned char>(word_[before]) & 0xC0) == 0x80) {
        --before;
      }
      size_t offset = before;
      if (CombiningClass(NextCodePoint({word_, size_}, &offset)) <= combining) {
        break;
      }
      at = before;
    }
    return at;
  }

  // A word of one character.
  bool Alone(char32_t c) {
    if (!EndWord()) return false;
    size_ = EncodeUtf8(c, word_);
    chars_ = 1;
    return EndWord();
  }

  bool Push(int32_t id) {
    if (out_->ids.size() == max_tokens_) {
      out_->truncated = true;
      return false;
    }
    out_->ids.push_back(id);
    return true;
  }

  // Longest pieces first, from the left; a word with a rest that no piece
  // begins is [UNK] as a whole.
  bool Match() {
    int32_t ids[kMaxWordChars];
    int count = 0;
    size_t begin = 0;
    while (begin < size_) {
      uint32_t node = PieceTrie::kRoot;
      if (begin > 0) {
        if (!t_.has_continuation_) return Push(t_.special_.unk);
        node = t_.continuation_;
      }
      int32_t longest = -1;
      size_t end = begin;
      for (size_t i = begin; i < size_; ++i) {
        const PieceTrie::Edge* edge = t_.trie_.Find(node, word_[i]);
        if (edge == nullptr) break;
        if (edge->piece >= 0) {
          longest = edge->piece;
          end = i + 1;
        }
        node = edge->child;
      }
      if (longest < 0) return Push(t_.special_.unk);
      ids[count++] = longest;
      begin = end;
    }
    for (int i = 0; i < count; ++i) {
      if (!Push(ids[i])) return false;
    }
    return true;
  }

  const WordPieceTokenizer& t_;
  const int max_chars_;
  const size_t max_tokens_;
  Tokens* const out_;
  int chars_ = 0;         // of the word, also those beyond max_chars_
  size_t size_ = 0;       // bytes of word_
  size_t run_start_ = 0;  // where the marks after the last base begin
  char word_[4 * kMaxWordChars];
};

Tokens WordPieceTokenizer::Tokenize(std::string_view text,
                                    size_t max_tokens) const {
  Tokens out;
  const size_t limit =
      kSlackBytes + std::min(max_tokens, kMaxVocabBytes) * kBytesPerToken;
  const bool cut = text.size() > limit;
  if (cut) text = Utf8Prefix(text, limit);
  out.ids.reserve(std::min(max_tokens, text.size() / 3 + 4));
  Run run(*this, max_tokens, &out);
  size_t offset = 0;
  while (offset < text.size()) {
    if (static_cast<unsigned char>(text[offset]) < 0x80) {
      if (!run.Ascii(text, &offset)) return out;
    } else if (!run.NonAscii(NextCodePoint(text, &offset))) {
      return out;
    }
  }
  // A word that the cut goes through would give pieces that are not its own.
  if (!cut || run.overlong()) run.EndWord();
  out.truncated = out.truncated || cut;
  return out;
}

std::string DigestOf(absl::string_view vocab, const WordPieceOptions& options) {
  Sha256Stream stream;
  stream.AddField("wordpiece");
  stream.AddField({vocab.data(), vocab.size()});
  stream.AddNumber(options.lower_case);
  stream.AddNumber(options.strip_accents);
  stream.AddNumber(options.split_cjk);
  stream.AddNumber(options.max_word_chars);
  return stream.FinishHex();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> NewWordPieceTokenizer(
    absl::string_view vocab, const WordPieceOptions& options) {
  if (options.max_word_chars < 1 || options.max_word_chars > kMaxWordChars) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_word_chars: ", options.max_word_chars,
                     " is not in [1, ", kMaxWordChars, "]"));
  }
  if (vocab.size() > kMaxVocabBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocabulary: ", vocab.size(), " bytes > ", kMaxVocabBytes));
  }
  std::string digest = DigestOf(vocab, options);
  absl::ConsumePrefix(&vocab, "\xEF\xBB\xBF");  // a byte order mark
  std::vector<std::string> pieces;
  PieceTrie trie(vocab.size());
  while (!vocab.empty()) {
    const size_t end = vocab.find('\n');
    absl::string_view piece = vocab.substr(0, end);
    vocab.remove_prefix(end == absl::string_view::npos ? vocab.size()
                                                       : end + 1);
    if (!piece.empty() && piece.back() == '\r') piece.remove_suffix(1);
    const size_t line = pieces.size() + 1;
    if (const auto bad = FindInvalidUtf8({piece.data(), piece.size()})) {
      return absl::InvalidArgumentError(absl::StrCat(
          "vocabulary line ", line, ": invalid UTF-8 at byte ", *bad));
    }
    const auto id = static_cast<int32_t>(pieces.size());
    // An empty line keeps its number and matches nothing.
    if (!trie.Insert(piece, id)) {
      const auto first = std::find(pieces.begin(), pieces.end(), piece);
      return absl::InvalidArgumentError(
          absl::StrCat("vocabulary line ", line, ": \"", piece,
                       "\" is on line ", first - pieces.begin() + 1, " too"));
    }
    pieces.emplace_back(piece);
  }
  const auto find = [&pieces](absl::string_view piece) {
    const auto at = std::find(pieces.begin(), pieces.end(), piece);
    return at == pieces.end() ? -1 : static_cast<int32_t>(at - pieces.begin());
  };
  SpecialTokens special;
  const std::pair<absl::string_view, int32_t*> required[] = {
      {"[UNK]", &special.unk},
      {"[CLS]", &special.cls},
      {"[SEP]", &special.sep},
      {"[PAD]", &special.pad}};
  for (const auto& [piece, id] : required) {
    *id = find(piece);
    if (*id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("vocabulary: no line is ", piece));
    }
  }
  special.mask = find("[MASK]");
  if (special.mask < 0) special.mask = special.unk;
  return std::make_unique<WordPieceTokenizer>(
      std::move(pieces), std::move(trie), special, options, std::move(digest));
}

}  // namespace vitrine
