#include "trainer/source_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/testing/temp_folder.h"
#include "tests/testing/tiny_model.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class SourceModelTest : public ::testing::Test {
 protected:
  std::string Tiny(const testing::TinyModelOptions& options = {}) {
    const std::string path = folder_.File("hf");
    EXPECT_TRUE(testing::WriteTinyModel(path, options).ok());
    return path;
  }

  TempFolder folder_;
};

TEST_F(SourceModelTest, FindsTheHeadOfAHuggingFaceFolder) {
  const auto source = LoadSourceModel(Tiny());
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->manifest.heads_size(), 1);
  EXPECT_EQ((*source)->manifest.heads(0).kind(), internal::HEAD_KIND_RELEVANCE);
  EXPECT_EQ((*source)->checkpoint.heads.count("relevance.out_proj.weight"), 1);
}

TEST_F(SourceModelTest, TheHeadReadsWhatConfigJsonSays) {
  const std::string folder = Tiny();
  const auto pooling = [&folder] {
    return (*LoadSourceModel(folder))->manifest.heads(0).pooling();
  };
  EXPECT_EQ(pooling(), internal::POOLING_CLS);
  const std::string config = *ReadFile(folder + "/config.json");
  const auto write = [&](const std::string& field) {
    ASSERT_TRUE(WriteFile(folder + "/config.json",
                          "{\"classifier_pooling\": " + field + "," +
                              config.substr(config.find('{') + 1))
                    .ok());
  };
  write("\"mean\"");
  EXPECT_EQ(pooling(), internal::POOLING_MEAN);
  write("\"max\"");
  EXPECT_THAT(std::string(LoadSourceModel(folder).status().message()),
              HasSubstr("classifier_pooling: neither \"cls\" nor \"mean\""));
}

TEST_F(SourceModelTest, ReadsAVersionWithItsHeads) {
  testing::TinyModelOptions options;
  options.heads = testing::AllHeads();
  const auto source = LoadSourceModel(Tiny(options));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->manifest.model(), "tiny");
  EXPECT_EQ((*source)->heads().size(), 4);
}

TEST_F(SourceModelTest, ATokenizerLargerThanTheEncoderIsAnError) {
  const std::string path = Tiny();
  const std::string vocab = *ReadFile(path + "/vocab.txt");
  ASSERT_TRUE(WriteFile(path + "/vocab.txt", vocab + "onemore\n").ok());
  const auto source = LoadSourceModel(path);
  EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(source.status().message()),
              AllOf(HasSubstr("vocab_size"), HasSubstr("pieces")));
}

TEST_F(SourceModelTest, NamesResolveToVersions) {
  const ModelRegistry registry(folder_.File("registry"));
  for (int i = 0; i < 2; ++i) {
    const std::string staging = *registry.NewStagingFolder("shop");
    ASSERT_TRUE(WriteFile(staging + "/f", "x").ok());
    ASSERT_TRUE(registry.Publish("shop", staging, {}).ok());
  }
  EXPECT_EQ(*ResolveSource("shop", registry),
            registry.VersionFolder("shop", 2));
  EXPECT_EQ(*ResolveSource("shop/1", registry),
            registry.VersionFolder("shop", 1));
  ASSERT_TRUE(registry.WriteCurrent("shop", 1).ok());
  EXPECT_EQ(*ResolveSource("shop", registry),
            registry.VersionFolder("shop", 1));
  EXPECT_EQ(*ResolveSource(folder_.path(), registry), folder_.path());
  for (const char* const wrong :
       {"shop/3", "shop/x", "nothing", "a/b/c", "../shop", ""}) {
    EXPECT_EQ(ResolveSource(wrong, registry).status().code(),
              absl::StatusCode::kNotFound)
        << wrong;
  }
}

TEST_F(SourceModelTest, AFullDiskIsSaidBeforeWork) {
  EXPECT_TRUE(CheckFreeDisk(folder_.path(), 1).ok());
  const absl::Status full =
      CheckFreeDisk(folder_.File("not/there/yet"), int64_t{1} << 60);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("not/there/yet"));
}

}  // namespace
}  // namespace vitrine
