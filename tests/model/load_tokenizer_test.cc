#include "model/load_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kVocab[] =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]"
    "\nsofa\nSofa\ncafé\ncafe\n沙\n发\n沙发\n";

class LoadTokenizerTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, absl::string_view data) {
    ASSERT_TRUE(WriteFile(folder_.File(name), data).ok());
  }
  void Copy(const std::string& name, const std::string& as) {
    const auto data =
        ReadFile(std::string(VITRINE_TEST_DATA) + "/tokenizer/" + name);
    ASSERT_TRUE(data.ok()) << data.status();
    Write(as, *data);
  }
  std::vector<int32_t> Ids(std::string_view text) {
    const auto tokenizer = LoadTokenizer(folder_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? (*tokenizer)->Tokenize(text, 64).ids
                          : std::vector<int32_t>();
  }
  std::string Error(absl::StatusCode code) {
    const absl::Status status = LoadTokenizer(folder_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
    return std::string(status.message());
  }

  TempFolder folder_;
};

TEST_F(LoadTokenizerTest, WithoutAConfigBertIsUncased) {
  Write("vocab.txt", kVocab);
  EXPECT_THAT(Ids("SOFA café 沙发"), ElementsAre(5, 8, 9, 10));
}

TEST_F(LoadTokenizerTest, ADigestNamesTheFilesContentAndOptions) {
  const auto digest = [this] {
    const auto tokenizer = LoadTokenizer(folder_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return std::string((*tokenizer)->digest());
  };
  Write("vocab.txt", kVocab);
  const std::string first = digest();
  EXPECT_EQ(digest(), first);
  // What is the default changes nothing when it is said.
  Write("tokenizer_config.json", R"({"do_lower_case": true})");
  EXPECT_EQ(digest(), first);
  Write("tokenizer_config.json", R"({"do_lower_case": false})");
  EXPECT_NE(digest(), first);
  Write("tokenizer_config.json", "{}");
  Write("vocab.txt", absl::StrCat(kVocab, "fauteuil\n"));
  EXPECT_NE(digest(), first);
}

TEST_F(LoadTokenizerTest, HonoursDoLowerCase) {
  Write("vocab.txt", kVocab);
  Write("tokenizer_config.json", R"({"do_lower_case": false})");
  // Accents follow it.
  EXPECT_THAT(Ids("SOFA Sofa café"), ElementsAre(1, 6, 7));
}

TEST_F(LoadTokenizerTest, HonoursStripAccents) {
  Write("vocab.txt", kVocab);
  Write("tokenizer_config.json",
        R"({"do_lower_case": true, "strip_accents": false})");
  EXPECT_THAT(Ids("SOFA CAFÉ"), ElementsAre(5, 7));
  Write("tokenizer_config.json",
        R"({"do_lower_case": false, "strip_accents": true})");
  EXPECT_THAT(Ids("Sofa café"), ElementsAre(6, 8));
  Write("tokenizer_config.json",
        R"({"do_lower_case": true, "strip_accents": null})");
  EXPECT_THAT(Ids("CAFÉ"), ElementsAre(8));
}

TEST_F(LoadTokenizerTest, HonoursTokenizeChineseChars) {
  Write("vocab.txt", kVocab);
  Write("tokenizer_config.json", R"({"tokenize_chinese_chars": false})");
  EXPECT_THAT(Ids("沙发"), ElementsAre(11));
}

TEST_F(LoadTokenizerTest, VocabTxtGoesBeforeSentencePiece) {
  Write("vocab.txt", kVocab);
  Copy("xlmr.model", "sentencepiece.bpe.model");
  EXPECT_THAT(Ids("sofa"), ElementsAre(5));
  EXPECT_THAT(TokenizerFiles(folder_.path()), ElementsAre("vocab.txt"));
}

TEST_F(LoadTokenizerTest, TheFilesNameTellsTheLayout) {
  Copy("xlmr.model", "sentencepiece.bpe.model");
  // Never looked at by what made such models, though their folders have it.
  Write("tokenizer_config.json",
        R"({"tokenizer_class": "XLMRobertaTokenizerFast",
            "do_lower_case": true})");
  EXPECT_THAT(TokenizerFiles(folder_.path()),
              ElementsAre("sentencepiece.bpe.model", "tokenizer_config.json"));
  auto xlmr = LoadTokenizer(folder_.path());
  ASSERT_TRUE(xlmr.ok()) << xlmr.status();
  EXPECT_TRUE((*xlmr)->special().double_separator);
  EXPECT_NE((*xlmr)->Tokenize("Two", 8).ids, (*xlmr)->Tokenize("two", 8).ids);

  TempFolder other;
  for (const std::string name : {"spiece.model", "spm.model"}) {
    const auto model =
        ReadFile(std::string(VITRINE_TEST_DATA) + "/tokenizer/albert.model");
    ASSERT_TRUE(WriteFile(other.File(name), *model).ok());
    const auto albert = LoadTokenizer(other.path());
    ASSERT_TRUE(albert.ok()) << albert.status();
    EXPECT_FALSE((*albert)->special().double_separator);
    std::remove(other.File(name).c_str());
  }
}

TEST_F(LoadTokenizerTest, HonoursAlbertsFlags) {
  Copy("albert.model", "spiece.model");
  const auto plain = Ids("CAFÉ"), lower = Ids("café"), stripped = Ids("cafe");
  EXPECT_NE(plain, lower);
  Write("tokenizer_config.json",
        R"({"tokenizer_class": "AlbertTokenizer", "do_lower_case": true})");
  EXPECT_EQ(Ids("CAFÉ"), stripped);
  Write("tokenizer_config.json",
        R"({"do_lower_case": true, "keep_accents": true})");
  EXPECT_EQ(Ids("CAFÉ"), lower);
}

TEST_F(LoadTokenizerTest, ClassesThatReadTheFilesAsWeDoAreTaken) {
  Write("vocab.txt", kVocab);
  for (const std::string name :
       {"BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer",
        "ElectraTokenizerFast", "PreTrainedTokenizerFast"}) {
    Write("tokenizer_config.json", "{\"tokenizer_class\": \"" + name + "\"}");
    EXPECT_THAT(Ids("sofa"), ElementsAre(5)) << name;
  }
  Write("tokenizer_config.json", R"({"tokenizer_class": null})");
  EXPECT_THAT(Ids("sofa"), ElementsAre(5));
}

TEST_F(LoadTokenizerTest, ClassesThatReadTheFilesOtherwiseAreRefused) {
  Write("vocab.txt", kVocab);
  Write("tokenizer_config.json",
        R"({"tokenizer_class": "BertJapaneseTokenizer"})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("tokenizer_config.json: tokenizer_class: "
                        "BertJapaneseTokenizer is not supported; these are: "
                        "BertTokenizer, "));
  Write("tokenizer_config.json",
        R"({"tokenizer_class": "XLMRobertaTokenizer"})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("XLMRobertaTokenizer does not read vocab.txt"));
}

TEST_F(LoadTokenizerTest, NamesTheFieldOfABadConfig) {
  Write("vocab.txt", kVocab);
  Write("tokenizer_config.json", R"({"do_lower_case": "yes"})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("tokenizer_config.json: do_lower_case: \"yes\" is not "
                        "true or false"));
  Write("tokenizer_config.json", R"({"tokenizer_class": 7})");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("tokenizer_class: 7 is not a string"));
  const std::string deep(1 << 20, '[');
  Write("tokenizer_config.json",
        "{\"do_lower_case\": " + deep + std::string(deep.size(), ']') + "}");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("do_lower_case: array is not true or false"));
  for (const std::string text : {"", "[]", "{\"do_lower_case\":", "\xFF"}) {
    Write("tokenizer_config.json", text);
    EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
                HasSubstr("tokenizer_config.json: not a JSON object"));
  }
}

TEST_F(LoadTokenizerTest, NamesTheFileAndTheLineOfABadVocabulary) {
  Write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n\xC3\n");
  EXPECT_THAT(
      Error(absl::StatusCode::kInvalidArgument),
      HasSubstr("vocab.txt: vocabulary line 5: invalid UTF-8 at byte 0"));
}

TEST_F(LoadTokenizerTest, NamesABadSentencePieceModel) {
  Write("spiece.model", "nonsense");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              HasSubstr("spiece.model: not a SentencePiece model"));
}

TEST_F(LoadTokenizerTest, AnEmptyFolderListsWhatWasLookedFor) {
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              HasSubstr("no tokenizer: looked for vocab.txt, "
                        "sentencepiece.bpe.model, spiece.model, spm.model"));
  EXPECT_THAT(TokenizerFiles(folder_.path()), IsEmpty());
}

TEST_F(LoadTokenizerTest, SaysThatTokenizerJsonAloneIsNotEnough) {
  Write("tokenizer.json", "{}");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              HasSubstr("tokenizer.json is there, but is not supported alone"));
  Write("merges.txt", "");
  EXPECT_THAT(Error(absl::StatusCode::kNotFound),
              HasSubstr("byte-level BPE is not supported"));
}

}  // namespace
}  // namespace vitrine
