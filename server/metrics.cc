#include "server/metrics.h"

#include "server/version.h"

namespace vitrine {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;

// From a cache hit to the longest deadline anybody should set.
const Histogram::BucketBoundaries kSeconds = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25,   0.5,   1,      2.5,   5,    10,    30};
const Histogram::BucketBoundaries kTokens = {16,   32,   64,   128,  256,  512,
                                             1024, 2048, 4096, 8192, 16384};
const Histogram::BucketBoundaries kSequences = {1,  2,  4,   8,   16,
                                                32, 64, 128, 256, 512};
const Histogram::BucketBoundaries kShares = {0.05, 0.1, 0.2, 0.3,
                                             0.4,  0.5, 0.7, 0.9};

// Prometheus' names of gRPC codes, by number.
constexpr const char* kCodeNames[] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};
constexpr const char* kReasonNames[] = {"too_many_calls", "pool_full",
                                        "queue_full", "stopping"};

Family<Counter>& Counters(Registry& registry, const std::string& name,
                          const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}
Family<Gauge>& Gauges(Registry& registry, const std::string& name,
                      const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
Family<Histogram>& Histograms(Registry& registry, const char* name,
                              const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}
CacheMetrics Cache(Registry& registry, const std::string& name,
                   const char* hits_help, const char* misses_help,
                   const char* bytes_help) {
  return {.hits = &Counters(registry, name + "_hits_total", hits_help).Add({}),
          .misses =
              &Counters(registry, name + "_misses_total", misses_help).Add({}),
          .bytes = &Gauges(registry, name + "_bytes", bytes_help).Add({})};
}

}  // namespace

absl::string_view MethodName(Method method) {
  switch (method) {
    case Method::kScore:
      return "Score";
    case Method::kRank:
      return "Rank";
    case Method::kPredictInterests:
      return "PredictInterests";
    case Method::kEmbed:
      return "Embed";
    case Method::kClassify:
      return "Classify";
    case Method::kListModels:
      return "ListModels";
    case Method::kRecordFeedback:
      return "RecordFeedback";
    case Method::kImportFeedback:
      return "ImportFeedback";
    case Method::kStartTraining:
      return "StartTraining";
    case Method::kGetTrainingJob:
      return "GetTrainingJob";
    case Method::kListTrainingJobs:
      return "ListTrainingJobs";
    case Method::kWatchTrainingJob:
      return "WatchTrainingJob";
    case Method::kCancelTrainingJob:
      return "CancelTrainingJob";
    case Method::kListModelVersions:
      return "ListModelVersions";
    case Method::kGetModelVersion:
      return "GetModelVersion";
    case Method::kActivateModelVersion:
      return "ActivateModelVersion";
    case Method::kRollbackModel:
      return "RollbackModel";
    case Method::kListAuditEvents:
      return "ListAuditEvents";
  }
  return "";
}

void CallSeries::Observe(const CallTimes& times) const {
  request->Observe(absl::ToDoubleSeconds(times.total));
  if (queue == nullptr) return;
  queue->Observe(absl::ToDoubleSeconds(times.queue));
  tokenize->Observe(absl::ToDoubleSeconds(times.tokenize));
  compute->Observe(absl::ToDoubleSeconds(times.compute));
}

VersionMetrics::VersionMetrics(Metrics& metrics, const std::string& model,
                               const std::string& version,
                               const std::vector<Use>& uses,
                               absl::Duration load_time)
    : metrics_(metrics), key_(model, version) {
  MutexLock lock(metrics_.mu_);
  ++metrics_.loads_[key_];
  const prometheus::Labels labels = {{"model", model}, {"version", version}};
  tokens_ = &metrics_.tokens_.Add(labels);
  truncations_ = &metrics_.truncations_.Add(labels);
  load_seconds_ = &metrics_.load_seconds_.Add(labels);
  load_seconds_->Set(absl::ToDoubleSeconds(load_time));
  for (const Use& use : uses) {
    series_[use] = metrics_.NewSeries(use.first, model, version, use.second);
  }
}

VersionMetrics::~VersionMetrics() {
  MutexLock lock(metrics_.mu_);
  if (--metrics_.loads_[key_] > 0) return;
  metrics_.loads_.erase(key_);
  for (const auto& [use, series] : series_) metrics_.Remove(series);
  metrics_.tokens_.Remove(tokens_);
  metrics_.truncations_.Remove(truncations_);
  metrics_.load_seconds_.Remove(load_seconds_);
}

const CallSeries* VersionMetrics::Find(Method method,
                                       const std::string& head) const {
  const auto it = series_.find({method, head});
  return it == series_.end() ? nullptr : &it->second;
}

Metrics::Metrics()
    : registry_(std::make_shared<Registry>()),
      request_seconds_(Histograms(*registry_, "vitrine_request_seconds",
                                  "From a call's arrival to its answer.")),
      queue_seconds_(Histograms(*registry_, "vitrine_queue_seconds",
                                "A call's wait for threads and batches.")),
      tokenize_seconds_(Histograms(*registry_, "vitrine_tokenize_seconds",
                                   "Turning a call's texts into token ids.")),
      compute_seconds_(Histograms(*registry_, "vitrine_compute_seconds",
                                  "A call's batches in the model.")),
      tokens_(Counters(*registry_, "vitrine_tokens_total",
                       "Tokens sent to the model.")),
      truncations_(Counters(*registry_, "vitrine_truncations_total",
                            "Sequences whose text was cut to fit.")),
      load_seconds_(Gauges(*registry_, "vitrine_model_load_seconds",
                           "How long the version took to load.")),
      model_version_(Gauges(*registry_, "vitrine_model_version",
                            "The version in service; 0 before the first.")),
      load_failures_(
          Counters(*registry_, "vitrine_model_load_failures_total",
                   "Versions that could not be loaded or activated.")),
      swaps_(Counters(*registry_, "vitrine_model_swaps_total",
                      "Versions that came into service.")),
      calls_in_flight_(
          Gauges(*registry_, "vitrine_calls_in_flight",
                 "Calls that have arrived and are not answered yet.")
              .Add({})),
      token_cache_(Cache(*registry_, "vitrine_token_cache",
                         "Items whose tokens were found in the cache.",
                         "Items that had to be tokenized.",
                         "Memory taken by cached tokens.")),
      item_vector_cache_(Cache(*registry_, "vitrine_item_vector_cache",
                               "Item vectors found in the cache.",
                               "Item vectors that had to be computed.",
                               "Memory taken by cached item vectors.")),
      feedback_waiting_(Gauges(*registry_, "vitrine_feedback_waiting",
                               "Entries waiting to be committed.")
                            .Add({})),
      feedback_commit_seconds_(
          Histograms(*registry_, "vitrine_feedback_commit_seconds",
                     "Writing one batch of entries to the label store.")
              .Add({}, kSeconds)) {
  Family<Counter>& requests = Counters(*registry_, "vitrine_requests_total",
                                       "Calls answered, by gRPC code.");
  Family<Counter>& items =
      Counters(*registry_, "vitrine_items_total",
               "Items, texts or histories in calls that reached a model.");
  Family<Counter>& item_errors =
      Counters(*registry_, "vitrine_item_errors_total",
               "Items and texts answered with an error of their own.");
  for (int m = 0; m < kMethods; ++m) {
    const std::string method(MethodName(static_cast<Method>(m)));
    for (int c = 0; c < kCodes; ++c) {
      requests_[m][c] =
          &requests.Add({{"method", method}, {"code", kCodeNames[c]}});
    }
    if (m < kInferenceMethods) {
      items_[m] = &items.Add({{"method", method}});
      item_errors_[m] = &item_errors.Add({{"method", method}});
    }
    unversioned_[m] = NewSeries(static_cast<Method>(m), "", "", "");
  }
  Family<Counter>& rejected =
      Counters(*registry_, "vitrine_rejected_total",
               "Calls turned away before the model ran.");
  for (int r = 0; r < kRejections; ++r) {
    rejected_[r] = &rejected.Add({{"reason", kReasonNames[r]}});
  }
  Family<Counter>& feedback = Counters(*registry_, "vitrine_feedback_total",
                                       "Entries of feedback, by outcome.");
  constexpr const char* kOutcomes[] = {"unspecified", "stored", "duplicate",
                                       "rejected"};
  static_assert(std::size(kOutcomes) == v1::FeedbackOutcome_ARRAYSIZE);
  for (int o = 1; o < v1::FeedbackOutcome_ARRAYSIZE; ++o) {
    feedback_[o] = &feedback.Add({{"outcome", kOutcomes[o]}});
  }
  batcher_.batch_tokens =
      &Histograms(*registry_, "vitrine_batch_tokens", "Tokens in a batch.")
           .Add({}, kTokens);
  batcher_.batch_sequences = &Histograms(*registry_, "vitrine_batch_sequences",
                                         "Sequences in a batch.")
                                  .Add({}, kSequences);
  batcher_.batch_seconds =
      &Histograms(*registry_, "vitrine_batch_seconds", "Running one batch.")
           .Add({}, kSeconds);
  batcher_.padding_share =
      &Histograms(*registry_, "vitrine_batch_padding_share",
                  "The share of padding if a batch's sequences were padded to "
                  "its longest.")
           .Add({}, kShares);
  batcher_.queue_tokens =
      &Gauges(*registry_, "vitrine_queue_tokens", "Tokens waiting for a batch.")
           .Add({});
  batcher_.queue_calls = &Gauges(*registry_, "vitrine_queue_calls",
                                 "Calls with sequences waiting for a batch.")
                              .Add({});
  Gauges(*registry_, "vitrine_build_info", "Always 1; the labels tell.")
      .Add({{"version", kVersion},
            {"compiler", kCompiler},
            {"build_type", kBuildType}})
      .Set(1);
}

void Metrics::CountRequest(Method method, absl::StatusCode code) {
  int c = static_cast<int>(code);
  if (c < 0 || c >= kCodes) c = static_cast<int>(absl::StatusCode::kUnknown);
  requests_[static_cast<int>(method)][c]->Increment();
}

Counter& Metrics::items(Method method) {
  return *items_[static_cast<int>(method)];
}
Counter& Metrics::item_errors(Method method) {
  return *item_errors_[static_cast<int>(method)];
}
Counter& Metrics::rejected(Rejection reason) {
  return *rejected_[static_cast<int>(reason)];
}
const CallSeries& Metrics::unversioned(Method method) const {
  return unversioned_[static_cast<int>(method)];
}

Gauge& Metrics::model_version(const std::string& model) {
  return model_version_.Add({{"model", model}});
}
Counter& Metrics::load_failures(const std::string& model) {
  return load_failures_.Add({{"model", model}});
}

Counter& Metrics::swaps(const std::string& model) {
  return swaps_.Add({{"model", model}});
}

CallSeries Metrics::NewSeries(Method method, const std::string& model,
                              const std::string& version,
                              const std::string& head) {
  const prometheus::Labels labels = {
      {"method", std::string(MethodName(method))},
      {"model", model},
      {"version", version},
      {"head", head}};
  if (static_cast<int>(method) >= kInferenceMethods) {
    return {&request_seconds_.Add(labels, kSeconds)};
  }
  return {&request_seconds_.Add(labels, kSeconds),
          &queue_seconds_.Add(labels, kSeconds),
          &tokenize_seconds_.Add(labels, kSeconds),
          &compute_seconds_.Add(labels, kSeconds)};
}

void Metrics::Remove(const CallSeries& series) {
  request_seconds_.Remove(series.request);
  queue_seconds_.Remove(series.queue);
  tokenize_seconds_.Remove(series.tokenize);
  compute_seconds_.Remove(series.compute);
}

}  // namespace vitrine
