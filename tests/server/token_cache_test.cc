#include "server/token_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/load_tokenizer.h"
#include "tests/testing/fake_model.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

v1::Item Titled(const std::string& title) {
  v1::Item item;
  item.set_title(title);
  return item;
}

// A tokenizer and what splits texts with it.
struct Splitter {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Featurizer> featurizer;
};

Splitter NewSplitter(const internal::EncodingOptions& options = {},
                     const WordPieceOptions& tokenizer = {},
                     int64_t segments = 2, const std::string& more = "") {
  Splitter out;
  out.tokenizer = *NewWordPieceTokenizer(
      absl::StrJoin(testing::TinyVocabulary(), "\n") + more, tokenizer);
  EncoderConfig encoder = testing::TinyConfig();
  encoder.type_vocab_size = segments;
  out.featurizer = std::make_unique<Featurizer>(
      *out.tokenizer, *ResolveEncodingOptions(options, encoder), encoder);
  return out;
}

class TokenCacheTest : public ::testing::Test {
 protected:
  CacheMetrics metrics() { return {&hits_, &misses_, &bytes_}; }

  prometheus::Counter hits_, misses_;
  prometheus::Gauge bytes_;
};

TEST_F(TokenCacheTest, GivesWhatTheFeaturizerGives) {
  const Splitter splitter = NewSplitter({}, {}, /*segments=*/4);
  TokenCache cache(1 << 20, metrics());
  const v1::Item item = Titled("Red SOFAS, " + std::string(200, 'y'));
  const auto expected = splitter.featurizer->ItemText(item);
  ASSERT_TRUE(expected.ok());
  ASSERT_FALSE(expected->words.empty());
  for (int i = 0; i < 3; ++i) {
    const auto tokens = cache.ItemText(*splitter.featurizer, item);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ((*tokens)->ids, expected->ids);
    EXPECT_EQ((*tokens)->words, expected->words);
    EXPECT_EQ((*tokens)->truncated, expected->truncated);
  }
  EXPECT_EQ(hits_.Value(), 2);
  EXPECT_EQ(misses_.Value(), 1);
}

TEST_F(TokenCacheTest, VersionsOfOneTokenizerShareTheirEntries) {
  const FakeModel one = NewFakeModel({.version = 1});
  const FakeModel two = NewFakeModel({.version = 2});
  TokenCache cache(1 << 20, metrics());
  ASSERT_TRUE(cache.ItemText(one.model->featurizer(), Titled("sofa")).ok());
  ASSERT_TRUE(cache.ItemText(two.model->featurizer(), Titled("sofa")).ok());
  EXPECT_EQ(hits_.Value(), 1);
}

TEST_F(TokenCacheTest, BudgetsThatItemsDoNotMeetDoNotMatter) {
  internal::EncodingOptions longer_queries;
  longer_queries.set_max_query_tokens(20);
  longer_queries.set_max_history_item_tokens(3);
  TokenCache cache(1 << 20, metrics());
  for (const internal::EncodingOptions& options :
       {internal::EncodingOptions(), longer_queries}) {
    const Splitter splitter = NewSplitter(options);
    ASSERT_TRUE(cache.ItemText(*splitter.featurizer, Titled("sofa")).ok());
  }
  EXPECT_EQ(hits_.Value(), 1);
}

TEST_F(TokenCacheTest, OtherTokenizersAndEncodingsAreNoHits) {
  internal::EncodingOptions shorter, titles, brands, categories, attributes,
      descriptions;
  shorter.set_max_tokens(64);
  titles.set_max_title_tokens(3);
  brands.set_max_brand_tokens(3);
  categories.set_max_categories_tokens(3);
  attributes.set_max_attributes_tokens(3);
  descriptions.set_max_description_tokens(-1);
  std::vector<Splitter> splitters;
  for (const auto& options : {internal::EncodingOptions(), shorter, titles,
                              brands, categories, attributes, descriptions}) {
    splitters.push_back(NewSplitter(options));
  }
  splitters.push_back(NewSplitter({}, {.lower_case = false}));
  splitters.push_back(NewSplitter({}, {.strip_accents = false}));
  splitters.push_back(NewSplitter({}, {.split_cjk = false}));
  splitters.push_back(NewSplitter({}, {.max_word_chars = 50}));
  splitters.push_back(NewSplitter({}, {}, /*segments=*/4));
  splitters.push_back(NewSplitter({}, {}, 2, "\nfauteuil"));
  TokenCache cache(1 << 20, metrics());
  for (const Splitter& splitter : splitters) {
    ASSERT_TRUE(cache.ItemText(*splitter.featurizer, Titled("sofa")).ok());
  }
  EXPECT_EQ(hits_.Value(), 0);
  for (const Splitter& splitter : splitters) {
    ASSERT_TRUE(cache.ItemText(*splitter.featurizer, Titled("sofa")).ok());
  }
  EXPECT_EQ(hits_.Value(), splitters.size());
}

TEST_F(TokenCacheTest, StaysUnderItsBound) {
  const Splitter splitter = NewSplitter();
  TokenCache cache(20000, metrics());
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(
        cache.ItemText(*splitter.featurizer, Titled(absl::StrCat("sofa ", i)))
            .ok());
    EXPECT_LE(cache.bytes(), 20000);
    EXPECT_EQ(cache.bytes(), bytes_.Value());
  }
  EXPECT_GT(cache.bytes(), 15000);
}

TEST_F(TokenCacheTest, KeepsNothingWhenOff) {
  const Splitter splitter = NewSplitter();
  TokenCache cache(-1, metrics());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(cache.ItemText(*splitter.featurizer, Titled("sofa")).ok());
  }
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_EQ(hits_.Value() + misses_.Value(), 0);
}

TEST_F(TokenCacheTest, ErrorsAreGivenEachTime) {
  const Splitter splitter = NewSplitter();
  TokenCache cache(1 << 20, metrics());
  for (int i = 0; i < 2; ++i) {
    const auto empty = cache.ItemText(*splitter.featurizer, Titled(""));
    EXPECT_TRUE(absl::IsInvalidArgument(empty.status()));
    const auto bad = cache.ItemText(*splitter.featurizer, Titled("\xFF"));
    EXPECT_THAT(std::string(bad.status().message()), HasSubstr("title"));
  }
  EXPECT_EQ(cache.bytes(), 0);
}

TEST_F(TokenCacheTest, VeryLongTextsAreSplitEachTime) {
  const Splitter splitter = NewSplitter();
  TokenCache cache(1 << 20, metrics());
  const v1::Item item = Titled(std::string(TokenCache::kMaxItemBytes, 'a'));
  const auto tokens = cache.ItemText(*splitter.featurizer, item);
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ((*tokens)->ids, splitter.featurizer->ItemText(item)->ids);
  EXPECT_EQ(cache.bytes(), 0);
}

TEST_F(TokenCacheTest, ServesManyThreads) {
  const Splitter splitter = NewSplitter();
  TokenCache cache(30000, metrics());
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 100; ++i) {
    expected.push_back(
        splitter.featurizer->ItemText(Titled(absl::StrCat("sofa ", i)))->ids);
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) {
        const int n = (i * 31 + t) % 100;
        const auto tokens = cache.ItemText(*splitter.featurizer,
                                           Titled(absl::StrCat("sofa ", n)));
        ASSERT_TRUE(tokens.ok());
        EXPECT_EQ((*tokens)->ids, expected[n]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.bytes(), 30000);
  EXPECT_EQ(hits_.Value() + misses_.Value(), 4000);
}

}  // namespace
}  // namespace vitrine
