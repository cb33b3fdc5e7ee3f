#include "trainer/masking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;

// Pieces 5 … 504 are words, 505 … 604 go on with one.
constexpr int32_t kFirstWord = 5, kFirstPart = 505, kEnd = 605;

std::unique_ptr<Tokenizer> Words() {
  std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (int i = kFirstWord; i < kFirstPart; ++i) {
    absl::StrAppend(&vocab, "word", i, "\n");
  }
  for (int i = kFirstPart; i < kEnd; ++i) {
    absl::StrAppend(&vocab, "##part", i, "\n");
  }
  auto tokenizer = NewWordPieceTokenizer(vocab, {});
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// `size` tokens; about a third go on with the word before them, none of which
// has more than four.
std::vector<int32_t> RandomText(int size, std::mt19937_64* random) {
  std::vector<int32_t> ids;
  for (int of_word = 0; ids.size() < size;) {
    const uint64_t draw = (*random)();
    of_word = draw % 3 == 0 && of_word > 0 && of_word < 4 ? of_word + 1 : 1;
    ids.push_back(of_word > 1
                      ? kFirstPart + static_cast<int32_t>(draw / 3 % 100)
                      : kFirstWord + static_cast<int32_t>(draw / 3 % 500));
  }
  return ids;
}

// A tokenizer of given pieces, for what is asked of them alone.
class Pieces : public Tokenizer {
 public:
  explicit Pieces(std::vector<std::string> pieces) : pieces_(pieces) {
    special_ = {.cls = 0, .sep = 1, .pad = 2, .unk = 3, .mask = 4};
  }
  Tokens Tokenize(std::string_view, size_t) const override { return {}; }
  const SpecialTokens& special() const override { return special_; }
  int32_t vocab_size() const override {
    return static_cast<int32_t>(pieces_.size());
  }
  std::string_view kind() const override { return "sentencepiece"; }
  std::string_view digest() const override { return "pieces"; }
  std::string Piece(int32_t id) const override { return pieces_[id]; }

 private:
  const std::vector<std::string> pieces_;
  SpecialTokens special_;
};

TEST(WordMaskerTest, HidesTheSharesThatAreAskedFor) {
  const auto tokenizer = Words();
  const WordMasker masker(*tokenizer, {});
  std::mt19937_64 random(7);
  int64_t tokens = 0, hidden = 0, words = 0, masked = 0, kept = 0;
  for (int text = 0; text < 4000; ++text) {
    const std::vector<int32_t> ids = RandomText(5 + text % 60, &random);
    const MaskedText out = masker.Mask(ids, &random);
    tokens += ids.size();
    hidden += out.places.size();
    for (size_t i = 0; i < out.places.size(); ++i) {
      if (out.targets[i] >= kFirstPart) continue;  // by words
      ++words;
      const int32_t now = out.ids[out.places[i]];
      masked += now == tokenizer->special().mask;
      kept += now == out.targets[i];
    }
  }
  // One word at least, and at most a token above the share, in each text.
  EXPECT_NEAR(static_cast<double>(hidden) / tokens, 0.155, 0.01);
  const auto share = [&](int64_t n) { return static_cast<double>(n) / words; };
  EXPECT_NEAR(share(masked), 0.8, 0.01);
  EXPECT_NEAR(share(kept), 0.1, 0.01);
  EXPECT_NEAR(share(words - masked - kept), 0.1, 0.01);
}

TEST(WordMaskerTest, HidesWholeWordsInOneWay) {
  const auto tokenizer = Words();
  const WordMasker masker(*tokenizer, {});
  std::mt19937_64 random(8);
  for (int text = 0; text < 500; ++text) {
    const std::vector<int32_t> ids = RandomText(40, &random);
    const MaskedText out = masker.Mask(ids, &random);
    std::vector<bool> hidden(out.ids.size());
    for (const int32_t place : out.places) hidden[place] = true;
    for (size_t i = 1; i < ids.size(); ++i) {
      if (ids[i] < kFirstPart) continue;
      ASSERT_EQ(hidden[i + 1], hidden[i]) << "text " << text << " token " << i;
      ASSERT_EQ(out.ids[i + 1] == tokenizer->special().mask,
                out.ids[i] == tokenizer->special().mask);
    }
  }
}

TEST(WordMaskerTest, LeavesSpecialTokensAlone) {
  const auto tokenizer = Words();
  MaskingOptions options;
  options.share = 0.6;
  options.substitute = 0.5;
  const WordMasker masker(*tokenizer, options);
  const SpecialTokens& special = tokenizer->special();
  std::mt19937_64 random(9);
  for (int text = 0; text < 500; ++text) {
    const std::vector<int32_t> ids = RandomText(1 + text % 30, &random);
    const MaskedText out = masker.Mask(ids, &random);
    ASSERT_EQ(out.ids.size(), ids.size() + 2);
    EXPECT_EQ(out.ids.front(), special.cls);
    EXPECT_EQ(out.ids.back(), special.sep);
    ASSERT_FALSE(out.places.empty());
    int32_t before = 0;  // [CLS]
    for (size_t i = 0; i < out.places.size(); ++i) {
      ASSERT_GT(out.places[i], before);
      before = out.places[i];
      ASSERT_LE(out.places[i], ids.size());
      ASSERT_EQ(out.targets[i], ids[out.places[i] - 1]);
    }
    // None comes in by chance either.
    for (size_t i = 1; i + 1 < out.ids.size(); ++i) {
      ASSERT_TRUE(out.ids[i] >= kFirstWord || out.ids[i] == special.mask);
    }
  }
}

TEST(WordMaskerTest, TheSameGeneratorHidesTheSame) {
  const auto tokenizer = Words();
  const WordMasker masker(*tokenizer, {});
  std::mt19937_64 random(10);
  const std::vector<int32_t> ids = RandomText(50, &random);
  std::mt19937_64 one(3), two(3), other(4);
  const MaskedText first = masker.Mask(ids, &one);
  EXPECT_EQ(masker.Mask(ids, &two).ids, first.ids);
  EXPECT_NE(masker.Mask(ids, &other).ids, first.ids);
}

TEST(WordMaskerTest, FindsWordsBySpacesSignsAndScripts) {
  const Pieces pieces({"[CLS]", "[SEP]", "<pad>", "<unk>", "[MASK]", "▁sofa",
                       "s", ",", "▁", "grün", "<0xC3>", "<0xA9>", "沙", "发",
                       "▁3", "x"});
  const WordMasker masker(pieces, {});
  // "sofas, grün" with a lone space; the comma is a word.
  EXPECT_THAT(masker.WordStarts({5, 6, 7, 8, 9}), ElementsAre(0, 2, 3));
  // "sofa" with bytes of a letter behind it.
  EXPECT_THAT(masker.WordStarts({5, 10, 11, 5}), ElementsAre(0, 3));
  // Each ideograph by itself, and what follows one.
  EXPECT_THAT(masker.WordStarts({5, 12, 13, 6}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(masker.WordStarts({14, 15, 7, 15}), ElementsAre(0, 2, 3));
  // A text without spaces is cut.
  const std::vector<int32_t> longest(WordMasker::kMaxWordTokens + 2, 6);
  EXPECT_THAT(masker.WordStarts(longest),
              ElementsAre(0, WordMasker::kMaxWordTokens));
}

}  // namespace
}  // namespace vitrine
