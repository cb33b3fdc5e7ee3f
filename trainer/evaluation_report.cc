#include "trainer/evaluation_report.h"

#include <limits>

namespace vitrine {

void AddMetrics(const EvaluationReport& report, internal::Manifest* manifest) {
  for (const v1::EvaluationMetric& from : report.metrics) {
    internal::Metric* const metric = manifest->add_metrics();
    metric->set_head(from.head());
    metric->set_name(from.name());
    metric->set_split("validation");
    metric->set_before(from.has_before()
                           ? from.before()
                           : std::numeric_limits<double>::quiet_NaN());
    metric->set_value(from.value());
    if (from.has_change_low()) {
      metric->set_change_low(from.change_low());
      metric->set_change_high(from.change_high());
    }
    metric->set_lower_is_better(from.lower_is_better());
  }
  manifest->mutable_label_scores()->Add(report.label_scores.begin(),
                                        report.label_scores.end());
}

}  // namespace vitrine
