// What the server answers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "tests/server/server_fixture.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr grpc::StatusCode kInvalid = grpc::StatusCode::INVALID_ARGUMENT;

TEST_F(ServerTest, RankSortsWhatScoreGivesInOrder) {
  Start();
  const v1::RankRequest request = RankOf("red sofa", ManyTitles(100));
  v1::ScoreRequest score_request;
  *score_request.mutable_context() = request.context();
  *score_request.mutable_items() = request.items();
  v1::RankResponse ranked;
  v1::ScoreResponse scored;
  ASSERT_TRUE(Rank(request, &ranked).ok());
  ASSERT_TRUE(Score(score_request, &scored).ok());
  EXPECT_EQ(ranked.model().name(), "shop");
  EXPECT_EQ(ranked.model().version(), "1");
  ASSERT_EQ(ranked.items_size(), 100);
  ASSERT_EQ(scored.items_size(), 100);
  for (int i = 0; i < 100; ++i) {
    const v1::ScoredItem& item = scored.items(i);
    EXPECT_EQ(item.item_id(), absl::StrCat("id", i));
    EXPECT_EQ(item.index(), i);
    EXPECT_TRUE(item.score() >= 0 && item.score() <= 1);
    EXPECT_EQ(item.relevance(), item.score());
    EXPECT_TRUE(item.has_relevance());
    EXPECT_FALSE(item.has_personalization());
  }
  for (int i = 0; i < 100; ++i) {
    const v1::ScoredItem& item = ranked.items(i);
    EXPECT_EQ(item.score(), scored.items(item.index()).score());
    if (i == 0) continue;
    const v1::ScoredItem& before = ranked.items(i - 1);
    EXPECT_TRUE(
        before.score() > item.score() ||
        (before.score() == item.score() && before.index() < item.index()));
  }
}

TEST_F(ServerTest, GivesOneItemTheScoreItHasAmongMany) {
  Start();
  const std::vector<std::string> titles = ManyTitles(60);
  v1::RankResponse many;
  ASSERT_TRUE(Rank(RankOf("oak desk", titles), &many).ok());
  for (const v1::ScoredItem& item : many.items()) {
    v1::RankResponse one;
    ASSERT_TRUE(Rank(RankOf("oak desk", {titles[item.index()]}), &one).ok());
    EXPECT_EQ(one.items(0).score(), item.score());
  }
}

TEST_F(ServerTest, ReturnsTheTopKAndThenTheItemsWithErrors) {
  Start();
  v1::RankRequest request = RankOf("sofa", ManyTitles(20));
  request.mutable_items(3)->clear_title();
  request.mutable_items(7)->clear_title();
  request.set_top_k(5);
  v1::RankResponse response;
  ASSERT_TRUE(Rank(request, &response).ok());
  ASSERT_EQ(response.items_size(), 7);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(response.items(i).has_error());
  EXPECT_EQ(response.items(5).index(), 3);
  EXPECT_EQ(response.items(6).index(), 7);
  EXPECT_EQ(response.items(5).error().code(), kInvalid);
  EXPECT_THAT(response.items(5).error().message(), HasSubstr("items[3]"));
  EXPECT_EQ(response.items(5).score(), 0);
}

TEST_F(ServerTest, RunsEqualItemsOnceAndTiesInTheRequestsOrder) {
  Start();
  v1::RankResponse response;
  ASSERT_TRUE(
      Rank(RankOf("sofa", std::vector<std::string>(50, "red sofa")), &response)
          .ok());
  for (int i = 0; i < 50; ++i) EXPECT_EQ(response.items(i).index(), i);
  int sequences = 0;
  for (const Batch& batch : engine_->batches()) sequences += batch.sequences();
  EXPECT_EQ(sequences, 1);
}

TEST_F(ServerTest, BlendsQueryAndHistoryByTheWeight) {
  Start();
  v1::ScoreRequest request;
  request.mutable_context()->set_query("red sofa");
  *request.mutable_context()->add_history() = Event("blue chair");
  *request.mutable_context()->add_history() = Event("oak desk");
  for (const std::string& title : ManyTitles(10)) {
    *request.add_items() = Item(title, title);
  }
  for (const float weight : {-1.0f, 0.0f, 0.3f, 1.0f}) {  // -1: not set
    if (weight >= 0) request.set_personalization_weight(weight);
    v1::ScoreResponse response;
    ASSERT_TRUE(Score(request, &response).ok());
    const float w = weight < 0 ? 0.5f : weight;
    for (const v1::ScoredItem& item : response.items()) {
      EXPECT_NEAR(item.score(),
                  (1 - w) * item.relevance() + w * item.personalization(),
                  1e-6);
    }
  }
}

TEST_F(ServerTest, ScoresAQueryByEncoderAndWords) {
  // The encoder says the same of all; "sofa" in an item speaks for it, and so
  // does what the query and the item share.
  const std::vector<std::string> pieces = testing::TinyVocabulary();
  const auto id = [&pieces](const char* piece) {
    return static_cast<int32_t>(std::find(pieces.begin(), pieces.end(), piece) -
                                pieces.begin());
  };
  FakeModelOptions model;
  model.value = [](absl::Span<const int32_t>, int, int) { return 0.5f; };
  model.tables.resize(model.heads.size());
  for (size_t h = 0; h < model.heads.size(); ++h) {
    if (model.heads[h].kind() != internal::HEAD_KIND_RELEVANCE) continue;
    model.tables[h].lexical = *LexicalScorer::Create(
        {.ngrams = {{id("sofa")}},
         .idf = {1},
         .query_weights = {0.125f},
         .item_weights = {0.25f},
         .overlap = {.cosine = 0, .share = 1, .bm25 = 0},
         .bias = -0.25f,
         .mixture = {
             .encoder_weight = 0.5f, .lexical_weight = 2, .bias = 0.1f}});
  }
  Start("", model);
  v1::RankRequest request;
  request.mutable_context()->set_query("red sofa");
  *request.add_items() = Item("other", "blue chair");
  *request.add_items() = Item("colour", "red chair");
  *request.add_items() = Item("both", "red sofa");
  for (const char* const cache : {"cold", "warm"}) {
    v1::RankResponse response;
    ASSERT_TRUE(Rank(request, &response).ok());
    const auto logit = [&response](int i) {
      const double p = response.items(i).relevance();
      return std::log(p / (1 - p));
    };
    EXPECT_EQ(response.items(0).item_id(), "both") << cache;
    EXPECT_EQ(response.items(1).item_id(), "colour") << cache;
    EXPECT_NEAR(logit(0), 0.25 + 2 * (0.125 + 0.25 + 1 - 0.25) + 0.1, 1e-5);
    EXPECT_NEAR(logit(1), 0.25 + 2 * (0.125 + 0.5 - 0.25) + 0.1, 1e-5);
    EXPECT_NEAR(logit(2), 0.25 + 2 * (0.125 - 0.25) + 0.1, 1e-5);
  }
}

TEST_F(ServerTest, ScoresAHistoryByCosineThroughTheFittedScale) {
  std::vector<internal::Head> heads = testing::AllHeads();
  for (internal::Head& head : heads) {
    if (head.kind() == internal::HEAD_KIND_RECOMMENDATION) {
      head.set_score_scale(4);
      head.set_score_bias(-1);
    }
  }
  FakeModelOptions model;
  model.heads = heads;
  // Histories and items alike get one of two orthogonal vectors.
  model.value = [](absl::Span<const int32_t> ids, int, int k) {
    return k == static_cast<int>(ids.size() % 2) ? 1.0f : 0.0f;
  };
  Start("", model);
  v1::ScoreRequest request;
  *request.mutable_context()->add_history() = Event("a");
  *request.add_items() = Item("same", "b");
  *request.add_items() = Item("other", "b c");
  v1::ScoreResponse response;
  ASSERT_TRUE(Score(request, &response).ok());
  EXPECT_NEAR(response.items(0).score(), 1 / (1 + std::exp(-3.0)), 1e-6);
  EXPECT_NEAR(response.items(1).score(), 1 / (1 + std::exp(1.0)), 1e-6);
  EXPECT_FALSE(response.items(0).has_relevance());
}

// "oak" is bought with "lamp"; "rug" is popular.
std::shared_ptr<const Cooccurrence> OakWithLamp() {
  auto counts = Cooccurrence::Create({.ids = {"oak", "lamp", "rug"},
                                      .popularity = {1, 1, 8},
                                      .neighbour_ends = {1, 2, 2},
                                      .neighbours = {1, 0},
                                      .weights = {1, 1},
                                      .mixture = {.history_decay = 0.5,
                                                  .text_weight = 3,
                                                  .count_scale = 100,
                                                  .count_power = 1,
                                                  .popularity_power = 0.5}});
  EXPECT_TRUE(counts.ok()) << counts.status();
  return *std::move(counts);
}

v1::RankRequest AfterOak(const std::string& history_id) {
  v1::RankRequest request;
  v1::Interaction event = Event("oak desk");
  event.mutable_item()->set_id(history_id);
  *request.mutable_context()->add_history() = event;
  for (const char* const id : {"chair", "rug", "lamp"}) {
    *request.add_items() = Item(id, "red sofa");
  }
  return request;
}

TEST_F(ServerTest, RanksByWhatTheShopsSequencesSay) {
  FakeModelOptions model;
  model.tables = {{}, {.counts = OakWithLamp()}};
  model.heads[1].set_score_scale(0.5);
  Start("", model);
  v1::RankResponse response;
  // The texts are the same: the lamp goes with the oak, the rug sells well.
  ASSERT_TRUE(Rank(AfterOak("oak"), &response).ok());
  EXPECT_EQ(response.items(0).item_id(), "lamp");
  EXPECT_EQ(response.items(1).item_id(), "rug");
  EXPECT_EQ(response.items(2).item_id(), "chair");
  // The cosines are equal.
  const auto inverse = [](double p) { return std::log(p / (1 - p)); };
  EXPECT_NEAR(
      inverse(response.items(0).score()) - inverse(response.items(2).score()),
      0.5 * std::log(100 + std::sqrt(2.0)), 1e-4);
  // The vectors are cached, what the history says is not.
  v1::RankResponse again;
  ASSERT_TRUE(Rank(AfterOak("oak"), &again).ok());
  ASSERT_TRUE(Rank(AfterOak("pine"), &response).ok());
  EXPECT_EQ(again.items(0).item_id(), "lamp");
  EXPECT_EQ(response.items(0).item_id(), "rug") << "pine is not known";
  EXPECT_EQ(response.items(1).item_id(), "lamp") << "by its popularity";
  EXPECT_EQ(response.items(2).item_id(), "chair") << "it is not known either";
}

TEST_F(ServerTest, WhatWasPassedOverSpeaksForNothing) {
  FakeModelOptions model;
  model.tables = {{}, {.counts = OakWithLamp()}};
  Start("", model);
  v1::RankRequest request = AfterOak("pine");
  v1::Interaction skipped = Event("oak", v1::INTERACTION_TYPE_SKIP);
  skipped.mutable_item()->set_id("oak");
  *request.mutable_context()->add_history() = skipped;
  v1::RankResponse response;
  ASSERT_TRUE(Rank(request, &response).ok());
  EXPECT_EQ(response.items(0).item_id(), "rug");
}

TEST_F(ServerTest, WithoutIdsTheTextsSpeakAsWithoutCounts) {
  v1::ScoreRequest request;
  *request.mutable_context()->add_history() = Event("blue chair");
  for (const std::string& title : ManyTitles(10)) {
    *request.add_items() = Item("", title);
  }
  const auto order = [](const v1::ScoreResponse& response) {
    std::vector<int> order;
    for (const v1::ScoredItem& item : response.items()) {
      order.push_back(item.index());
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return response.items(a).score() > response.items(b).score();
    });
    return order;
  };
  FakeModelOptions model;
  for (internal::Head& head : model.heads) {
    if (head.kind() == internal::HEAD_KIND_RECOMMENDATION) {
      head.set_score_scale(0.5);
    }
  }
  Start("", model);
  v1::ScoreResponse plain, with_counts;
  ASSERT_TRUE(Score(request, &plain).ok());
  TearDown();
  model.tables = {{}, {.counts = OakWithLamp()}};
  Start("", model);
  ASSERT_TRUE(Score(request, &with_counts).ok());
  EXPECT_EQ(order(plain), order(with_counts));
}

TEST_F(ServerTest, ComputesAnItemsVectorOnce) {
  Start();
  v1::ScoreRequest request;
  *request.mutable_context()->add_history() = Event("blue chair");
  for (const std::string& title : ManyTitles(30)) {
    *request.add_items() = Item(title, title);
  }
  v1::ScoreResponse first, second;
  ASSERT_TRUE(Score(request, &first).ok());
  const size_t batches = engine_->batches().size();
  ASSERT_TRUE(Score(request, &second).ok());
  ASSERT_EQ(engine_->batches().size(), batches + 1);
  EXPECT_EQ(engine_->batches().back().sequences(), 1) << "the history alone";
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(first.items(i).score(), second.items(i).score());
  }
  EXPECT_EQ(server_->metrics().item_vector_cache().hits->Value(), 30);
  EXPECT_EQ(server_->metrics().item_vector_cache().misses->Value(), 30);
}

TEST_F(ServerTest, TokenizesAnItemOnceAcrossCallsAndMethods) {
  Start();
  v1::RankResponse ranked;
  for (const char* query : {"red sofa", "oak desk"}) {
    ASSERT_TRUE(Rank(RankOf(query, ManyTitles(30)), &ranked).ok());
  }
  v1::EmbedRequest embed;
  for (const std::string& title : ManyTitles(30)) {
    *embed.add_items() = Item("", title);
  }
  v1::EmbedResponse embedded;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Embed(&context, embed, &embedded).ok());
  const CacheMetrics metrics = server_->metrics().token_cache();
  EXPECT_EQ(metrics.misses->Value(), 30);
  EXPECT_EQ(metrics.hits->Value(), 60);
  EXPECT_GT(metrics.bytes->Value(), 0);
}

TEST_F(ServerTest, AnswersTheSameBytesWithTheTokenCacheOnAndOff) {
  v1::ScoreRequest request;
  request.mutable_context()->set_query("red sofa");
  *request.mutable_context()->add_history() = Event("blue chair");
  for (const std::string& title : ManyTitles(30)) {
    *request.add_items() = Item(title, title);
  }
  request.mutable_items(3)->clear_title();
  request.mutable_items(5)->set_description(std::string(5000, 'x'));
  (*request.mutable_items(7)->mutable_attributes())["color"] = "red";
  v1::EmbedRequest embed;
  *embed.mutable_items() = request.items();
  std::vector<std::string> answers;
  for (const char* config :
       {"cache { token_bytes: -1 item_vector_bytes: -1 }",
        "cache { item_vector_bytes: -1 }",
        "cache { token_bytes: 4000 item_vector_bytes: -1 }"}) {
    Start(config);
    for (int i = 0; i < 2; ++i) {
      v1::ScoreResponse scored;
      ASSERT_TRUE(Score(request, &scored).ok());
      scored.clear_timings();
      v1::EmbedResponse embedded;
      grpc::ClientContext context;
      ASSERT_TRUE(stub_->Embed(&context, embed, &embedded).ok());
      embedded.clear_timings();
      answers.push_back(scored.SerializeAsString() +
                        embedded.SerializeAsString());
    }
    server_->Stop();
  }
  EXPECT_THAT(answers, Each(answers[0]));
}

TEST_F(ServerTest, AHistoryOfSkipsCountsAsNone) {
  Start();
  v1::RankRequest request = RankOf("sofa", {"sofa", "lamp"});
  *request.mutable_context()->add_history() =
      Event("rug", v1::INTERACTION_TYPE_SKIP);
  v1::RankResponse response;
  ASSERT_TRUE(Rank(request, &response).ok());
  EXPECT_FALSE(response.items(0).has_personalization());
  request.mutable_context()->clear_query();
  EXPECT_EQ(Refusal(request).error_code(), kInvalid);
}

TEST_F(ServerTest, PredictsInterestsByFallingProbability) {
  Start();
  v1::PredictInterestsRequest request;
  *request.add_history() = Event("red sofa");
  v1::PredictInterestsResponse all, two;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->PredictInterests(&context, request, &all).ok());
  }
  ASSERT_EQ(all.interests_size(), 3);
  EXPECT_GE(all.interests(0).probability(), all.interests(1).probability());
  EXPECT_GE(all.interests(1).probability(), all.interests(2).probability());
  request.set_top_k(2);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->PredictInterests(&context, request, &two).ok());
  }
  ASSERT_EQ(two.interests_size(), 2);
  EXPECT_EQ(two.interests(0).category(), all.interests(0).category());
  request.clear_history();
  grpc::ClientContext context;
  EXPECT_EQ(stub_->PredictInterests(&context, request, &two).error_code(),
            kInvalid);
}

TEST_F(ServerTest, EmbedsTextsAndItemsAsUnitVectors) {
  Start();
  v1::EmbedRequest request;
  request.add_texts("red sofa");
  request.add_texts("");
  v1::EmbedResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Embed(&context, request, &response).ok());
  }
  ASSERT_EQ(response.embeddings_size(), 2);
  for (const v1::Embedding& embedding : response.embeddings()) {
    double norm = 0;
    for (const float v : embedding.values()) norm += v * v;
    EXPECT_NEAR(norm, 1, 1e-5);
  }
  request.clear_texts();
  *request.add_items() = Item("a", "red sofa");
  *request.add_items() = Item("b", "");
  response.Clear();
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Embed(&context, request, &response).ok());
  }
  EXPECT_EQ(response.embeddings(0).item_id(), "a");
  EXPECT_THAT(response.embeddings(0).values(), SizeIs(kFakeVectorSize));
  EXPECT_EQ(response.embeddings(1).item_id(), "b");
  EXPECT_TRUE(response.embeddings(1).has_error());
  EXPECT_THAT(response.embeddings(1).values(), IsEmpty());
  request.add_texts("both");
  {
    grpc::ClientContext context;
    EXPECT_EQ(stub_->Embed(&context, request, &response).error_code(),
              kInvalid);
  }
  grpc::ClientContext context;
  EXPECT_EQ(stub_->Embed(&context, {}, &response).error_code(), kInvalid);
}

TEST_F(ServerTest, ClassifiesWithProbabilitiesThatSumToOne) {
  Start();
  v1::ClassifyRequest request;
  request.add_texts("nice sofa");
  request.add_texts("bad lamp");
  v1::ClassifyResponse response;
  for (const char* head : {"", "sentiment"}) {
    request.set_head(head);
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Classify(&context, request, &response).ok());
    ASSERT_EQ(response.results_size(), 2);
    for (const v1::Classification& result : response.results()) {
      ASSERT_EQ(result.labels_size(), 2);
      EXPECT_NEAR(
          result.labels(0).probability() + result.labels(1).probability(), 1,
          1e-6);
      EXPECT_GE(result.labels(0).probability(), result.labels(1).probability());
    }
  }
  request.set_head("mood");
  grpc::ClientContext context;
  const grpc::Status status = stub_->Classify(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("mood"), HasSubstr("sentiment")));
}

TEST_F(ServerTest, ClassifiesByEncoderAndNgrams) {
  // The encoder says 1 and 3; "sofa" speaks for the first label.
  const std::vector<std::string> pieces = testing::TinyVocabulary();
  const auto sofa = static_cast<int32_t>(
      std::find(pieces.begin(), pieces.end(), "sofa") - pieces.begin());
  FakeModelOptions model;
  model.value = [](absl::Span<const int32_t>, int, int k) {
    return k == 0 ? 1.0f : 3.0f;
  };
  model.tables.resize(model.heads.size());
  for (size_t h = 0; h < model.heads.size(); ++h) {
    if (model.heads[h].kind() != internal::HEAD_KIND_CLASSIFICATION) continue;
    model.tables[h].ngrams = *NgramClassifier::Create(
        {.ngrams = {{sofa}},
         .idf = {1},
         .bias = {-0.25, 0.25},
         .weights = {1, -1},
         .mixture = {.encoder_weight = 0.5, .ngram_weight = 2}});
  }
  Start("", model);
  v1::ClassifyRequest request;
  request.add_texts("sofa");
  request.add_texts("bad lamp");
  request.add_texts("sofa");
  v1::ClassifyResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Classify(&context, request, &response).ok());
  const auto odds = [&response](int i) {
    double by_label[2] = {};
    for (const v1::LabelProbability& label : response.results(i).labels()) {
      by_label[label.label() == response.results(1).labels(0).label()] =
          std::log(label.probability());
    }
    return by_label[1] - by_label[0];
  };
  // Of the second label, which is the first of text 1's.
  EXPECT_NEAR(odds(0), 0.5 * 2 + 2 * (0.5 - 2), 1e-5);
  EXPECT_NEAR(odds(1), 0.5 * 2 + 2 * 0.5, 1e-5);
  EXPECT_EQ(odds(2), odds(0));
  // Logits of 2 and 0, and of 0 and 2.
  for (const v1::Classification& result : response.results()) {
    EXPECT_NEAR(result.energy(), -std::log(std::exp(2.0) + 1), 1e-5);
  }
}

TEST_F(ServerTest, ListsModelsHeadsAndLimits) {
  Start("limits { max_items: 7 }");
  v1::ListModelsResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &response).ok());
  ASSERT_EQ(response.models_size(), 1);
  const v1::ServedModel& model = response.models(0);
  EXPECT_EQ(model.model().version(), "1");
  EXPECT_TRUE(model.is_default());
  EXPECT_EQ(model.engine(), "fake");
  EXPECT_EQ(model.tokenizer(), "wordpiece");
  EXPECT_EQ(model.embedding_size(), kFakeVectorSize);
  EXPECT_GT(model.loaded().seconds(), 0);
  std::map<std::string, std::string> heads;
  for (const v1::HeadInfo& head : model.heads())
    heads[head.name()] = head.kind();
  EXPECT_EQ(heads, (std::map<std::string, std::string>{
                       {"relevance", "relevance"},
                       {"recommendation", "recommendation"},
                       {"interest", "interest"},
                       {"sentiment", "classification"}}));
  EXPECT_EQ(response.limits().max_items(), 7);
  EXPECT_EQ(response.limits().max_field_bytes(), 65536);
  EXPECT_EQ(response.limits().max_attributes(), 64);
}

}  // namespace
}  // namespace vitrine
