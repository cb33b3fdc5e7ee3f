#include "trainer/ideograph_splits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace vitrine {
namespace {

using ::testing::ElementsAre;

class Pieces : public Tokenizer {
 public:
  explicit Pieces(std::vector<std::string> pieces)
      : pieces_(std::move(pieces)) {}

  Tokens Tokenize(std::string_view, size_t) const override { return {}; }
  const SpecialTokens& special() const override { return special_; }
  int32_t vocab_size() const override {
    return static_cast<int32_t>(pieces_.size());
  }
  std::string_view kind() const override { return "sentencepiece"; }
  std::string_view digest() const override { return ""; }
  std::string Piece(int32_t id) const override { return pieces_[id]; }

 private:
  const std::vector<std::string> pieces_;
  const SpecialTokens special_;
};

TEST(IdeographSplitsTest, SplitsPiecesOfIdeographsAlone) {
  const TokenSplits splits = IdeographSplits(
      Pieces({"<s>", "\u2581", "sofa", "\u5f88", "\u5f88\u597d",
              "\u2581\u597d\u5f88\u597d", "\u5f88A", "##\u5f88\u5f88"}));
  EXPECT_THAT(splits.table().tokens, ElementsAre(4, 5, 7));
  // U+597D has no piece of its own.
  const int32_t good = 8 + 0x597d;
  EXPECT_THAT(splits.Of(4), ElementsAre(3, good));
  EXPECT_THAT(splits.Of(5), ElementsAre(good, 3, good));
  EXPECT_THAT(splits.Of(7), ElementsAre(3, 3));
}

TEST(IdeographSplitsTest, OtherLanguagesHaveNone) {
  EXPECT_TRUE(IdeographSplits(Pieces({"\u2581sofa", "##as", "caf\u00e9",
                                      "\u3042\u3044", ""}))
                  .table()
                  .tokens.empty());
}

}  // namespace
}  // namespace vitrine
