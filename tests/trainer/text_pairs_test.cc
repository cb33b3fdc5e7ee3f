#include "trainer/text_pairs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

class TextPairsTest : public ::testing::Test {
 protected:
  TextPairsTest() {
    // Pieces 5 … 104 are words, 105 … 114 go on with one.
    std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
    for (int i = 5; i < 105; ++i) absl::StrAppend(&vocab, "word", i, "\n");
    for (int i = 105; i < 115; ++i) absl::StrAppend(&vocab, "##part", i, "\n");
    tokenizer_ = *NewWordPieceTokenizer(vocab, {});
  }
  static std::vector<int32_t> WordsFrom(int32_t first, int count) {
    std::vector<int32_t> ids(count);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }
  static PairDocuments One(const std::vector<std::vector<int32_t>>& parts) {
    PairDocuments documents;
    for (const auto& part : parts) documents.parts.Add(part);
    documents.offsets.push_back(documents.parts.size());
    return documents;
  }
  // A text's ids without the special tokens around them.
  static std::vector<int32_t> Inner(const Encoding& text) {
    EXPECT_EQ(text.ids.front(), 2);
    EXPECT_EQ(text.ids.back(), 3);
    return {text.ids.begin() + 1, text.ids.end() - 1};
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::mt19937_64 random_{1};
};

TEST_F(TextPairsTest, TheFirstPartMeetsEachOther) {
  const PairMaker maker(*tokenizer_, 32);
  const std::vector<std::vector<int32_t>> parts = {
      WordsFrom(5, 2), WordsFrom(20, 3), WordsFrom(40, 4)};
  EXPECT_EQ(maker.Ways(parts), 2);
  const PairDocuments documents = One(parts);
  std::set<std::vector<int32_t>> rights;
  for (int i = 0; i < 50; ++i) {
    const TextPair pair = maker.Draw(documents, 0, &random_);
    EXPECT_EQ(Inner(pair.left), parts[0]);
    rights.insert(Inner(pair.right));
  }
  EXPECT_THAT(rights, UnorderedElementsAre(parts[1], parts[2]));
  EXPECT_EQ(maker.MaxTokens(documents, 0), 4 + 6);
}

TEST_F(TextPairsTest, ALoneTextIsCroppedTwiceByWholeWords) {
  const PairMaker maker(*tokenizer_, 64);
  std::vector<int32_t> text;
  for (int word = 0; word < 20; ++word) {
    text.push_back(5 + word);
    text.push_back(105 + word % 10);
  }
  EXPECT_EQ(maker.Ways({text}), 1);
  const PairDocuments documents = One({text});
  std::set<size_t> sizes;
  for (int i = 0; i < 300; ++i) {
    const TextPair pair = maker.Draw(documents, 0, &random_);
    for (const Encoding* const half : {&pair.left, &pair.right}) {
      const std::vector<int32_t> ids = Inner(*half);
      EXPECT_NE(std::search(text.begin(), text.end(), ids.begin(), ids.end()),
                text.end());
      EXPECT_LT(ids.front(), 105) << "begins inside a word";
      EXPECT_GE(ids.back(), 105) << "ends inside a word";
      sizes.insert(ids.size() / 2);
    }
    EXPECT_LE(pair.left.ids.size() + pair.right.ids.size(),
              maker.MaxTokens(documents, 0));
  }
  // A fifth to three fifths of 20 words, all of it.
  EXPECT_EQ(*sizes.begin(), 4);
  EXPECT_EQ(*sizes.rbegin(), 12);
  EXPECT_EQ(sizes.size(), 9);
}

TEST_F(TextPairsTest, ShortTextsAloneAreOfNoUse) {
  const PairMaker maker(*tokenizer_, 32);
  EXPECT_EQ(maker.Ways({}), 0);
  EXPECT_EQ(maker.Ways({WordsFrom(5, PairMaker::kMinCropWords - 1)}), 0);
  EXPECT_EQ(maker.Ways({WordsFrom(5, PairMaker::kMinCropWords)}), 1);
  EXPECT_EQ(maker.Ways({WordsFrom(5, 1), WordsFrom(9, 1)}), 1);
}

TEST_F(TextPairsTest, LongTextsAreCut) {
  const PairMaker maker(*tokenizer_, 8);
  const PairDocuments documents = One({WordsFrom(5, 20), WordsFrom(30, 3)});
  for (int i = 0; i < 20; ++i) {
    const TextPair pair = maker.Draw(documents, 0, &random_);
    EXPECT_LE(pair.left.ids.size(), 8);
    EXPECT_LE(pair.right.ids.size(), 8);
  }
  EXPECT_EQ(maker.MaxTokens(documents, 0), 16);
}

TEST_F(TextPairsTest, TheSameGeneratorDrawsTheSame) {
  const PairMaker maker(*tokenizer_, 64);
  const PairDocuments documents = One({WordsFrom(5, 60)});
  std::mt19937_64 one(4), two(4);
  EXPECT_EQ(maker.Draw(documents, 0, &one).right.ids,
            maker.Draw(documents, 0, &two).right.ids);
}

}  // namespace
}  // namespace vitrine
