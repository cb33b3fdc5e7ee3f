#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using std::string_literals::operator""s;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kSpecials[] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";

std::unique_ptr<Tokenizer> Make(const std::vector<std::string>& pieces,
                                const WordPieceOptions& options = {}) {
  auto made =
      NewWordPieceTokenizer(kSpecials + absl::StrJoin(pieces, "\n"), options);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

// The pieces of a text, for reading.
std::vector<std::string> Pieces(const Tokenizer& tokenizer,
                                std::string_view text,
                                size_t max_tokens = 1000) {
  std::vector<std::string> pieces;
  for (const int32_t id : tokenizer.Tokenize(text, max_tokens).ids) {
    pieces.push_back(tokenizer.Piece(id));
  }
  return pieces;
}

absl::Status Error(absl::string_view vocab) {
  return NewWordPieceTokenizer(vocab, {}).status();
}

TEST(WordPiece, TakesTheLongestPieceFromTheLeft) {
  const auto t = Make({"un", "##aff", "##able", "##a", "unaff", "##b", "##le"});
  EXPECT_THAT(Pieces(*t, "unaffable"), ElementsAre("unaff", "##able"));
  EXPECT_THAT(Pieces(*t, "unable"), ElementsAre("un", "##able"));
  EXPECT_THAT(Pieces(*t, "una"), ElementsAre("un", "##a"));
}

TEST(WordPiece, AWordWithAnUnknownRestIsUnknownAsAWhole) {
  const auto t = Make({"un", "##able", "x"});
  EXPECT_THAT(Pieces(*t, "unablez x"), ElementsAre("[UNK]", "x"));
  EXPECT_THAT(Pieces(*t, "able"), ElementsAre("[UNK]"));
}

TEST(WordPiece, GreedyMatchingDoesNotGoBack) {
  // "abc" = a + ##bc would do, but the longest first piece is ab.
  const auto t = Make({"a", "ab", "##bc"});
  EXPECT_THAT(Pieces(*t, "abc"), ElementsAre("[UNK]"));
}

TEST(WordPiece, WordsWithoutContinuationPiecesMatchWholeOnly) {
  const auto t = Make({"a", "ab"});
  EXPECT_THAT(Pieces(*t, "ab aba"), ElementsAre("ab", "[UNK]"));
}

TEST(WordPiece, TextIsNeverASpecialTokenOrAContinuation) {
  const auto t = Make({"[", "]", "sep", "#", "##ing", "ing", "##"});
  EXPECT_THAT(Pieces(*t, "[SEP]"), ElementsAre("[", "sep", "]"));
  EXPECT_THAT(Pieces(*t, "##ing"), ElementsAre("#", "#", "ing"));
}

TEST(WordPiece, FoldsCaseAndAccents) {
  const auto t = Make({"cafe", "ωω", "i"});
  EXPECT_THAT(Pieces(*t, "CAFÉ cafe\u0301 Ωω \u2126ω İ"),
              ElementsAre("cafe", "cafe", "ωω", "ωω", "i"));
}

TEST(WordPiece, KeepsCaseAndAccentsWhereAsked) {
  const auto cased = Make({"Café", "café", "cafe"},
                          {.lower_case = false, .strip_accents = false});
  EXPECT_THAT(Pieces(*cased, "Café café CAFÉ"),
              ElementsAre("Café", "café", "[UNK]"));
  const auto lower = Make({"café", "i\u0307"}, {.strip_accents = false});
  EXPECT_THAT(Pieces(*lower, "CAFÉ İ"), ElementsAre("café", "i\u0307"));
  const auto stripped = Make({"Cafe"}, {.lower_case = false});
  EXPECT_THAT(Pieces(*stripped, "Café"), ElementsAre("Cafe"));
}

TEST(WordPiece, SplitsIdeographsUnlessToldNotTo) {
  const std::vector<std::string> pieces = {"沙", "发", "沙发", "a", "b"};
  EXPECT_THAT(Pieces(*Make(pieces), "a沙发b"),
              ElementsAre("a", "沙", "发", "b"));
  EXPECT_THAT(Pieces(*Make(pieces, {.split_cjk = false}), "沙发"),
              ElementsAre("沙发"));
}

TEST(WordPiece, DropsControlCharactersWithinWords) {
  const auto t = Make({"sofa", "a", "b"});
  EXPECT_THAT(Pieces(*t,
                     "s\0o\x01"
                     "f\u200B\uFFFDa"s),
              ElementsAre("sofa"));
  EXPECT_THAT(Pieces(*t, "a\u2028b"), ElementsAre("a", "b"));
  EXPECT_THAT(Pieces(*t, "a\tb\r\nb\u3000"), ElementsAre("a", "b", "b"));
}

TEST(WordPiece, MarksThatStayComeInCanonicalOrder) {
  // U+1D165 (class 216) and U+1D16D (226) are of category Mc: kept. U+0301
  // (230) goes, and as part of their run does not end it; a base does.
  const std::string stem = "\U0001D165", dot = "\U0001D16D";
  const auto t = Make({"a" + stem + dot, "a" + dot + "b" + stem});
  EXPECT_THAT(Pieces(*t, "a" + dot + "\u0301" + stem),
              ElementsAre("a" + stem + dot));
  EXPECT_THAT(Pieces(*t, "a" + dot + "b" + stem),
              ElementsAre("a" + dot + "b" + stem));
}

TEST(WordPiece, AWordOfMoreThan100CharactersIsUnknown) {
  const auto t = Make({"a", "##a", "é", "##é"},
                      {.lower_case = true, .strip_accents = false});
  EXPECT_EQ(Pieces(*t, std::string(100, 'a')).size(), 100);
  EXPECT_THAT(Pieces(*t, std::string(101, 'a')), ElementsAre("[UNK]"));
  // Characters, not bytes.
  std::string accents;
  for (int i = 0; i < 100; ++i) accents += "é";
  EXPECT_EQ(Pieces(*t, accents).size(), 100);
  EXPECT_THAT(Pieces(*t, accents + "a a"), ElementsAre("[UNK]", "a"));
}

TEST(WordPiece, MaxWordCharsIsAnOption) {
  const auto t = Make({"a", "##a"}, {.max_word_chars = 2});
  EXPECT_THAT(Pieces(*t, "aa aaa"), ElementsAre("a", "##a", "[UNK]"));
  for (const int bad : {-1, 0, 1001}) {
    EXPECT_EQ(
        NewWordPieceTokenizer(kSpecials, {.max_word_chars = bad}).status(),
        absl::InvalidArgumentError("max_word_chars: " + std::to_string(bad) +
                                   " is not in [1, 1000]"));
  }
}

TEST(WordPiece, StopsAtTheBudgetAndSaysWhetherMoreWasToCome) {
  const auto t = Make({"a", "b", "##b"});
  Tokens cut = t->Tokenize("a b abb", 3);
  EXPECT_THAT(cut.ids, ElementsAre(5, 6, 5));  // within a word
  EXPECT_TRUE(cut.truncated);
  EXPECT_FALSE(t->Tokenize("a b \t\u200B\n", 2).truncated);
  EXPECT_TRUE(t->Tokenize("a", 0).truncated);
  EXPECT_FALSE(t->Tokenize(" ", 0).truncated);
  EXPECT_FALSE(t->Tokenize("", 0).truncated);
  EXPECT_EQ(t->Tokenize("a b", SIZE_MAX).ids.size(), 2);
}

TEST(WordPiece, HugeTextsAreReadNoFurtherThanTheirTokensNeed) {
  const auto t = Make({"a", "sofa"});
  constexpr size_t kHuge = 10 << 20;
  std::string words;
  while (words.size() < kHuge) words += "sofa ";
  const Tokens title = t->Tokenize(words, 32);
  EXPECT_THAT(title.ids, testing::AllOf(testing::SizeIs(32), testing::Each(6)));
  EXPECT_TRUE(title.truncated);

  const Tokens word = t->Tokenize(std::string(kHuge, 'a'), 32);
  EXPECT_THAT(word.ids, ElementsAre(1));
  EXPECT_TRUE(word.truncated);

  const Tokens nothing = t->Tokenize(std::string(kHuge, '\1'), 32);
  EXPECT_THAT(nothing.ids, IsEmpty());
  EXPECT_TRUE(nothing.truncated);
}

TEST(WordPiece, AWordAtTheEndOfWhatIsReadGivesNoPiecesOfAPart) {
  const auto t = Make({"a", "sofa", "##a"});
  // 64 KiB and 1 KiB a token are read: the last word begins within.
  const std::string text = std::string((65 << 10) - 2, ' ') + "aaaa";
  const Tokens tokens = t->Tokenize(text, 1);
  EXPECT_THAT(tokens.ids, IsEmpty());
  EXPECT_TRUE(tokens.truncated);
}

TEST(WordPiece, KnowsItsSpecialTokensAndPieces) {
  const auto t = Make({"sofa"});
  EXPECT_EQ(t->special().pad, 0);
  EXPECT_EQ(t->special().unk, 1);
  EXPECT_EQ(t->special().cls, 2);
  EXPECT_EQ(t->special().sep, 3);
  EXPECT_EQ(t->special().mask, 4);
  EXPECT_FALSE(t->special().double_separator);
  EXPECT_EQ(t->vocab_size(), 6);
  EXPECT_EQ(t->kind(), "wordpiece");
  EXPECT_EQ(t->Piece(5), "sofa");
  EXPECT_EQ(t->Piece(6), "");
  EXPECT_EQ(t->Piece(-1), "");
}

TEST(WordPieceVocabulary, LinesMayEndInCrLfAndBeginWithAByteOrderMark) {
  auto t = NewWordPieceTokenizer(
      "\xEF\xBB\xBF[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nsofa\r\n", {});
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_THAT(Pieces(**t, "sofa"), ElementsAre("sofa"));
  EXPECT_EQ((*t)->vocab_size(), 5);
}

TEST(WordPieceVocabulary, AnEmptyLineKeepsItsNumber) {
  auto t = NewWordPieceTokenizer("[PAD]\n\n[UNK]\n[CLS]\n[SEP]\n\nsofa", {});
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_THAT((*t)->Tokenize("sofa", 8).ids, ElementsAre(6));
}

TEST(WordPieceVocabulary, MaskIsOptional) {
  auto t = NewWordPieceTokenizer("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", {});
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->special().mask, (*t)->special().unk);
}

TEST(WordPieceVocabulary, NamesTheMissingSpecialToken) {
  EXPECT_EQ(Error(""),
            absl::InvalidArgumentError("vocabulary: no line is [UNK]"));
  EXPECT_EQ(Error("[PAD]\n[UNK]\n[CLS]\nsofa\n"),
            absl::InvalidArgumentError("vocabulary: no line is [SEP]"));
  EXPECT_EQ(Error("[UNK]\n[CLS]\n[SEP]\n"),
            absl::InvalidArgumentError("vocabulary: no line is [PAD]"));
}

TEST(WordPieceVocabulary, NamesBothLinesOfARepeatedPiece) {
  EXPECT_EQ(Error(kSpecials + "sofa\nlamp\nsofa\n"s),
            absl::InvalidArgumentError(
                "vocabulary line 8: \"sofa\" is on line 6 too"));
}

TEST(WordPieceVocabulary, NamesTheLineWithInvalidUtf8) {
  EXPECT_EQ(
      Error(kSpecials + "so\xFF"
                        "fa\n"s),
      absl::InvalidArgumentError("vocabulary line 6: invalid UTF-8 at byte 2"));
}

TEST(WordPieceVocabulary, RefusesAFileThatIsNoVocabulary) {
  EXPECT_THAT(std::string(Error(std::string(20 << 20, 'x')).message()),
              HasSubstr("20971520 bytes > 16000000"));
}

}  // namespace
}  // namespace vitrine
