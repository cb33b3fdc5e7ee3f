#include "trainer/gate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "trainer/bootstrap.h"

namespace vitrine {
namespace {

constexpr double kConfidence = 0.95;
constexpr int kResamples = 1000;
constexpr int kMaxResamples = 100'000;
constexpr double kMaxLatencyRatio = 1.5;
constexpr int kMinValidationRows = 20;

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

double Confidence(const v1::Gate& gate) {
  return gate.confidence() == 0 ? kConfidence : gate.confidence();
}

// One rule for one head.
struct Rule {
  size_t head;
  v1::GateRule rule;
};

// The rules with heads put in; the default ones where there are none.
std::vector<Rule> Expand(const v1::Gate& gate,
                         absl::Span<const GateHead> heads) {
  std::vector<Rule> rules;
  for (size_t h = 0; h < heads.size() && gate.rules().empty(); ++h) {
    v1::GateRule rule;
    rule.set_metric(MetricNames(heads[h].kind).front());
    rule.set_min_change(0);
    rules.push_back({h, rule});
  }
  for (const v1::GateRule& rule : gate.rules()) {
    for (size_t h = 0; h < heads.size(); ++h) {
      if (Contains(MetricNames(heads[h].kind), rule.metric()) &&
          (rule.head().empty() || rule.head() == heads[h].name)) {
        rules.push_back({h, rule});
      }
    }
  }
  return rules;
}

// Empty: the rule is sound.
std::string ProblemOf(const v1::GateRule& rule,
                      absl::Span<const GateHead> heads) {
  if (rule.metric().empty()) return "metric: empty";
  std::vector<std::string> names, metrics;
  for (const GateHead& head : heads) {
    names.push_back(head.name);
    if (!rule.head().empty() && rule.head() != head.name) continue;
    for (const std::string& metric : MetricNames(head.kind)) {
      if (!Contains(metrics, metric)) metrics.push_back(metric);
    }
  }
  if (!rule.head().empty() && !Contains(names, rule.head())) {
    return absl::StrCat("head \"", rule.head(), "\": not trained; there is ",
                        absl::StrJoin(names, ", "));
  }
  if (!Contains(metrics, rule.metric())) {
    return absl::StrCat("metric \"", rule.metric(), "\": not one of ",
                        absl::StrJoin(metrics, ", "));
  }
  if (!rule.has_bound() && !rule.has_min_change()) {
    return "neither bound nor min_change";
  }
  if (!std::isfinite(rule.bound())) {
    return absl::StrCat("bound: ", rule.bound());
  }
  if (!std::isfinite(rule.min_change())) {
    return absl::StrCat("min_change: ", rule.min_change());
  }
  if (!v1::GateEvidence_IsValid(rule.evidence())) {
    return absl::StrCat("evidence: ", static_cast<int>(rule.evidence()));
  }
  if (rule.evidence() != v1::GATE_EVIDENCE_UNSPECIFIED &&
      !rule.has_min_change()) {
    return "evidence without min_change";
  }
  return "";
}

v1::EvaluationMetric* FindMetric(const std::string& head,
                                 const std::string& name, Verdict* verdict) {
  for (v1::EvaluationMetric& metric : verdict->metrics) {
    if (metric.head() == head && metric.name() == name) return &metric;
  }
  return nullptr;
}

// Reasons against the candidate by `rule`; comparisons are written so that NaN
// does not pass.
void Apply(const v1::GateRule& rule, const v1::EvaluationMetric& metric,
           double confidence, std::vector<std::string>* rejections) {
  const std::string subject = absl::StrCat(metric.head(), " ", metric.name());
  if (rule.has_bound()) {
    const bool good = metric.lower_is_better() ? metric.value() <= rule.bound()
                                               : metric.value() >= rule.bound();
    if (!good) {
      rejections->push_back(absl::StrFormat(
          "%s: %.4f is %s the bound %g", subject, metric.value(),
          metric.lower_is_better() ? "above" : "below", rule.bound()));
    }
  }
  if (!rule.has_min_change() || !metric.has_before()) return;
  // Ends of the change for the better.
  const double low =
      metric.lower_is_better() ? -metric.change_high() : metric.change_low();
  const double high =
      metric.lower_is_better() ? -metric.change_low() : metric.change_high();
  const bool proof = rule.evidence() == v1::GATE_EVIDENCE_PROOF_OF_GAIN;
  if (proof ? low >= rule.min_change() : high >= rule.min_change()) return;
  rejections->push_back(absl::StrFormat(
      "%s: %.4f -> %.4f, change in [%.4f, %.4f] at %g%%: %s (%g)", subject,
      metric.before(), metric.value(), metric.change_low(),
      metric.change_high(), 100 * confidence,
      proof ? "no proof of the gain that is asked for" : "worse than allowed",
      rule.min_change()));
}

// Appends the head's metrics.
absl::Status AddMetrics(const HeadUnderTest& under_test,
                        const BootstrapOptions& options, Verdict* verdict) {
  const std::vector<MetricValue>& values = under_test.candidate->metrics();
  std::vector<Interval> changes;
  if (under_test.incumbent != nullptr && under_test.candidate->units() > 0) {
    absl::StatusOr<std::vector<Interval>> intervals =
        BootstrapChanges(*under_test.candidate, *under_test.incumbent, options);
    if (!intervals.ok()) {
      return Annotate(intervals.status(),
                      absl::StrCat("head ", under_test.head.name));
    }
    changes = *std::move(intervals);
  }
  for (size_t m = 0; m < values.size(); ++m) {
    v1::EvaluationMetric& metric = verdict->metrics.emplace_back();
    metric.set_head(under_test.head.name);
    metric.set_name(values[m].name);
    metric.set_value(values[m].value);
    metric.set_lower_is_better(values[m].lower_is_better);
    if (changes.empty()) continue;
    metric.set_before(under_test.incumbent->metrics()[m].value);
    metric.set_change_low(changes[m].low);
    metric.set_change_high(changes[m].high);
  }
  return absl::OkStatus();
}

// Whether there is too little to judge `rule` by.
std::string LackOfEvidence(const v1::GateRule& rule,
                           const HeadUnderTest& under_test) {
  const std::vector<MetricValue>& metrics = under_test.candidate->metrics();
  for (size_t m = 0; m < metrics.size(); ++m) {
    if (metrics[m].name != rule.metric()) continue;
    const int counted = under_test.candidate->Counted(m);
    // One unit resampled is always itself: an interval that says nothing.
    const int needed =
        rule.has_min_change() && under_test.incumbent != nullptr ? 2 : 1;
    if (counted >= needed) return "";
    return absl::StrCat(under_test.head.name, " ", rule.metric(), ": only ",
                        counted,
                        " held-out queries, users or rows count: no evidence");
  }
  return absl::StrCat(under_test.head.name, " ", rule.metric(),
                      ": was not measured");
}

}  // namespace

absl::Status CheckGate(const v1::Gate& gate, absl::Span<const GateHead> heads) {
  std::vector<std::string> errors;
  for (int i = 0; i < gate.rules_size(); ++i) {
    const std::string problem = ProblemOf(gate.rules(i), heads);
    if (!problem.empty()) {
      errors.push_back(absl::StrCat("gate: rules[", i, "]: ", problem));
    }
  }
  // Written so that NaN is refused.
  if (!(gate.confidence() >= 0 && gate.confidence() < 1)) {
    errors.push_back(absl::StrCat("gate: confidence ", gate.confidence(),
                                  ": outside (0, 1)"));
  }
  if (gate.resamples() != 0 &&
      (gate.resamples() < 100 || gate.resamples() > kMaxResamples)) {
    errors.push_back(absl::StrCat("gate: resamples ", gate.resamples(),
                                  ": outside 100 to ", kMaxResamples));
  }
  if (std::isnan(gate.max_latency_ratio())) {
    errors.push_back("gate: max_latency_ratio: not a number");
  }
  if (gate.min_validation_rows() < 0) {
    errors.push_back(absl::StrCat("gate: min_validation_rows ",
                                  gate.min_validation_rows(), ": below 0"));
  }
  if (errors.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(errors, "\n"));
}

absl::StatusOr<Verdict> Judge(const v1::Gate& gate,
                              absl::Span<const HeadUnderTest> heads,
                              const BatchLatency& latency, uint64_t seed) {
  std::vector<GateHead> names;
  for (const HeadUnderTest& head : heads) names.push_back(head.head);
  RETURN_IF_ERROR(CheckGate(gate, names));

  BootstrapOptions options;
  options.confidence = Confidence(gate);
  options.resamples = gate.resamples() == 0 ? kResamples : gate.resamples();
  options.seed = seed;
  Verdict verdict;
  for (const HeadUnderTest& head : heads) {
    RETURN_IF_ERROR(AddMetrics(head, options, &verdict));
  }

  const int min_rows = gate.min_validation_rows() == 0
                           ? kMinValidationRows
                           : gate.min_validation_rows();
  std::vector<bool> refused(heads.size());
  for (const Rule& rule : Expand(gate, names)) {
    const HeadUnderTest& head = heads[rule.head];
    if (refused[rule.head]) continue;
    if (head.validation_rows < min_rows) {
      refused[rule.head] = true;
      verdict.rejections.push_back(absl::StrCat(
          head.head.name, ": ", head.validation_rows,
          " held-out rows, fewer than ", min_rows, ": no evidence"));
      continue;
    }
    std::string lack = LackOfEvidence(rule.rule, head);
    if (!lack.empty()) {
      verdict.rejections.push_back(std::move(lack));
      continue;
    }
    Apply(rule.rule, *FindMetric(head.head.name, rule.rule.metric(), &verdict),
          options.confidence, &verdict.rejections);
  }

  const double max_ratio = gate.max_latency_ratio() == 0
                               ? kMaxLatencyRatio
                               : gate.max_latency_ratio();
  if (max_ratio > 0 && latency.incumbent_ms > 0) {
    const double ratio = latency.candidate_ms / latency.incumbent_ms;
    if (!(ratio <= max_ratio)) {
      verdict.rejections.push_back(absl::StrFormat(
          "latency: a batch takes %.3f ms, %.3f ms in service: %.2f times as "
          "long, at most %g is allowed",
          latency.candidate_ms, latency.incumbent_ms, ratio, max_ratio));
    }
  }
  return verdict;
}

}  // namespace vitrine
