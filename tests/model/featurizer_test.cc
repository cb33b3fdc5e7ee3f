#include "model/featurizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

// Words a0 … z9 are tokens of their own, so a sequence reads like its text.
std::unique_ptr<Tokenizer> Words() {
  std::string vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (char c = 'a'; c <= 'z'; ++c) {
    for (char d = '0'; d <= '9'; ++d) {
      vocab += std::string{c, d} + "\n";
    }
  }
  return *NewWordPieceTokenizer(vocab, {});
}

// "a0 a1 … a<n-1>"
std::string Sequence(char c, int n) {
  std::string text;
  for (int i = 0; i < n; ++i) {
    text += (i > 0 ? " " : "") + std::string{c, static_cast<char>('0' + i)};
  }
  return text;
}

EncoderConfig Encoder(int64_t max_positions = 512, int64_t types = 2) {
  EncoderConfig config;
  config.max_positions = max_positions;
  config.type_vocab_size = types;
  return config;
}

class FeaturizerTest : public ::testing::Test {
 protected:
  FeaturizerTest() : words_(Words()) {}

  Featurizer Make(const internal::EncodingOptions& options = {},
                  const EncoderConfig& encoder = Encoder()) {
    const auto resolved = ResolveEncodingOptions(options, encoder);
    EXPECT_TRUE(resolved.ok()) << resolved.status();
    return Featurizer(*words_, *resolved, encoder);
  }

  std::string Text(const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) {
      text += (text.empty() ? "" : " ") + words_->Piece(id);
    }
    return text;
  }

  // A history from items, oldest first.
  absl::StatusOr<Encoding> History(const Featurizer& featurizer,
                                   const std::vector<v1::Interaction>& events) {
    std::vector<const v1::Interaction*> pointers;
    for (const auto& event : events) pointers.push_back(&event);
    return featurizer.History(pointers);
  }

  static v1::Interaction Event(
      const std::string& title,
      v1::InteractionType type = v1::INTERACTION_TYPE_VIEW) {
    v1::Interaction event;
    event.mutable_item()->set_title(title);
    event.set_type(type);
    return event;
  }

  static v1::Item FullItem() {
    v1::Item item;
    item.set_id("i7");
    item.set_title("t0 t1");
    item.set_brand("b0");
    item.add_categories("c0 c1");
    item.add_categories("c2");
    // Not in the order of insertion, nor of any hash.
    for (const std::string key : {"m", "z", "a", "q", "B"}) {
      (*item.mutable_attributes())[key] =
          std::string{static_cast<char>(std::tolower(key[0])), '9'};
    }
    item.set_description("d0 d1");
    return item;
  }

  const std::unique_ptr<Tokenizer> words_;
};

TEST_F(FeaturizerTest, JoinsTheFieldsInTheirOrderAndAttributesByKey) {
  const auto tokens = Make().ItemText(FullItem());
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(Text(tokens->ids), "t0 t1 b0 c0 c1 c2 b9 a9 m9 q9 z9 d0 d1");
  EXPECT_FALSE(tokens->truncated);
}

TEST_F(FeaturizerTest, CutsEachFieldToItsBudget) {
  internal::EncodingOptions options;
  options.set_max_title_tokens(2);
  options.set_max_brand_tokens(1);
  options.set_max_categories_tokens(3);
  options.set_max_attributes_tokens(2);
  options.set_max_description_tokens(1);
  v1::Item item;
  item.set_title(Sequence('t', 2));
  item.set_brand(Sequence('b', 1));
  item.add_categories(Sequence('c', 2));
  item.add_categories(Sequence('d', 1));
  (*item.mutable_attributes())["k"] = Sequence('k', 1);
  (*item.mutable_attributes())["l"] = Sequence('l', 1);
  item.set_description(Sequence('e', 1));
  const Featurizer featurizer = Make(options);
  const std::string all = "t0 t1 b0 c0 c1 d0 k0 l0 e0";
  auto tokens = featurizer.ItemText(item);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(Text(tokens->ids), all);
  EXPECT_FALSE(tokens->truncated);

  // One word more in any field is cut, and said to be.
  std::vector<v1::Item> longer(6, item);
  longer[0].set_title(Sequence('t', 3));
  longer[1].set_brand(Sequence('b', 2));
  longer[2].set_categories(1, Sequence('d', 2));
  longer[3].add_categories("x0");
  (*longer[4].mutable_attributes())["m"] = "x0";
  longer[5].set_description(Sequence('e', 2));
  for (const v1::Item& longer_item : longer) {
    tokens = featurizer.ItemText(longer_item);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(Text(tokens->ids), all);
    EXPECT_TRUE(tokens->truncated) << longer_item.ShortDebugString();
  }
}

TEST_F(FeaturizerTest, ANegativeBudgetLeavesAFieldOut) {
  internal::EncodingOptions options;
  options.set_max_title_tokens(-1);
  options.set_max_categories_tokens(-1);
  options.set_max_attributes_tokens(-1);
  v1::Item item = FullItem();
  item.set_title("t0 \xFF");  // not even looked at
  const auto tokens = Make(options).ItemText(item);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(Text(tokens->ids), "b0 d0 d1");
  EXPECT_FALSE(tokens->truncated);
}

TEST_F(FeaturizerTest, AnItemWithoutTextIsAnError) {
  v1::Item item;
  item.set_id("i7");
  item.set_title(" \t\u200B ");
  EXPECT_EQ(Make().ItemText(item).status(),
            absl::InvalidArgumentError("item: there is no text in its fields"));
}

TEST_F(FeaturizerTest, InvalidUtf8NamesTheFieldAndTheByte) {
  const Featurizer featurizer = Make();
  const auto error = [&](const v1::Item& item) {
    return std::string(featurizer.ItemText(item).status().message());
  };
  v1::Item item = FullItem();
  item.set_title(std::string(17, 'a') + "\xFF");
  EXPECT_EQ(error(item), "title: invalid UTF-8 at byte 17");
  item = FullItem();
  item.set_brand("\xC3");
  EXPECT_EQ(error(item), "brand: invalid UTF-8 at byte 0");
  item = FullItem();
  item.add_categories("c\xED\xA0\x80");
  EXPECT_EQ(error(item), "categories[2]: invalid UTF-8 at byte 1");
  item = FullItem();
  (*item.mutable_attributes())["color"] = "red\xFE";
  EXPECT_EQ(error(item), "attributes[\"color\"]: invalid UTF-8 at byte 3");
  item = FullItem();
  (*item.mutable_attributes())["a\"\xFF\n"] = "\xFE";
  EXPECT_EQ(error(item),
            "attributes[\"a\\\"\\377\\n\"]: invalid UTF-8 at byte 0");
  item = FullItem();
  item.set_description("ok \xF0\x9F");
  EXPECT_EQ(error(item), "description: invalid UTF-8 at byte 3");
  EXPECT_EQ(featurizer.Query("sofa\x80").status(),
            absl::InvalidArgumentError("query: invalid UTF-8 at byte 4"));
  EXPECT_EQ(featurizer.Text("\x80").status(),
            absl::InvalidArgumentError("text: invalid UTF-8 at byte 0"));
}

TEST_F(FeaturizerTest, InvalidUtf8BeyondABudgetIsStillAnError) {
  v1::Item item;
  item.set_title(Sequence('t', 9) + std::string(1 << 20, ' ') + "\xFF");
  internal::EncodingOptions options;
  options.set_max_title_tokens(2);
  EXPECT_EQ(Make(options).ItemText(item).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FeaturizerTest, AQueryIsCutToItsBudget) {
  internal::EncodingOptions options;
  options.set_max_query_tokens(3);
  const auto query = Make(options).Query(Sequence('q', 5));
  ASSERT_TRUE(query.ok());
  EXPECT_EQ(Text(query->ids), "q0 q1 q2");
  EXPECT_TRUE(query->truncated);
}

TEST_F(FeaturizerTest, APairKeepsItsQueryWhole) {
  internal::EncodingOptions options;
  options.set_max_tokens(10);
  options.set_max_query_tokens(5);
  const Featurizer featurizer = Make(options);
  const auto query = featurizer.Query(Sequence('q', 5));
  v1::Item item;
  item.set_title(Sequence('t', 9));
  const auto tokens = featurizer.ItemText(item);
  ASSERT_TRUE(query.ok() && tokens.ok());
  const Encoding pair = featurizer.Pair(*query, *tokens);
  EXPECT_EQ(Text(pair.ids), "[CLS] q0 q1 q2 q3 q4 [SEP] t0 t1 [SEP]");
  EXPECT_THAT(pair.segment_ids,
              testing::ElementsAre(0, 0, 0, 0, 0, 0, 0, 1, 1, 1));
  EXPECT_TRUE(pair.truncated);
}

TEST_F(FeaturizerTest, AnEncoderWithoutSegmentsGetsNone) {
  for (const int64_t types : {0, 1}) {
    const Featurizer featurizer = Make({}, Encoder(512, types));
    const Encoding pair = featurizer.Pair({{5}}, {{6}});
    EXPECT_THAT(pair.segment_ids, testing::Each(0)) << types;
  }
}

TEST_F(FeaturizerTest, ATextFillsTheSequence) {
  internal::EncodingOptions options;
  options.set_max_tokens(8);
  const Featurizer featurizer = Make(options);
  auto text = featurizer.Text(Sequence('x', 6));
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(Text(text->ids), "[CLS] x0 x1 x2 x3 x4 x5 [SEP]");
  EXPECT_FALSE(text->truncated);
  EXPECT_TRUE(featurizer.Text(Sequence('x', 7))->truncated);
  EXPECT_EQ(Text(featurizer.Text("")->ids), "[CLS] [SEP]");
}

TEST_F(FeaturizerTest, AHistoryHasItsNewestItemsFirstAndNoSkips) {
  v1::Interaction full = Event("t0");
  *full.mutable_item() = FullItem();
  const auto history =
      History(Make(), {Event("o0"), Event("s0", v1::INTERACTION_TYPE_SKIP),
                       full, Event("n0", v1::INTERACTION_TYPE_PURCHASE)});
  ASSERT_TRUE(history.ok()) << history.status();
  // Title, brand and categories only.
  EXPECT_EQ(Text(history->ids), "[CLS] n0 t0 t1 b0 c0 c1 c2 o0 [SEP]");
  EXPECT_THAT(history->segment_ids, testing::Each(0));
  EXPECT_FALSE(history->truncated);
}

TEST_F(FeaturizerTest, AHistoryTakesWholeItemsWhileTheyFit) {
  internal::EncodingOptions options;
  options.set_max_tokens(10);  // eight without special tokens
  options.set_max_history_item_tokens(3);
  const Featurizer featurizer = Make(options);
  auto history =
      History(featurizer, {Event("x0"), Event(Sequence('a', 3)),
                           Event(Sequence('b', 3)), Event(Sequence('c', 3))});
  ASSERT_TRUE(history.ok());
  // The third does not fit, and no older one takes its place.
  EXPECT_EQ(Text(history->ids), "[CLS] c0 c1 c2 b0 b1 b2 [SEP]");
  EXPECT_TRUE(history->truncated);

  // Each is cut to its own budget.
  history =
      History(featurizer, {Event(Sequence('b', 2)), Event(Sequence('c', 4))});
  ASSERT_TRUE(history.ok());
  EXPECT_EQ(Text(history->ids), "[CLS] c0 c1 c2 b0 b1 [SEP]");
  EXPECT_TRUE(history->truncated);

  // Exactly full is not cut.
  history =
      History(featurizer, {Event(Sequence('a', 2)), Event(Sequence('b', 3)),
                           Event(Sequence('c', 3))});
  ASSERT_TRUE(history.ok());
  EXPECT_EQ(history->ids.size(), 10);
  EXPECT_FALSE(history->truncated);
}

TEST_F(FeaturizerTest, TheNewestItemIsCutWhereItAloneDoesNotFit) {
  internal::EncodingOptions options;
  options.set_max_tokens(6);
  const auto history = History(Make(options), {Event(Sequence('c', 9))});
  ASSERT_TRUE(history.ok());
  EXPECT_EQ(Text(history->ids), "[CLS] c0 c1 c2 c3 [SEP]");
  EXPECT_TRUE(history->truncated);
}

TEST_F(FeaturizerTest, InvalidUtf8InAHistoryNamesTheEvent) {
  internal::EncodingOptions options;
  options.set_max_tokens(6);
  const Featurizer featurizer = Make(options);
  v1::Interaction bad = Event("t0");
  bad.mutable_item()->add_categories("c0");
  bad.mutable_item()->add_categories("\xFF");
  // Also where newer events fill the sequence; never in a skipped one.
  EXPECT_EQ(History(featurizer, {Event("a0"), bad, Event(Sequence('n', 4)),
                                 Event(Sequence('m', 4))})
                .status(),
            absl::InvalidArgumentError(
                "history[1].item.categories[1]: invalid UTF-8 at byte 0"));
  EXPECT_EQ(History(featurizer,
                    {Event("a0"), Event("a0"), Event("a0"), Event("t\x80")})
                .status(),
            absl::InvalidArgumentError(
                "history[3].item.title: invalid UTF-8 at byte 1"));
  bad.set_type(v1::INTERACTION_TYPE_SKIP);
  EXPECT_TRUE(History(featurizer, {bad, Event("a0")}).ok());
}

TEST_F(FeaturizerTest, AHistoryWithNothingToReadIsAnError) {
  const Featurizer featurizer = Make();
  EXPECT_THAT(std::string(History(featurizer, {}).status().message()),
              HasSubstr("none of its 0 events"));
  EXPECT_EQ(
      History(featurizer, {Event("s0", v1::INTERACTION_TYPE_SKIP), Event("")})
          .status()
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(ResolveEncodingOptions, FillsInTheDefaults) {
  const auto o = ResolveEncodingOptions({}, Encoder());
  ASSERT_TRUE(o.ok()) << o.status();
  EXPECT_EQ(o->max_tokens(), 128);
  EXPECT_EQ(o->max_query_tokens(), 32);
  EXPECT_EQ(o->max_title_tokens(), 48);
  EXPECT_EQ(o->max_brand_tokens(), 8);
  EXPECT_EQ(o->max_categories_tokens(), 12);
  EXPECT_EQ(o->max_attributes_tokens(), 24);
  EXPECT_EQ(o->max_description_tokens(), 48);
  EXPECT_EQ(o->max_history_item_tokens(), 16);
}

TEST(ResolveEncodingOptions, KeepsWhatIsSet) {
  internal::EncodingOptions options;
  options.set_max_tokens(256);
  options.set_max_query_tokens(7);
  options.set_max_description_tokens(-1);
  options.set_max_history_item_tokens(5);
  const auto o = ResolveEncodingOptions(options, Encoder());
  ASSERT_TRUE(o.ok()) << o.status();
  EXPECT_EQ(o->max_tokens(), 256);
  EXPECT_EQ(o->max_query_tokens(), 7);
  EXPECT_EQ(o->max_description_tokens(), -1);
  EXPECT_EQ(o->max_history_item_tokens(), 5);
}

TEST(ResolveEncodingOptions, FollowsAShortEncoder) {
  const auto o = ResolveEncodingOptions({}, Encoder(24));
  ASSERT_TRUE(o.ok()) << o.status();
  EXPECT_EQ(o->max_tokens(), 24);
  EXPECT_EQ(o->max_query_tokens(), 10);  // half of what special tokens leave
  internal::EncodingOptions options;
  options.set_max_tokens(4096);
  EXPECT_EQ(ResolveEncodingOptions(options, Encoder())->max_tokens(), 512);
}

TEST(ResolveEncodingOptions, RefusesBudgetsThatLeaveNoRoom) {
  const auto error = [](auto set, int64_t positions = 512) {
    internal::EncodingOptions options;
    set(options);
    const auto status =
        ResolveEncodingOptions(options, Encoder(positions)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(error([](auto& o) { o.set_max_tokens(-1); }),
            "max_tokens: -1 is negative");
  EXPECT_THAT(error([](auto& o) { o.set_max_tokens(5); }),
              HasSubstr("max_tokens: 5 < 6"));
  EXPECT_THAT(error([](auto&) {}, 3), HasSubstr("max_tokens: 3 < 6"));
  EXPECT_EQ(error([](auto& o) { o.set_max_query_tokens(-2); }),
            "max_query_tokens: -2 is negative");
  EXPECT_EQ(error([](auto& o) { o.set_max_query_tokens(124); }),
            "max_query_tokens: 124 leaves no room for an item in sequences of "
            "128 tokens");
  EXPECT_EQ(error([](auto& o) { o.set_max_history_item_tokens(-1); }),
            "max_history_item_tokens: -1 is negative");
  EXPECT_EQ(error([](auto& o) {
              o.set_max_title_tokens(-1);
              o.set_max_brand_tokens(-1);
              o.set_max_categories_tokens(-1);
              o.set_max_attributes_tokens(-1);
              o.set_max_description_tokens(-1);
            }),
            "encoding: every field of an item is left out");
}

}  // namespace
}  // namespace vitrine
