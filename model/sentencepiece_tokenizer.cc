#include "model/sentencepiece_tokenizer.h"

// The only file that includes this header, which defines absl::string_view as
// std::string_view and so must never meet Abseil's own.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <utility>

#include "base/sha256.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

// The library encodes whole texts only, so the text is cut first. A first cut
// is enough for nearly all text; where it gives too few ids (long pieces, runs
// of spaces, characters that normalisation drops) the cut is moved out, up to
// the second bound, which keeps the time bounded by the tokens asked for.
constexpr size_t kFirstBytesPerToken = 16;
constexpr size_t kFirstSlackBytes = 256;
constexpr size_t kBytesPerToken = 1024;
constexpr size_t kSlackBytes = 64 << 10;
constexpr size_t kMaxTokens = size_t{1} << 24;
// The last ids before a cut through a word may be other than in the whole
// text: so many more than were asked for are wanted.
constexpr size_t kSlackTokens = 32;

// At most `max_bytes` of `text`, ending before a space where there is one in
// the second half: pieces do not cross spaces, so the ids before such a cut
// are those of the whole text.
std::string_view CutAtSpace(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  const size_t space = text.rfind(' ', max_bytes);
  if (space != std::string_view::npos && space > max_bytes / 2) {
    return text.substr(0, space);
  }
  return Utf8Prefix(text, max_bytes);
}

std::string Fold(std::string_view text, const SentencePieceOptions& options) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    char32_t parts[kMaxDecomposition];
    parts[0] = NextCodePoint(text, &offset);
    const int n = options.strip_accents ? Decompose(parts[0], parts) : 1;
    for (int i = 0; i < n; ++i) {
      if (options.strip_accents && IsNonspacingMark(parts[i])) continue;
      char32_t folded[2] = {parts[i], 0};
      const int m = options.lower_case ? LowerCase(parts[i], folded) : 1;
      for (int j = 0; j < m; ++j) {
        char bytes[4];
        out.append(bytes, EncodeUtf8(folded[j], bytes));
      }
    }
  }
  return out;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(
      std::unique_ptr<sentencepiece::SentencePieceProcessor> processor,
      const SentencePieceOptions& options, const SpecialTokens& special,
      std::string digest)
      : processor_(std::move(processor)),
        options_(options),
        special_(special),
        digest_(std::move(digest)),
        pieces_(processor_->GetPieceSize()) {}

  Tokens Tokenize(std::string_view text, size_t max_tokens) const override {
    max_tokens = std::min(max_tokens, kMaxTokens);
    const size_t last = max_tokens * kBytesPerToken + kSlackBytes;
    size_t bytes = max_tokens * kFirstBytesPerToken + kFirstSlackBytes;
    Tokens out;
    for (;;) {
      const std::string_view prefix = CutAtSpace(text, bytes);
      const bool cut = prefix.size() < text.size();
      out.ids.clear();
      // An error would be that no model is loaded.
      const auto status =
          options_.lower_case || options_.strip_accents
              ? processor_->Encode(Fold(prefix, options_), &out.ids)
              : processor_->Encode(prefix, &out.ids);
      if (!status.ok()) out.ids.clear();
      if (!cut || out.ids.size() >= max_tokens + kSlackTokens ||
          bytes >= last) {
        out.truncated = cut || out.ids.size() > max_tokens;
        break;
      }
      bytes = std::min(bytes * 4, last);
    }
    if (out.ids.size() > max_tokens) out.ids.resize(max_tokens);
    if (options_.layout == SentencePieceLayout::kOffsetByOne) {
      for (int32_t& id : out.ids) id = id == 0 ? special_.unk : id + 1;
    }
    return out;
  }

  const SpecialTokens& special() const override { return special_; }

  int32_t vocab_size() const override {
    return options_.layout == SentencePieceLayout::kOwnIds ? pieces_
                                                           : pieces_ + 2;
  }

  std::string_view kind() const override { return "sentencepiece"; }

  std::string_view digest() const override { return digest_; }

  std::string Piece(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return "";
    if (options_.layout == SentencePieceLayout::kOffsetByOne) {
      if (id == special_.cls) return "<s>";
      if (id == special_.pad) return "<pad>";
      if (id == special_.sep) return "</s>";
      if (id == special_.unk) return "<unk>";
      if (id == special_.mask) return "<mask>";
      --id;
    }
    return processor_->IdToPiece(id);
  }

 private:
  const std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  const SentencePieceOptions options_;
  const SpecialTokens special_;
  const std::string digest_;
  const int32_t pieces_;  // of the SentencePiece model itself
};

std::string DigestOf(std::string_view model,
                     const SentencePieceOptions& options) {
  Sha256Stream stream;
  stream.AddField("sentencepiece");
  stream.AddField(model);
  stream.AddNumber(static_cast<int64_t>(options.layout));
  stream.AddNumber(options.lower_case);
  stream.AddNumber(options.strip_accents);
  return stream.FinishHex();
}

}  // namespace

std::unique_ptr<Tokenizer> NewSentencePieceTokenizer(
    std::string_view model, const SentencePieceOptions& options,
    std::string* error) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  const auto status = processor->LoadFromSerializedProto(model);
  if (!status.ok()) {
    *error = "not a SentencePiece model: " + std::string(status.message());
    return nullptr;
  }
  const int pieces = processor->GetPieceSize();
  SpecialTokens special;
  if (options.layout == SentencePieceLayout::kOffsetByOne) {
    const char* const first[] = {"<unk>", "<s>", "</s>"};
    for (int i = 0; i < 3; ++i) {
      if (i >= pieces || processor->IdToPiece(i) != first[i]) {
        *error = std::string("piece ") + std::to_string(i) + " is not " +
                 first[i] + ", as the XLM-R layout has it";
        return nullptr;
      }
    }
    special.cls = 0;
    special.pad = 1;
    special.sep = 2;
    special.unk = 3;
    special.mask = pieces + 1;
    special.double_separator = true;
  } else {
    const auto find = [&](const char* piece, int32_t* id) {
      *id = processor->PieceToId(piece);
      // The library answers the id of <unk> for pieces that it does not have.
      return *id >= 0 && *id < pieces && processor->IdToPiece(*id) == piece;
    };
    special.unk = processor->unk_id();
    const std::pair<const char*, int32_t*> required[] = {
        {"[CLS]", &special.cls},
        {"[SEP]", &special.sep},
        {"<pad>", &special.pad}};
    for (const auto& [piece, id] : required) {
      if (!find(piece, id)) {
        *error = std::string("no piece is ") + piece +
                 ", as the ALBERT layout has it";
        return nullptr;
      }
    }
    if (!find("[MASK]", &special.mask)) special.mask = special.unk;
  }
  return std::make_unique<SentencePieceTokenizer>(
      std::move(processor), options, special, DigestOf(model, options));
}

}  // namespace vitrine
