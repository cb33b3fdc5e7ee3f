#include "server/score_job.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/cooccurrence.h"
#include "model/lexical_scorer.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

// The two requests have the same parts but for top_k, the two answers the
// same parts.
struct ScoreCall {
  const v1::ModelSpec& model;
  const v1::Context& context;
  const google::protobuf::RepeatedPtrField<v1::Item>& items;
  std::optional<float> weight;
  bool sort;
  int top_k;  // 0: all
  v1::ModelVersion* answer_model;
  google::protobuf::RepeatedPtrField<v1::ScoredItem>* answer_items;
  v1::Timings* answer_timings;
};

class ScoreJob : public InferenceJob {
 public:
  ScoreJob(const InferenceParts& parts, std::shared_ptr<Call> call,
           const ScoreCall& score)
      : InferenceJob(parts, std::move(call)), score_(score) {}

 protected:
  absl::Status Prepare() override {
    const RequestChecks& checks = parts().checks;
    const v1::Context& context = score_.context;
    RETURN_IF_ERROR(checks.ItemCount(score_.items.size()));
    RETURN_IF_ERROR(checks.TopK(score_.top_k));
    items_.resize(score_.items.size());
    std::vector<absl::Status> bad(items_.size());
    RETURN_IF_ERROR(CheckBadStrings(call().bad_strings, "items", &bad));
    for (size_t i = 0; i < items_.size(); ++i) items_[i].status = bad[i];
    RETURN_IF_ERROR(checks.Text("context.query", context.query()));
    RETURN_IF_ERROR(checks.History("context.history", context.history()));
    weight_ = score_.weight.value_or(parts().personalization_weight);
    if (!(weight_ >= 0 && weight_ <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "personalization_weight: ", weight_, " is not in [0, 1]"));
    }
    if (context.query().empty() && context.history().empty()) {
      return absl::InvalidArgumentError(
          "context: a query, a history or both are needed");
    }
    RETURN_IF_ERROR(Pin(score_.model));
    return PrepareContext();
  }

  int elements() const override { return score_.items.size(); }

  void Encode(int i) override {
    if (items_[i].status.ok()) {
      items_[i].status = EncodeItem(i);
    }
  }

  absl::Status Answer(const Outputs& outputs) override {
    if (personalized()) {
      // Any item's vector may be missing, the history's may not.
      ASSIGN_OR_RETURN(history_vector_,
                       OutputsOf(outputs, history_, recommendation_head_));
    }
    int errors = 0;
    for (size_t i = 0; i < items_.size(); ++i) {
      ItemState& item = items_[i];
      if (item.status.ok()) {
        item.status = ScoreItem(outputs, score_.items[i].id(), &item);
      }
      if (!item.status.ok()) ++errors;
    }
    CountItemErrors(errors);
    FillModel(score_.answer_model);
    for (const int i : Order()) FillItem(i, score_.answer_items->Add());
    FillTimings(score_.answer_timings);
    return absl::OkStatus();
  }

 private:
  struct ItemState {
    absl::Status status;
    bool truncated = false;
    int pair = -1;    // its sequence with the query
    int single = -1;  // its own sequence, where its vector was not cached
    bool single_truncated = false;
    std::optional<ItemKey> key;  // in the cache of vectors, where it is on
    std::shared_ptr<const ItemVector> cached;
    float lexical = 0;  // the linear model's value, where the head has one
    double relevance = 0;
    double personalization = 0;
    double score = 0;
  };

  bool by_query() const { return relevance_head_ >= 0; }
  bool personalized() const { return recommendation_head_ >= 0; }

  // Chooses the heads and encodes what all items share.
  absl::Status PrepareContext() {
    const v1::Context& context = score_.context;
    std::vector<const v1::Interaction*> history;
    bool only_skips = true;
    for (const v1::Interaction& interaction : context.history()) {
      history.push_back(&interaction);
      only_skips &= interaction.type() == v1::INTERACTION_TYPE_SKIP;
    }
    if (!context.query().empty()) {
      relevance_head_ = model().relevance_head();
      if (!by_query()) {
        return Annotate(MissingHead(version(), "relevance"), "context.query");
      }
      ASSIGN_OR_RETURN(query_, model().featurizer().Query(context.query()));
      call().head = model().heads()[relevance_head_].name();
      lexical_ = model().lexical(relevance_head_);
      if (lexical_ != nullptr) lexical_query_ = lexical_->OfQuery(query_.ids);
    }
    // Somebody who has only passed things over has no history yet: the query
    // alone counts, as for a first visit. Without a query it is an error.
    if (!history.empty() && !(only_skips && by_query())) {
      recommendation_head_ = model().recommendation_head();
      if (!personalized()) {
        return Annotate(MissingHead(version(), "recommendation"),
                        "context.history");
      }
      absl::StatusOr<Encoding> encoding = model().featurizer().History(history);
      if (!encoding.ok()) return Annotate(encoding.status(), "context");
      history_ = sequences().Add(*std::move(encoding), recommendation_head_);
      CountHistory(history);
      vector_maker_ = VectorMaker(version().name, version().version,
                                  model().heads()[recommendation_head_].name());
      absl::StrAppend(&call().head, call().head.empty() ? "" : "+",
                      model().heads()[recommendation_head_].name());
    }
    return absl::OkStatus();
  }

  absl::Status EncodeItem(int i) {
    const v1::Item& item = score_.items[i];
    const std::string path = absl::StrCat("items[", i, "]");
    RETURN_IF_ERROR(parts().checks.Item(path, item));
    ItemState& state = items_[i];
    if (personalized() && parts().vectors.enabled()) {
      state.key = KeyOf(vector_maker_, item);
      state.cached = parts().vectors.Find(*state.key);
      if (state.cached != nullptr) state.truncated = state.cached->truncated;
    }
    const bool needs_vector = personalized() && state.cached == nullptr;
    if (!by_query() && !needs_vector) return absl::OkStatus();
    const Featurizer& featurizer = model().featurizer();
    const absl::StatusOr<std::shared_ptr<const Tokens>> tokens =
        parts().tokens.ItemText(featurizer, item);
    if (!tokens.ok()) return Annotate(tokens.status(), path);
    if (by_query()) {
      Encoding pair = featurizer.Pair(query_, **tokens);
      state.truncated |= pair.truncated;
      state.pair = sequences().Add(std::move(pair), relevance_head_);
      if (lexical_ != nullptr) {
        state.lexical = lexical_->Value(lexical_query_, (*tokens)->ids);
      }
    }
    if (needs_vector) {
      Encoding single = featurizer.Single(**tokens);
      state.single_truncated = single.truncated;
      state.truncated |= single.truncated;
      state.single = sequences().Add(std::move(single), recommendation_head_);
    }
    return absl::OkStatus();
  }

  absl::Status ScoreItem(const Outputs& outputs, absl::string_view id,
                         ItemState* item) {
    if (by_query()) {
      ASSIGN_OR_RETURN(const absl::Span<const float> logit,
                       OutputsOf(outputs, item->pair, relevance_head_));
      item->relevance =
          Sigmoid(lexical_ == nullptr
                      ? logit[0]
                      : lexical_->mixture().Logit(logit[0], item->lexical));
      item->score = item->relevance;
    }
    if (personalized()) {
      absl::Span<const float> vector;
      if (item->cached != nullptr) {
        vector = item->cached->vector;
      } else {
        ASSIGN_OR_RETURN(
            vector, OutputsOf(outputs, item->single, recommendation_head_));
        if (item->key.has_value()) {
          auto entry = std::make_shared<ItemVector>();
          entry->vector.assign(vector.begin(), vector.end());
          entry->truncated = item->single_truncated;
          parts().vectors.Insert(
              *item->key, std::move(entry),
              static_cast<int64_t>(vector.size() * sizeof(float)));
        }
      }
      item->personalization = Personalization(vector, id);
      item->score = by_query() ? (1 - weight_) * item->relevance +
                                     weight_ * item->personalization
                               : item->personalization;
    }
    item->score = std::clamp(item->score, 0.0, 1.0);
    return absl::OkStatus();
  }

  double Personalization(absl::Span<const float> vector,
                         absl::string_view id) const {
    double cosine = 0;
    for (size_t d = 0; d < vector.size(); ++d) {
      cosine += static_cast<double>(vector[d]) * history_vector_[d];
    }
    const internal::Head& head = model().heads()[recommendation_head_];
    // A head whose scale was never fitted: the cosine, moved to [0, 1].
    if (head.score_scale() == 0) {
      return std::clamp((1 + cosine) / 2, 0.0, 1.0);
    }
    double logit = cosine;
    if (counts_ != nullptr) {
      const int32_t item = counts_->Find(id);
      logit = counts_->mixture().Logit(cosine, history_counts_->Of(item),
                                       counts_->popularity(item));
    }
    return Sigmoid(head.score_scale() * logit + head.score_bias());
  }

  // What the shop's sequences say to the history. Ids that they do not know, or
  // none at all, leave the texts to speak.
  void CountHistory(absl::Span<const v1::Interaction* const> history) {
    counts_ = model().cooccurrence(recommendation_head_);
    if (counts_ == nullptr) return;
    std::vector<int32_t> items;
    for (const v1::Interaction* const interaction : history) {
      if (interaction->type() == v1::INTERACTION_TYPE_SKIP) continue;
      items.push_back(counts_->Find(interaction->item().id()));
    }
    history_counts_.emplace(*counts_, items, counts_->mixture().history_decay);
  }

  // The items of the answer: indices into the request.
  std::vector<int> Order() const {
    std::vector<int> order(items_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    if (!score_.sort) return order;
    const auto good_end =
        std::stable_partition(order.begin(), order.end(),
                              [this](int i) { return items_[i].status.ok(); });
    // By the score as it is sent: what looks equal keeps the request's order.
    std::stable_sort(order.begin(), good_end, [this](int a, int b) {
      return static_cast<float>(items_[a].score) >
             static_cast<float>(items_[b].score);
    });
    const int64_t good = good_end - order.begin();
    if (score_.top_k > 0 && score_.top_k < good) {
      order.erase(order.begin() + score_.top_k, good_end);
    }
    return order;
  }

  void FillItem(int i, v1::ScoredItem* out) const {
    const ItemState& item = items_[i];
    out->set_item_id(score_.items[i].id());
    out->set_index(i);
    if (!item.status.ok()) {
      *out->mutable_error() = ToRpcStatus(item.status);
      return;
    }
    out->set_score(static_cast<float>(item.score));
    out->set_truncated(item.truncated);
    if (by_query()) out->set_relevance(static_cast<float>(item.relevance));
    if (personalized()) {
      out->set_personalization(static_cast<float>(item.personalization));
    }
  }

  const ScoreCall score_;
  double weight_ = 0;
  int relevance_head_ = -1;       // where the context has a query
  int recommendation_head_ = -1;  // where it has a history
  std::string vector_maker_;      // of items' vectors by that head
  Tokens query_;
  const LexicalScorer* lexical_ = nullptr;  // of the head; null: it has none
  LexicalScorer::Query lexical_query_;      // where it has one
  int history_ = -1;                        // the history's sequence
  absl::Span<const float> history_vector_;
  const Cooccurrence* counts_ = nullptr;  // of the head; null: it has none
  std::optional<HistoryCounts> history_counts_;  // where it has some
  std::vector<ItemState> items_;
};

template <typename Request, typename Response>
std::shared_ptr<InferenceJob> New(const InferenceParts& parts,
                                  std::shared_ptr<Call> call, bool sort,
                                  int top_k) {
  const auto& request = static_cast<const Request&>(*call->request);
  auto& response = static_cast<Response&>(*call->response);
  std::optional<float> weight;
  if (request.has_personalization_weight()) {
    weight = request.personalization_weight();
  }
  const ScoreCall score = {.model = request.model(),
                           .context = request.context(),
                           .items = request.items(),
                           .weight = weight,
                           .sort = sort,
                           .top_k = top_k,
                           .answer_model = response.mutable_model(),
                           .answer_items = response.mutable_items(),
                           .answer_timings = response.mutable_timings()};
  return std::make_shared<ScoreJob>(parts, std::move(call), score);
}

}  // namespace

std::shared_ptr<InferenceJob> NewScoreJob(const InferenceParts& parts,
                                          std::shared_ptr<Call> call) {
  return New<v1::ScoreRequest, v1::ScoreResponse>(parts, std::move(call), false,
                                                  0);
}

std::shared_ptr<InferenceJob> NewRankJob(const InferenceParts& parts,
                                         std::shared_ptr<Call> call) {
  const int top_k = static_cast<v1::RankRequest&>(*call->request).top_k();
  return New<v1::RankRequest, v1::RankResponse>(parts, std::move(call), true,
                                                top_k);
}

}  // namespace vitrine
