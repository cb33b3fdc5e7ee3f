// Exact ids on thousands of hard texts, against the Rust tokenizers library
// and SentencePiece through Python: see tests/data/make_tokenizer_goldens.py.

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/load_tokenizer.h"
#include "model/sentencepiece_tokenizer.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

std::string DataPath(const std::string& name) {
  return std::string(VITRINE_TEST_DATA) + "/tokenizer/" + name;
}

std::vector<nlohmann::json> ReadLines(const std::string& name) {
  std::ifstream in(DataPath(name));
  EXPECT_TRUE(in.good()) << name;
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(in, line);) {
    rows.push_back(nlohmann::json::parse(line));
  }
  return rows;
}

// Compares with every row that is not null; returns how many there were.
int ExpectGoldenIds(const Tokenizer& tokenizer, const std::string& golden) {
  const auto texts = ReadLines("strings.jsonl");
  const auto rows = ReadLines(golden);
  EXPECT_EQ(texts.size(), rows.size());
  int compared = 0, wrong = 0;
  for (size_t i = 0; i < std::min(texts.size(), rows.size()); ++i) {
    if (rows[i].is_null()) continue;
    ++compared;
    const auto want = rows[i].get<std::vector<int32_t>>();
    const auto text = texts[i].get<std::string>();
    const Tokens whole = tokenizer.Tokenize(text, 4096);
    EXPECT_FALSE(whole.truncated);
    if (whole.ids != want && ++wrong <= 20) {
      ADD_FAILURE() << golden << " line " << i + 1 << ": " << texts[i]
                    << "\nwant " << rows[i] << "\ngot  "
                    << nlohmann::json(whole.ids);
    }
    // A budget gives a prefix of the same ids and says so.
    const size_t half = want.size() / 2;
    const Tokens cut = tokenizer.Tokenize(text, half);
    EXPECT_EQ(cut.ids, std::vector<int32_t>(want.begin(), want.begin() + half));
    EXPECT_EQ(cut.truncated, half < want.size());
  }
  EXPECT_EQ(wrong, 0);
  return compared;
}

int ExpectWordPieceGolden(const WordPieceOptions& options,
                          const std::string& golden) {
  const auto vocab = ReadFile(DataPath("vocab.txt"));
  EXPECT_TRUE(vocab.ok()) << vocab.status();
  const auto tokenizer = NewWordPieceTokenizer(*vocab, options);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return ExpectGoldenIds(**tokenizer, golden);
}

int ExpectSentencePieceGolden(const std::string& model,
                              SentencePieceLayout layout,
                              const std::string& golden) {
  const auto bytes = ReadFile(DataPath(model));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  std::string error;
  const auto tokenizer =
      NewSentencePieceTokenizer(*bytes, {.layout = layout}, &error);
  if (tokenizer == nullptr) {
    ADD_FAILURE() << error;
    return 0;
  }
  return ExpectGoldenIds(*tokenizer, golden);
}

TEST(TokenizerGolden, UncasedWordPieceGivesTheRustLibrarysIds) {
  EXPECT_GE(ExpectWordPieceGolden({}, "wordpiece_uncased.jsonl"), 2000);
}

TEST(TokenizerGolden, CasedWordPieceGivesTheRustLibrarysIds) {
  EXPECT_GE(ExpectWordPieceGolden({.lower_case = false, .strip_accents = false},
                                  "wordpiece_cased.jsonl"),
            2000);
}

TEST(TokenizerGolden, LowerCaseWithAccentsGivesTheRustLibrarysIds) {
  EXPECT_GE(
      ExpectWordPieceGolden({.strip_accents = false}, "wordpiece_lower.jsonl"),
      2000);
}

TEST(TokenizerGolden, XlmRobertaLayoutGivesTheLibrarysIdsPlusOne) {
  EXPECT_GE(
      ExpectSentencePieceGolden("xlmr.model", SentencePieceLayout::kOffsetByOne,
                                "sentencepiece_xlmr.jsonl"),
      2000);
}

TEST(TokenizerGolden, AlbertLayoutGivesTheLibrarysOwnIds) {
  EXPECT_GE(
      ExpectSentencePieceGolden("albert.model", SentencePieceLayout::kOwnIds,
                                "sentencepiece_albert.jsonl"),
      2000);
}

}  // namespace
}  // namespace vitrine
