#pragma once

// Fits what a classification head has beside its encoder: see
// model/ngram_classifier.h.

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/ngram_classifier.h"
#include "model/tokenizer.h"
#include "trainer/workers.h"

namespace vitrine {

// The n-grams that two texts or more have (the most frequent of them, where
// the table would be too large), and for each label a linear support vector
// machine that tells it from the others (squared hinge loss, C = 0.5).
// truth[i] in [0, labels) is the label of texts[i]. Of a million texts at most.
// `workers` share the labels; null: none do. The mixture is left as it is. Soon
// after `stop` (null: there is none) is set, returns with weights missing.
NgramTable FitNgrams(absl::Span<const Encoding* const> texts,
                     absl::Span<const int32_t> truth, int labels,
                     Workers* workers, const std::atomic<bool>* stop = nullptr);

// The weights of encoder and n-grams under which most of some rows, that
// neither was trained on, get their label (of twelve ratios, the likeliest of
// those that are equally good), and under which, of that ratio, their labels
// are likeliest. `logits` and `margins` are (rows, labels). {1, 0} where
// n-grams do not help.
NgramMixture FitNgramMixture(absl::Span<const float> logits,
                             absl::Span<const float> margins,
                             absl::Span<const int32_t> truth, int labels);

}  // namespace vitrine
