#include "trainer/ideograph_splits.h"

#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/unicode.h"

namespace vitrine {
namespace {

constexpr std::string_view kSpace = "\u2581";  // SentencePiece's
constexpr std::string_view kContinued = "##";  // WordPiece's

// The ideographs that a piece is made of; none where something else is in it.
std::vector<char32_t> IdeographsOf(std::string_view piece) {
  for (const std::string_view prefix : {kSpace, kContinued}) {
    if (piece.substr(0, prefix.size()) == prefix) {
      piece.remove_prefix(prefix.size());
    }
  }
  std::vector<char32_t> out;
  for (size_t offset = 0; offset < piece.size();) {
    out.push_back(NextCodePoint(piece, &offset));
    if (!IsCjk(out.back())) return {};
  }
  return out;
}

}  // namespace

TokenSplits IdeographSplits(const Tokenizer& tokenizer) {
  absl::flat_hash_map<char32_t, int32_t> alone;
  std::vector<std::vector<char32_t>> pieces(tokenizer.vocab_size());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    pieces[id] = IdeographsOf(tokenizer.Piece(id));
    if (pieces[id].size() == 1) alone.emplace(pieces[id].front(), id);
  }
  TokenSplits::Table table;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (pieces[id].size() < 2) continue;
    table.tokens.push_back(id);
    for (const char32_t c : pieces[id]) {
      const auto it = alone.find(c);
      table.parts.push_back(it != alone.end() ? it->second
                                              : tokenizer.vocab_size() +
                                                    static_cast<int32_t>(c));
    }
    table.ends.push_back(static_cast<int32_t>(table.parts.size()));
  }
  return *TokenSplits::Create(std::move(table));
}

}  // namespace vitrine
