#include "model/word_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "model/featurizer.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(StemOf, TakesOffPluralEndingsOnly) {
  EXPECT_EQ(StemOf("shoes"), "shoe");
  EXPECT_EQ(StemOf("shoe"), "shoe");
  EXPECT_EQ(StemOf("lamps"), "lamp");
  EXPECT_EQ(StemOf("batteries"), "battery");
  EXPECT_EQ(StemOf("tables"), "table");
  EXPECT_EQ(StemOf("glass"), "glass");
  EXPECT_EQ(StemOf("cactus"), "cactus");
  EXPECT_EQ(StemOf("gas"), "gas");
  EXPECT_EQ(StemOf("s"), "s");
  EXPECT_EQ(StemOf(""), "");
}

class MatchMarksTest : public ::testing::Test {
 protected:
  MatchMarksTest()
      : tokenizer_(*NewWordPieceTokenizer(
            "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n,\nred\nshoe\nshoes\nlamp\n"
            "lam\n##p\n##ps\nfloor\nblue\n##s\n",
            {})) {}

  // The segments of "query" and an item of that title.
  std::vector<int32_t> Segments(const std::string& query,
                                const std::string& title, int types = 4,
                                int max_tokens = 0) {
    EncoderConfig encoder;
    encoder.max_positions = 64;
    encoder.type_vocab_size = types;
    internal::EncodingOptions options;
    options.set_max_tokens(max_tokens);
    const Featurizer featurizer(
        *tokenizer_, *ResolveEncodingOptions(options, encoder), encoder);
    v1::Item item;
    item.set_title(title);
    const Encoding pair =
        featurizer.Pair(*featurizer.Query(query), *featurizer.ItemText(item));
    EXPECT_EQ(pair.ids.size(), pair.segment_ids.size());
    return pair.segment_ids;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(MatchMarksTest, WordsOnBothSidesHaveSegmentsOfTheirOwn) {
  //          [CLS] red shoe [SEP] blue shoe [SEP]
  EXPECT_THAT(Segments("red shoe", "blue shoe"),
              ElementsAre(0, 0, 2, 0, 1, 3, 1));
}

TEST_F(MatchMarksTest, NumberAndCaseDoNotMatter) {
  EXPECT_THAT(Segments("SHOES", "shoe"), ElementsAre(0, 2, 0, 3, 1));
}

TEST_F(MatchMarksTest, PiecesOfAWordMatchAsAWhole) {
  // lamps is lam ##ps, lamp is a piece: one word, two ways.
  EXPECT_THAT(Segments("lamps", "lamp"), ElementsAre(0, 2, 2, 0, 3, 1));
  // floors, floor ##s, has the stem of floor; no word is ##s alone.
  EXPECT_THAT(Segments("floors", "lamp blue"),
              ElementsAre(0, 0, 0, 0, 1, 1, 1));
}

TEST_F(MatchMarksTest, PunctuationAndUnknownWordsDoNotMatch) {
  EXPECT_THAT(Segments("red , zebra", "blue , zebra"),
              ElementsAre(0, 0, 0, 0, 0, 1, 1, 1, 1));
}

TEST_F(MatchMarksTest, EncodersWithTwoSegmentsOrOneSeeNoMarks) {
  EXPECT_THAT(Segments("red", "red", 2), ElementsAre(0, 0, 0, 1, 1));
  EXPECT_THAT(Segments("red", "red", 1), Each(0));
}

TEST_F(MatchMarksTest, CutItemsAreMarkedAsFarAsTheyGo) {
  EXPECT_THAT(Segments("shoe", "red blue floor shoe shoe shoe", 4, 8),
              ElementsAre(0, 2, 0, 1, 1, 1, 3, 1));
}

TEST_F(MatchMarksTest, MarksOfSentencePiecesFollowTheirSpaces) {
  // Piece text is all that the matcher reads, so a fake will do.
  class Fake : public Tokenizer {
   public:
    Tokens Tokenize(std::string_view, size_t) const override { return {}; }
    const SpecialTokens& special() const override { return special_; }
    int32_t vocab_size() const override { return 9; }
    std::string_view kind() const override { return "sentencepiece"; }
    std::string_view digest() const override { return "fake"; }
    std::string Piece(int32_t id) const override {
      const std::vector<std::string> pieces = {"<pad>", "<unk>",  "<s>",
                                               "</s>",  "<mask>", "▁Sofa",
                                               "▁so",   "fas",    "▁"};
      return pieces[id];
    }

   private:
    SpecialTokens special_{2, 3, 0, 1, 4};
  };
  const WordMatcher matcher{Fake()};
  const auto words = matcher.WordsOf({5, 6, 7, 1, 8});
  // A space by itself is no word, and adds nothing to the one that it begins.
  EXPECT_EQ(words[4], 0);
  EXPECT_EQ(matcher.WordsOf({8, 7})[1], matcher.WordsOf({7})[0]);
  EXPECT_NE(words[0], 0);
  EXPECT_EQ(words[1], words[0]);
  EXPECT_EQ(words[2], words[0]);
  EXPECT_EQ(words[3], 0);
}

}  // namespace
}  // namespace vitrine
