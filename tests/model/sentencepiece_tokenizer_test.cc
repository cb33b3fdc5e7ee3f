#include "model/sentencepiece_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"

namespace vitrine {
namespace {

using std::string_literals::operator""s;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string Model(const std::string& name) {
  auto bytes = ReadFile(std::string(VITRINE_TEST_DATA) + "/tokenizer/" + name);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return *std::move(bytes);
}

std::unique_ptr<Tokenizer> Make(const std::string& name,
                                const SentencePieceOptions& options) {
  std::string error;
  auto made = NewSentencePieceTokenizer(Model(name), options, &error);
  EXPECT_NE(made, nullptr) << error;
  return made;
}

std::unique_ptr<Tokenizer> XlmRoberta() {
  return Make("xlmr.model", {.layout = SentencePieceLayout::kOffsetByOne});
}

std::string Error(std::string_view model, SentencePieceLayout layout) {
  std::string error;
  EXPECT_EQ(NewSentencePieceTokenizer(model, {.layout = layout}, &error),
            nullptr);
  return error;
}

// Pieces joined: the text as the model sees it, with ▁ for spaces.
std::string Joined(const Tokenizer& tokenizer, const Tokens& tokens) {
  std::string text;
  for (const int32_t id : tokens.ids) text += tokenizer.Piece(id);
  return text;
}

TEST(SentencePiece, XlmRobertasSpecialTokensAreFairseqs) {
  const auto t = XlmRoberta();
  const SpecialTokens& special = t->special();
  EXPECT_EQ(special.cls, 0);
  EXPECT_EQ(special.pad, 1);
  EXPECT_EQ(special.sep, 2);
  EXPECT_EQ(special.unk, 3);
  EXPECT_EQ(special.mask, t->vocab_size() - 1);
  EXPECT_TRUE(special.double_separator);
  EXPECT_EQ(t->kind(), "sentencepiece");
  EXPECT_EQ(t->Piece(0), "<s>");
  EXPECT_EQ(t->Piece(1), "<pad>");
  EXPECT_EQ(t->Piece(2), "</s>");
  EXPECT_EQ(t->Piece(3), "<unk>");
  EXPECT_EQ(t->Piece(special.mask), "<mask>");
  EXPECT_EQ(t->Piece(special.mask + 1), "");
  EXPECT_EQ(t->Piece(-1), "");
  // A character that the model has never seen, and no special token.
  EXPECT_THAT(t->Tokenize("\u0D9E", 8).ids, Contains(3));
  EXPECT_THAT(t->Tokenize("<s> </s> <mask> <pad>", 64).ids,
              Not(Contains(testing::AnyOf(0, 1, 2, special.mask))));
}

TEST(SentencePiece, AlbertsSpecialTokensAreItsOwnPieces) {
  const auto t = Make("albert.model", {});
  EXPECT_EQ(t->special().pad, 0);
  EXPECT_EQ(t->special().unk, 1);
  EXPECT_EQ(t->special().cls, 2);
  EXPECT_EQ(t->special().sep, 3);
  EXPECT_EQ(t->special().mask, 4);
  EXPECT_FALSE(t->special().double_separator);
  EXPECT_EQ(t->Piece(2), "[CLS]");
  EXPECT_THAT(t->Tokenize("[CLS][SEP]", 64).ids,
              Not(Contains(testing::AnyOf(2, 3))));
}

TEST(SentencePiece, UnknownCharactersFallBackToBytesWhereTheModelHasThem) {
  const auto t = Make("albert.model", {});
  EXPECT_THAT(Joined(*t, t->Tokenize("\u0D9E", 8)),
              HasSubstr("<0xE0><0xB6><0x9E>"));
}

TEST(SentencePiece, ANullByteDoesNotEndTheText) {
  const auto albert = Make("albert.model", {});
  const std::string joined =
      Joined(*albert, albert->Tokenize("sofa\0sofa"s, 64));
  EXPECT_EQ(joined, "▁sofa<0x00>sofa");
  const auto xlmr = XlmRoberta();
  EXPECT_EQ(xlmr->Tokenize("sofa\0sofa"s, 64).ids.front(),
            xlmr->Tokenize("sofa", 64).ids.front());
  EXPECT_GT(xlmr->Tokenize("sofa\0sofa"s, 64).ids.size(),
            xlmr->Tokenize("sofa", 64).ids.size());
}

TEST(SentencePiece, FoldsAsAlbertDoesWhereAsked) {
  const auto plain = Make("albert.model", {});
  const auto folded =
      Make("albert.model", {.lower_case = true, .strip_accents = true});
  EXPECT_EQ(folded->Tokenize("CAFÉ Sofa", 64).ids,
            plain->Tokenize("cafe sofa", 64).ids);
  const auto lower = Make("albert.model", {.lower_case = true});
  EXPECT_EQ(lower->Tokenize("CAFÉ", 64).ids, plain->Tokenize("café", 64).ids);
  EXPECT_NE(plain->Tokenize("CAFÉ", 64).ids, plain->Tokenize("café", 64).ids);
}

TEST(SentencePiece, ADigestNamesTheModelAndItsOptions) {
  const auto albert = Make("albert.model", {});
  EXPECT_EQ(Make("albert.model", {})->digest(), albert->digest());
  EXPECT_NE(Make("albert.model", {.lower_case = true})->digest(),
            albert->digest());
  EXPECT_NE(Make("albert.model", {.strip_accents = true})->digest(),
            albert->digest());
  EXPECT_NE(XlmRoberta()->digest(), albert->digest());
}

TEST(SentencePiece, CutsLongTextsToAPrefixOfTheirIds) {
  for (const auto& t : {XlmRoberta(), Make("albert.model", {})}) {
    std::string text;
    for (int i = 0; i < 3000; ++i) {
      text += "sofa " + std::to_string(i) + " 沙发床双人灰色 größe" +
              (i % 7 == 0 ? "   " : " ");
    }
    const Tokens whole = t->Tokenize(text, 1 << 20);
    EXPECT_FALSE(whole.truncated);
    ASSERT_GT(whole.ids.size(), 20000);
    for (const size_t budget : {0, 1, 31, 128, 512, 5000}) {
      const Tokens cut = t->Tokenize(text, budget);
      EXPECT_TRUE(cut.truncated) << budget;
      EXPECT_TRUE(std::equal(cut.ids.begin(), cut.ids.end(), whole.ids.begin()))
          << budget;
      EXPECT_EQ(cut.ids.size(), budget);
    }
    EXPECT_FALSE(t->Tokenize(text, whole.ids.size()).truncated);
  }
}

TEST(SentencePiece, LooksFurtherWhereTheFirstBytesGiveNoTokens) {
  const auto t = XlmRoberta();  // its normalisation drops extra spaces
  const Tokens tokens = t->Tokenize(std::string(50000, ' ') + "sofa", 8);
  EXPECT_EQ(tokens.ids, t->Tokenize("sofa", 8).ids);
  EXPECT_FALSE(tokens.truncated);
}

TEST(SentencePiece, HugeTextsAreReadNoFurtherThanTheirTokensNeed) {
  const auto t = XlmRoberta();
  constexpr size_t kHuge = 10 << 20;
  const Tokens word = t->Tokenize(std::string(kHuge, 'x'), 32);
  EXPECT_LE(word.ids.size(), 32);
  EXPECT_FALSE(word.ids.empty());
  EXPECT_TRUE(word.truncated);
  const Tokens nothing = t->Tokenize(std::string(kHuge, ' '), 32);
  EXPECT_THAT(nothing.ids, IsEmpty());
  EXPECT_TRUE(nothing.truncated);
}

TEST(SentencePiece, ThreadsShareATokenizer) {
  const auto t = XlmRoberta();
  const Tokens want = t->Tokenize("Diván-cama gris, 沙发床 größe", 64);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 200; ++n) {
        wrong[i] +=
            t->Tokenize("Diván-cama gris, 沙发床 größe", 64).ids != want.ids;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(SentencePiece, RefusesWhatIsNoModel) {
  for (const std::string& bytes :
       {""s, "[PAD]\n[UNK]\n"s, "\0\0\0\0"s, std::string(1000, '\xFF')}) {
    EXPECT_THAT(Error(bytes, SentencePieceLayout::kOwnIds),
                HasSubstr("not a SentencePiece model"));
  }
}

TEST(SentencePiece, SurvivesATruncatedModel) {
  const std::string model = Model("albert.model");
  for (size_t size = 0; size < model.size(); size += 97) {
    std::string error;
    const auto t = NewSentencePieceTokenizer(
        std::string_view(model).substr(0, size), {}, &error);
    if (t == nullptr) {
      EXPECT_FALSE(error.empty()) << size;
    } else {
      t->Tokenize("sofa \u0D9E", 8);
    }
  }
}

TEST(SentencePiece, NamesThePieceThatALayoutLacks) {
  EXPECT_EQ(Error(Model("albert.model"), SentencePieceLayout::kOffsetByOne),
            "piece 0 is not <unk>, as the XLM-R layout has it");
  EXPECT_EQ(Error(Model("xlmr.model"), SentencePieceLayout::kOwnIds),
            "no piece is [CLS], as the ALBERT layout has it");
}

}  // namespace
}  // namespace vitrine
