#pragma once

#include <cstdint>
#include <vector>

namespace vitrine {

// (rows, labels) for EvaluateClassification: `sure` of the predicted label, the
// others sharing the rest.
inline std::vector<double> ProbabilitiesOf(
    const std::vector<int32_t>& predicted, const std::vector<double>& sure,
    int labels) {
  std::vector<double> out;
  for (size_t row = 0; row < predicted.size(); ++row) {
    for (int32_t label = 0; label < labels; ++label) {
      out.push_back(label == predicted[row] ? sure[row]
                                            : (1 - sure[row]) / (labels - 1));
    }
  }
  return out;
}

}  // namespace vitrine
