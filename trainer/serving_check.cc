#include "trainer/serving_check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMinRuns = 5;
constexpr int kMaxRuns = 101;
constexpr std::chrono::seconds kTimeForRuns(2);

absl::StatusOr<int> HeadNumber(const ServableModel& model,
                               const std::string& name) {
  for (size_t h = 0; h < model.heads().size(); ++h) {
    if (model.heads()[h].name() == name) return static_cast<int>(h);
  }
  return absl::InternalError(absl::StrCat("the version has no head ", name));
}

absl::StatusOr<Batch> MakeBatch(const ServableModel& model,
                                absl::Span<const HeadInput> inputs) {
  Batch batch;
  for (const auto& [head, encoding] : inputs) {
    ASSIGN_OR_RETURN(const int h, HeadNumber(model, head));
    batch.Add(encoding, HeadMask{1} << h);
  }
  return batch;
}

absl::StatusOr<double> Milliseconds(const Engine& engine, const Batch& batch) {
  const Clock::time_point start = Clock::now();
  RETURN_IF_ERROR(engine.Run(batch).status());
  return std::chrono::duration<double, std::milli>(Clock::now() - start)
      .count();
}

double Median(std::vector<double> times) {
  const auto middle = times.begin() + times.size() / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ServableModel>> LoadForCheck(
    const std::string& folder, bool verify_digests, internal::Dtype dtype) {
  ServableOptions options;
  options.engine.device = internal::DEVICE_CPU;
  options.engine.dtype = dtype;
  options.verify_digests = verify_digests;
  return ServableModel::Load(folder, options);
}

absl::StatusOr<std::vector<std::string>> CompareServed(
    const ServableModel& model, absl::Span<const HeadInput> inputs,
    absl::Span<const std::vector<float>> outputs, double tolerance) {
  std::vector<std::string> reasons;
  std::set<std::string> named;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string& head = inputs[i].first;
    ASSIGN_OR_RETURN(const Batch batch, MakeBatch(model, inputs.subspan(i, 1)));
    ASSIGN_OR_RETURN(const Outputs served, model.engine().Run(batch));
    const absl::Span<const float> values = served.Of(0);
    if (values.size() != outputs[i].size()) {
      return absl::InternalError(
          absl::StrCat("head ", head, ": ", values.size(), " outputs, ",
                       outputs[i].size(), " in training"));
    }
    for (size_t k = 0; k < values.size() && !named.contains(head); ++k) {
      const double trained = outputs[i][k];
      const double difference = std::abs(values[k] - trained);
      const double allowed = tolerance * std::max(1.0, std::abs(trained));
      // Written so that NaN fails.
      if (difference <= allowed) continue;
      named.insert(head);
      reasons.push_back(absl::StrCat(head, ": output ", k, " of golden input ",
                                     i, " is ", values[k], " as served, ",
                                     trained, " in training: they differ by ",
                                     difference, ", more than ", allowed));
    }
  }
  return reasons;
}

absl::StatusOr<BatchLatency> CompareLatency(
    const ServableModel& candidate,
    absl::Span<const HeadInput> candidate_inputs,
    const ServableModel& incumbent,
    absl::Span<const HeadInput> incumbent_inputs) {
  if (candidate_inputs.empty() || incumbent_inputs.empty()) {
    return BatchLatency{};
  }
  ASSIGN_OR_RETURN(const Batch ours, MakeBatch(candidate, candidate_inputs));
  ASSIGN_OR_RETURN(const Batch theirs, MakeBatch(incumbent, incumbent_inputs));
  std::vector<double> our_times, their_times;
  const Clock::time_point start = Clock::now();
  for (int run = -1; run < kMaxRuns; ++run) {
    if (run >= kMinRuns && Clock::now() - start > kTimeForRuns) break;
    ASSIGN_OR_RETURN(const double our_time,
                     Milliseconds(candidate.engine(), ours));
    ASSIGN_OR_RETURN(const double their_time,
                     Milliseconds(incumbent.engine(), theirs));
    if (run < 0) continue;  // makes what is made once for such shapes
    our_times.push_back(our_time);
    their_times.push_back(their_time);
  }
  return BatchLatency{Median(std::move(our_times)),
                      Median(std::move(their_times))};
}

}  // namespace vitrine
