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
// machine that tells it from the others (squared hinge loss, C = 0.5). `splits`
// are IdeographSplits() of the texts' tokenizer.
// truth[i] in [0, labels) is the label of texts[i]. Of a million texts at most.
// `workers` share the labels; null: none do. The mixture is left as it is. Soon
// after `stop` (null: there is none) is set, returns with weights missing.
NgramTable FitNgrams(absl::Span<const Encoding* const> texts,
                     absl::Span<const int32_t> truth, int labels,
                     TokenSplits splits, Workers* workers,
                     const std::atomic<bool>* stop = nullptr);

// The weights of encoder and n-grams, by rows that neither was trained on:
// `logits` and `margins` are (rows, labels). Of twelve ratios to the encoder's
// calibrated logits, the one under which most rows get their label (see
// PickRatio; the usual is 1 : 4), and of that ratio the weights under which
// their labels are likeliest. {1, 0} where n-grams do not help.
NgramMixture FitNgramMixture(absl::Span<const float> logits,
                             absl::Span<const float> margins,
                             absl::Span<const int32_t> truth, int labels);

}  // namespace vitrine
