#include "trainer/match_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kComma = 5, kFirstWord = 6, kWords = 600;

class MatchGroupsTest : public ::testing::Test {
 protected:
  MatchGroupsTest() {
    std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n,\n";
    for (int i = 0; i < kWords; ++i) absl::StrAppend(&vocab, "w", i, "x\n");
    tokenizer_ = *NewWordPieceTokenizer(vocab, {});
    EncoderConfig config;
    config.vocab_size = tokenizer_->vocab_size();
    config.type_vocab_size = 4;
    config.max_positions = 128;
    options_.encoding = *ResolveEncodingOptions({}, config);
    featurizer_ =
        std::make_unique<Featurizer>(*tokenizer_, options_.encoding, config);
    matcher_ = std::make_unique<WordMatcher>(*tokenizer_);
  }
  static std::vector<int32_t> Words(std::initializer_list<int> words) {
    std::vector<int32_t> ids;
    for (const int word : words) ids.push_back(kFirstWord + word);
    return ids;
  }
  void Add(const std::vector<std::vector<int32_t>>& parts) {
    EXPECT_TRUE(MatchGroupMaker::IsOfUse(*matcher_, parts));
    for (const auto& part : parts) documents_.parts.Add(part);
    documents_.offsets.push_back(documents_.parts.size());
  }
  // A hundred documents: a title of four words, of which two are also in that
  // of each neighbour, and a text of five words that are its own.
  void AddChain() {
    for (int d = 0; d < 100; ++d) {
      const int t = 2 * d, b = 210 + 3 * d;
      Add({Words({t, t + 1, t + 2, t + 3}), Words({b, b + 1, b + 2, b + 3})});
    }
  }
  MatchGroupMaker Maker() const {
    return MatchGroupMaker(*featurizer_, *matcher_, *tokenizer_, documents_,
                           options_);
  }
  static std::vector<int32_t> QueryOf(const Encoding& pair) {
    return {pair.ids.begin() + 1,
            std::find(pair.ids.begin(), pair.ids.end(), 3)};
  }
  static std::vector<int32_t> ItemOf(const Encoding& pair) {
    const auto begin = std::find(pair.ids.begin(), pair.ids.end(), 3) + 1;
    return {begin, pair.ids.end() - 1};
  }
  static std::set<int32_t> Shared(const std::vector<int32_t>& a,
                                  const std::vector<int32_t>& b) {
    std::set<int32_t> shared;
    for (const int32_t id : a) {
      if (std::count(b.begin(), b.end(), id) > 0) shared.insert(id);
    }
    return shared;
  }
  std::vector<int32_t> AllOf(int64_t document) const {
    std::vector<int32_t> ids;
    for (int64_t p = documents_.offsets[document];
         p < documents_.offsets[document + 1]; ++p) {
      ids.insert(ids.end(), documents_.parts[p].begin(),
                 documents_.parts[p].end());
    }
    return ids;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Featurizer> featurizer_;
  std::unique_ptr<WordMatcher> matcher_;
  MatchGroupOptions options_;
  PairDocuments documents_;
  std::mt19937_64 random_{1};
};

TEST_F(MatchGroupsTest, QueriesAreWordsOfTheirDocument) {
  AddChain();
  const MatchGroupMaker maker = Maker();
  std::set<size_t> sizes;
  bool from_title = false, from_text = false, lost = false, kept = false,
       shuffled = false;
  for (int i = 0; i < 400; ++i) {
    const int64_t document = i % 100;
    const MatchGroup group = maker.Draw(document, &random_);
    ASSERT_EQ(group.pairs.size(), 6);
    const std::vector<int32_t> query = QueryOf(group.pairs[0]);
    sizes.insert(query.size());
    EXPECT_EQ(Shared(query, AllOf(document)).size(), query.size());
    from_title = from_title || query[0] < kFirstWord + 210;
    from_text = from_text || query[0] >= kFirstWord + 210;
    shuffled = shuffled || !std::is_sorted(query.begin(), query.end());
    const std::vector<int32_t> item = ItemOf(group.pairs[0]);
    EXPECT_GE(item.size(), 2);
    EXPECT_EQ(Shared(item, AllOf(document)).size(), item.size());
    const size_t shared = Shared(query, item).size();
    kept = kept || shared == query.size();
    lost = lost || shared == 0;
    int64_t tokens = 0;
    for (const Encoding& pair : group.pairs) {
      EXPECT_EQ(QueryOf(pair), query);
      tokens += static_cast<int64_t>(pair.ids.size());
    }
    EXPECT_EQ(group.tokens, tokens);
  }
  EXPECT_THAT(sizes, ElementsAre(1, 2, 3, 4));
  EXPECT_TRUE(from_title && from_text && lost && kept && shuffled);
}

TEST_F(MatchGroupsTest, PairsAreAsServingEncodesThem) {
  AddChain();
  const MatchGroupMaker maker = Maker();
  int64_t marked = 0;
  for (int i = 0; i < 100; ++i) {
    for (const Encoding& pair : maker.Draw(i, &random_).pairs) {
      std::string query, title;
      for (const int32_t id : QueryOf(pair)) {
        absl::StrAppend(&query, tokenizer_->Piece(id), " ");
      }
      for (const int32_t id : ItemOf(pair)) {
        absl::StrAppend(&title, tokenizer_->Piece(id), " ");
      }
      v1::Item item;
      item.set_title(title);
      const Encoding served = featurizer_->Pair(*featurizer_->Query(query),
                                                *featurizer_->ItemText(item));
      EXPECT_EQ(pair.ids, served.ids);
      EXPECT_EQ(pair.segment_ids, served.segment_ids);
      marked += std::count(pair.segment_ids.begin(), pair.segment_ids.end(), 3);
    }
  }
  EXPECT_GT(marked, 50);
}

TEST_F(MatchGroupsTest, HardItemsShareWordsButNeverAll) {
  AddChain();
  const MatchGroupMaker maker = Maker();
  int hard = 0, easy = 0, spanning = 0;
  for (int i = 0; i < 400; ++i) {
    const MatchGroup group = maker.Draw(50, &random_);
    const std::vector<int32_t> query = QueryOf(group.pairs[0]);
    for (size_t c = 1; c < group.pairs.size(); ++c) {
      const size_t shared = Shared(query, ItemOf(group.pairs[c])).size();
      EXPECT_LT(shared, query.size());
      (c <= 2 ? hard : easy) += shared > 0;
    }
    // Words 100 … 103, and the neighbours begin and end in the middle.
    spanning += query.size() > 2;
  }
  EXPECT_GT(spanning, 50);
  EXPECT_GT(hard, 60);
  EXPECT_LT(easy, hard / 4);
}

TEST_F(MatchGroupsTest, ANameOfAListIsAskedForAndGoesFromIt) {
  const std::vector<int32_t> comma = {kComma};
  for (int d = 0; d < 20; ++d) {
    const int t = 6 * d;
    std::vector<int32_t> names;
    for (const auto& part :
         {Words({t}), comma, Words({t + 1, t + 2}), comma, Words({t + 3})}) {
      names.insert(names.end(), part.begin(), part.end());
    }
    Add({names, Words({t + 4, 300, t + 5, 301})});
  }
  const MatchGroupMaker maker = Maker();
  const std::vector<int32_t> one = Words({6}), two = Words({7, 8});
  std::set<std::vector<int32_t>> items;
  for (int i = 0; i < 400; ++i) {
    const MatchGroup group = maker.Draw(1, &random_);
    const std::vector<int32_t> query = QueryOf(group.pairs[0]);
    if (query != two) continue;
    const std::vector<int32_t> item = ItemOf(group.pairs[0]);
    if (Shared(query, item).empty()) items.insert(item);
  }
  // Its comma is gone, too.
  std::vector<int32_t> without = one;
  without.push_back(kComma);
  for (const int32_t id : Words({9, 10, 300, 11, 301})) without.push_back(id);
  EXPECT_THAT(items, ::testing::Contains(without));
}

TEST_F(MatchGroupsTest, TheSameGeneratorDrawsTheSame) {
  AddChain();
  const MatchGroupMaker maker = Maker(), again = Maker();
  for (int i = 0; i < 50; ++i) {
    std::mt19937_64 one(i), two(i);
    const MatchGroup a = maker.Draw(i, &one), b = again.Draw(i, &two);
    for (size_t c = 0; c < a.pairs.size(); ++c) {
      EXPECT_EQ(a.pairs[c].ids, b.pairs[c].ids);
      EXPECT_EQ(a.pairs[c].segment_ids, b.pairs[c].segment_ids);
    }
  }
}

TEST_F(MatchGroupsTest, AGroupIsAboutAsLongAsItSays) {
  AddChain();
  const MatchGroupMaker maker = Maker();
  int64_t said = 0, had = 0;
  for (int i = 0; i < 100; ++i) {
    said += maker.TokensAbout(i);
    had += maker.Draw(i, &random_).tokens;
  }
  EXPECT_LE(had, said);
  EXPECT_GE(had, said / 2);
}

TEST_F(MatchGroupsTest, TakesAnyItemWhereNoneIsWrong) {
  // All documents have all words.
  options_.negatives = 2;
  for (int d = 0; d < 3; ++d) Add({Words({1, 2, 3, 4})});
  const MatchGroupMaker maker = Maker();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(maker.Draw(1, &random_).pairs.size(), 3);
  }
}

TEST_F(MatchGroupsTest, ShortDocumentsAreOfNoUse) {
  EXPECT_FALSE(MatchGroupMaker::IsOfUse(*matcher_, {}));
  EXPECT_FALSE(MatchGroupMaker::IsOfUse(*matcher_, {Words({1, 2})}));
  EXPECT_FALSE(
      MatchGroupMaker::IsOfUse(*matcher_, {{kComma, kComma}, Words({1, 2})}));
  EXPECT_TRUE(MatchGroupMaker::IsOfUse(*matcher_, {Words({1}), Words({2, 3})}));
}

}  // namespace
}  // namespace vitrine
