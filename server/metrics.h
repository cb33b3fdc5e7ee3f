#pragma once

// Everything that /metrics shows. README.md has the table.
//
// Series are made at the start or when a version is loaded, at zero, and then
// held by reference: a call never looks one up by labels. Label values come
// from fixed sets: methods, codes, reasons, models and heads being served.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/batcher.h"
#include "server/lru_cache.h"
#include "vitrine/v1/feedback.pb.h"

namespace vitrine {

enum class Method {
  kScore,
  kRank,
  kPredictInterests,
  kEmbed,
  kClassify,
  kListModels,
  kRecordFeedback,
  kImportFeedback,
  kStartTraining,
  kGetTrainingJob,
  kListTrainingJobs,
  kWatchTrainingJob,
  kCancelTrainingJob,
  kListModelVersions,
  kGetModelVersion,
  kActivateModelVersion,
  kRollbackModel,
  kListAuditEvents,
};
inline constexpr int kMethods = 18;
// Those from 0 to this one are InferenceService's: they have items, heads and
// a model's times.
inline constexpr int kInferenceMethods = 6;
absl::string_view MethodName(Method method);  // "Score"

// Why a call was turned away before the model ran.
enum class Rejection {
  kTooManyCalls,  // limits.max_concurrent_calls
  kPoolFull,      // no room among the tasks of the thread pool
  kQueueFull,     // batcher.max_queue_tokens
  kStopping,
};
inline constexpr int kRejections = 4;

// Where one call's time went.
struct CallTimes {
  absl::Duration queue;
  absl::Duration tokenize;
  absl::Duration compute;
  absl::Duration total;
};

// Histograms of one method over one version's heads. Empty label values for
// calls that ended before a version was chosen. The last three are null for
// calls that need no model.
struct CallSeries {
  prometheus::Histogram* request = nullptr;
  prometheus::Histogram* queue = nullptr;
  prometheus::Histogram* tokenize = nullptr;
  prometheus::Histogram* compute = nullptr;

  void Observe(const CallTimes& times) const;
};

class Metrics;

// The series of one version; they leave /metrics with this object. Owned
// beside the version; any thread.
class VersionMetrics {
 public:
  // A method and the name of the head (or "a+b") that answers it.
  using Use = std::pair<Method, std::string>;

  VersionMetrics(Metrics& metrics, const std::string& model,
                 const std::string& version, const std::vector<Use>& uses,
                 absl::Duration load_time);
  ~VersionMetrics();
  VersionMetrics(const VersionMetrics&) = delete;
  VersionMetrics& operator=(const VersionMetrics&) = delete;

  // Null for a use that was not announced.
  const CallSeries* Find(Method method, const std::string& head) const;

  prometheus::Counter& tokens() const { return *tokens_; }
  prometheus::Counter& truncations() const { return *truncations_; }

 private:
  Metrics& metrics_;
  const std::pair<std::string, std::string> key_;  // model, version
  prometheus::Counter* tokens_;
  prometheus::Counter* truncations_;
  prometheus::Gauge* load_seconds_;
  std::map<Use, CallSeries> series_;
};

// Outlives everything that counts. Any thread.
class Metrics {
 public:
  Metrics();

  const std::shared_ptr<prometheus::Registry>& registry() const {
    return registry_;
  }

  void CountRequest(Method method, absl::StatusCode code);
  prometheus::Counter& items(Method method);
  prometheus::Counter& item_errors(Method method);
  prometheus::Counter& rejected(Rejection reason);
  prometheus::Gauge& calls_in_flight() { return calls_in_flight_; }
  const CallSeries& unversioned(Method method) const;

  BatcherMetrics batcher() const { return batcher_; }

  CacheMetrics token_cache() const { return token_cache_; }
  CacheMetrics item_vector_cache() const { return item_vector_cache_; }

  // By what became of them.
  prometheus::Counter& feedback(v1::FeedbackOutcome outcome) {
    return *feedback_[outcome];
  }
  prometheus::Gauge& feedback_waiting() { return feedback_waiting_; }
  prometheus::Histogram& feedback_commit_seconds() {
    return feedback_commit_seconds_;
  }

  // Made on first use: call both when a model is known, before any load.
  prometheus::Gauge& model_version(const std::string& model);
  prometheus::Counter& swaps(const std::string& model);
  prometheus::Counter& load_failures(const std::string& model);

 private:
  friend class VersionMetrics;

  CallSeries NewSeries(Method method, const std::string& model,
                       const std::string& version, const std::string& head);
  void Remove(const CallSeries& series);

  const std::shared_ptr<prometheus::Registry> registry_;

  // A version may be loaded again while a call still holds its first load.
  // The two share their series: how many loads of (model, version) there are.
  Mutex mu_;
  std::map<std::pair<std::string, std::string>, int> loads_
      ABSL_GUARDED_BY(mu_);

  prometheus::Family<prometheus::Histogram>& request_seconds_;
  prometheus::Family<prometheus::Histogram>& queue_seconds_;
  prometheus::Family<prometheus::Histogram>& tokenize_seconds_;
  prometheus::Family<prometheus::Histogram>& compute_seconds_;
  prometheus::Family<prometheus::Counter>& tokens_;
  prometheus::Family<prometheus::Counter>& truncations_;
  prometheus::Family<prometheus::Gauge>& load_seconds_;
  prometheus::Family<prometheus::Gauge>& model_version_;
  prometheus::Family<prometheus::Counter>& load_failures_;
  prometheus::Family<prometheus::Counter>& swaps_;
  prometheus::Gauge& calls_in_flight_;
  const CacheMetrics token_cache_;
  const CacheMetrics item_vector_cache_;
  prometheus::Gauge& feedback_waiting_;
  prometheus::Histogram& feedback_commit_seconds_;

  static constexpr int kCodes = 17;  // OK to UNAUTHENTICATED
  std::array<std::array<prometheus::Counter*, kCodes>, kMethods> requests_;
  std::array<prometheus::Counter*, kInferenceMethods> items_;
  std::array<prometheus::Counter*, kInferenceMethods> item_errors_;
  std::array<prometheus::Counter*, kRejections> rejected_;
  std::array<CallSeries, kMethods> unversioned_;
  std::array<prometheus::Counter*, v1::FeedbackOutcome_ARRAYSIZE> feedback_;
  BatcherMetrics batcher_;
};

}  // namespace vitrine
