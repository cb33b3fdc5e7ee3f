#include "server/head_jobs.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log_sum_exp.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

// Indices of the `top_k` largest (0: all), equal ones by their place.
std::vector<int> Largest(const std::vector<float>& values, int top_k) {
  std::vector<int> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&values](int a, int b) { return values[a] > values[b]; });
  if (top_k > 0 && top_k < static_cast<int>(order.size())) {
    order.resize(top_k);
  }
  return order;
}

// A head without names for its outputs numbers them, as Hugging Face does.
std::string LabelOf(const internal::Head& head, int index) {
  if (index < head.labels_size()) return head.labels(index);
  return absl::StrCat("LABEL_", index);
}

class InterestsJob : public InferenceJob {
 public:
  InterestsJob(const InferenceParts& parts, std::shared_ptr<Call> call)
      : InferenceJob(parts, std::move(call)),
        request_(
            static_cast<v1::PredictInterestsRequest&>(*this->call().request)),
        response_(static_cast<v1::PredictInterestsResponse&>(
            *this->call().response)) {}

 protected:
  absl::Status Prepare() override {
    RETURN_IF_ERROR(CheckBadStrings(call().bad_strings, "", nullptr));
    if (request_.history().empty()) {
      return absl::InvalidArgumentError("history: at least one is needed");
    }
    RETURN_IF_ERROR(parts().checks.TopK(request_.top_k()));
    RETURN_IF_ERROR(parts().checks.History("history", request_.history()));
    RETURN_IF_ERROR(Pin(request_.model()));
    head_ = model().interest_head();
    if (head_ < 0) return MissingHead(version(), "interest");
    call().head = model().heads()[head_].name();
    std::vector<const v1::Interaction*> history;
    for (const v1::Interaction& interaction : request_.history()) {
      history.push_back(&interaction);
    }
    ASSIGN_OR_RETURN(Encoding encoding, model().featurizer().History(history));
    response_.set_truncated(encoding.truncated);
    sequences().Add(std::move(encoding), head_);
    return absl::OkStatus();
  }

  // The one history is encoded in Prepare.
  int elements() const override { return 0; }
  int items() const override { return 1; }
  void Encode(int) override {}

  absl::Status Answer(const Outputs& outputs) override {
    ASSIGN_OR_RETURN(const absl::Span<const float> logits,
                     OutputsOf(outputs, 0, head_));
    std::vector<float> probabilities;
    for (const float logit : logits) {
      probabilities.push_back(static_cast<float>(Sigmoid(logit)));
    }
    const internal::Head& head = model().heads()[head_];
    FillModel(response_.mutable_model());
    for (const int i : Largest(probabilities, request_.top_k())) {
      v1::Interest& interest = *response_.add_interests();
      interest.set_category(LabelOf(head, i));
      interest.set_probability(probabilities[i]);
    }
    FillTimings(response_.mutable_timings());
    return absl::OkStatus();
  }

 private:
  const v1::PredictInterestsRequest& request_;
  v1::PredictInterestsResponse& response_;
  int head_ = -1;
};

// What Embed and Classify share: a list, each element one sequence or an error
// of its own, one head.
class ListJob : public InferenceJob {
 public:
  using InferenceJob::InferenceJob;

  int elements() const override { return static_cast<int>(states_.size()); }

  void Encode(int i) override {
    State& state = states_[i];
    if (!state.status.ok()) return;
    absl::StatusOr<Encoding> encoding = EncodeElement(i);
    if (!encoding.ok()) {
      state.status = encoding.status();
      return;
    }
    state.truncated = encoding->truncated;
    state.sequence = sequences().Add(*std::move(encoding), head_);
  }

 protected:
  struct State {
    absl::Status status;
    bool truncated = false;
    int sequence = -1;
  };

  virtual absl::StatusOr<Encoding> EncodeElement(int i) = 0;

  absl::Status Init(const char* field, int count) {
    std::vector<absl::Status> bad(count);
    RETURN_IF_ERROR(CheckBadStrings(call().bad_strings, field, &bad));
    states_.resize(count);
    for (int i = 0; i < count; ++i) states_[i].status = bad[i];
    return absl::OkStatus();
  }

  void UseHead(int head) {
    head_ = head;
    call().head = model().heads()[head].name();
  }

  // The element's outputs, or its error.
  absl::StatusOr<absl::Span<const float>> ElementOutputs(const Outputs& outputs,
                                                         int i) const {
    RETURN_IF_ERROR(states_[i].status);
    return OutputsOf(outputs, states_[i].sequence, head_);
  }

  absl::StatusOr<Encoding> EncodeText(int i, const std::string& text) {
    const std::string path = absl::StrCat("texts[", i, "]");
    RETURN_IF_ERROR(parts().checks.Text(path, text));
    absl::StatusOr<Encoding> encoding = model().featurizer().Text(text);
    if (!encoding.ok()) return Annotate(encoding.status(), path);
    return encoding;
  }

  int head() const { return head_; }
  bool truncated(int i) const { return states_[i].truncated; }

 private:
  std::vector<State> states_;
  int head_ = -1;
};

class EmbedJob : public ListJob {
 public:
  EmbedJob(const InferenceParts& parts, std::shared_ptr<Call> call)
      : ListJob(parts, std::move(call)),
        request_(static_cast<v1::EmbedRequest&>(*this->call().request)),
        response_(static_cast<v1::EmbedResponse&>(*this->call().response)) {}

 protected:
  absl::Status Prepare() override {
    if (request_.texts_size() > 0 && request_.items_size() > 0) {
      return absl::InvalidArgumentError("texts and items: only one of the two");
    }
    if (request_.texts_size() == 0 && request_.items_size() == 0) {
      return absl::InvalidArgumentError(
          "texts or items: at least one is needed");
    }
    if (request_.items_size() > 0) {
      RETURN_IF_ERROR(parts().checks.ItemCount(request_.items_size()));
      RETURN_IF_ERROR(Init("items", request_.items_size()));
    } else {
      RETURN_IF_ERROR(parts().checks.TextCount(request_.texts_size()));
      RETURN_IF_ERROR(Init("texts", request_.texts_size()));
    }
    RETURN_IF_ERROR(Pin(request_.model()));
    if (model().embedding_head() < 0)
      return MissingHead(version(), "embedding");
    UseHead(model().embedding_head());
    return absl::OkStatus();
  }

  absl::StatusOr<Encoding> EncodeElement(int i) override {
    if (request_.texts_size() > 0) return EncodeText(i, request_.texts(i));
    const std::string path = absl::StrCat("items[", i, "]");
    RETURN_IF_ERROR(parts().checks.Item(path, request_.items(i)));
    const Featurizer& featurizer = model().featurizer();
    const absl::StatusOr<std::shared_ptr<const Tokens>> tokens =
        parts().tokens.ItemText(featurizer, request_.items(i));
    if (!tokens.ok()) return Annotate(tokens.status(), path);
    return featurizer.Single(**tokens);
  }

  absl::Status Answer(const Outputs& outputs) override {
    FillModel(response_.mutable_model());
    int errors = 0;
    for (int i = 0; i < elements(); ++i) {
      v1::Embedding& out = *response_.add_embeddings();
      if (request_.items_size() > 0) out.set_item_id(request_.items(i).id());
      const absl::StatusOr<absl::Span<const float>> vector =
          ElementOutputs(outputs, i);
      if (!vector.ok()) {
        *out.mutable_error() = ToRpcStatus(vector.status());
        ++errors;
        continue;
      }
      out.mutable_values()->Add(vector->begin(), vector->end());
      out.set_truncated(truncated(i));
    }
    CountItemErrors(errors);
    FillTimings(response_.mutable_timings());
    return absl::OkStatus();
  }

 private:
  const v1::EmbedRequest& request_;
  v1::EmbedResponse& response_;
};

class ClassifyJob : public ListJob {
 public:
  ClassifyJob(const InferenceParts& parts, std::shared_ptr<Call> call)
      : ListJob(parts, std::move(call)),
        request_(static_cast<v1::ClassifyRequest&>(*this->call().request)),
        response_(static_cast<v1::ClassifyResponse&>(*this->call().response)) {}

 protected:
  absl::Status Prepare() override {
    RETURN_IF_ERROR(parts().checks.TextCount(request_.texts_size()));
    RETURN_IF_ERROR(parts().checks.TopK(request_.top_k()));
    RETURN_IF_ERROR(parts().checks.Text("head", request_.head()));
    RETURN_IF_ERROR(Init("texts", request_.texts_size()));
    RETURN_IF_ERROR(Pin(request_.model()));
    const absl::StatusOr<int> head =
        model().classification_head(request_.head());
    RETURN_IF_ERROR(head.status());
    UseHead(*head);
    ngrams_ = model().ngrams(*head);
    margins_.resize(request_.texts_size());
    return absl::OkStatus();
  }

  absl::StatusOr<Encoding> EncodeElement(int i) override {
    absl::StatusOr<Encoding> text = EncodeText(i, request_.texts(i));
    if (ngrams_ != nullptr && text.ok()) {
      margins_[i] = ngrams_->Margins(text->ids);
    }
    return text;
  }

  absl::Status Answer(const Outputs& outputs) override {
    const internal::Head& meta = model().heads()[head()];
    FillModel(response_.mutable_model());
    int errors = 0;
    for (int i = 0; i < elements(); ++i) {
      v1::Classification& out = *response_.add_results();
      const absl::StatusOr<absl::Span<const float>> encoder =
          ElementOutputs(outputs, i);
      if (!encoder.ok()) {
        *out.mutable_error() = ToRpcStatus(encoder.status());
        ++errors;
        continue;
      }
      std::vector<float> logits(encoder->begin(), encoder->end());
      if (ngrams_ != nullptr) {
        ngrams_->mixture().Combine(margins_[i], absl::MakeSpan(logits));
      }
      const double log_sum = LogSumExp(logits);
      for (const int label : Largest(logits, request_.top_k())) {
        v1::LabelProbability& to = *out.add_labels();
        to.set_label(LabelOf(meta, label));
        to.set_probability(
            static_cast<float>(std::exp(logits[label] - log_sum)));
      }
      out.set_energy(static_cast<float>(-log_sum));
      out.set_truncated(truncated(i));
    }
    CountItemErrors(errors);
    FillTimings(response_.mutable_timings());
    return absl::OkStatus();
  }

 private:
  const v1::ClassifyRequest& request_;
  v1::ClassifyResponse& response_;
  const NgramClassifier* ngrams_ = nullptr;  // of the head; null: it has none
  std::vector<std::vector<float>> margins_;  // of each text
};

}  // namespace

std::shared_ptr<InferenceJob> NewInterestsJob(const InferenceParts& parts,
                                              std::shared_ptr<Call> call) {
  return std::make_shared<InterestsJob>(parts, std::move(call));
}

std::shared_ptr<InferenceJob> NewEmbedJob(const InferenceParts& parts,
                                          std::shared_ptr<Call> call) {
  return std::make_shared<EmbedJob>(parts, std::move(call));
}

std::shared_ptr<InferenceJob> NewClassifyJob(const InferenceParts& parts,
                                             std::shared_ptr<Call> call) {
  return std::make_shared<ClassifyJob>(parts, std::move(call));
}

}  // namespace vitrine
