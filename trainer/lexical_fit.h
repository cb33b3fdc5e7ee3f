#pragma once

// Fits what a relevance head has beside its encoder: see
// model/lexical_scorer.h.

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/lexical_scorer.h"
#include "trainer/evaluation.h"

namespace vitrine {

// A query and an item, by their tokens without special ones.
struct TokenPair {
  absl::Span<const int32_t> query, item;
};

// Ridge regression of targets[i], the grade of pairs[i] mapped to [0, 1], which
// counts weights[i] times, on the n-grams of two pairs or more and on the
// overlap of query and item. Values are around 0. Of half a million pairs at
// most. The mixture is left as it is. Soon after `stop` (null: there is none)
// is set, returns with weights that are not yet right.
LexicalTable FitLexical(absl::Span<const TokenPair> pairs,
                        absl::Span<const float> targets,
                        absl::Span<const float> weights,
                        const std::atomic<bool>* stop = nullptr);

// Rows that neither encoder nor linear model was trained on.
struct LexicalRows {
  absl::Span<const int32_t> query;  // the number of each row's, from 0
  absl::Span<const float> logits;   // of the encoder
  absl::Span<const float> values;   // of the linear model
  // Score aside, which is filled in.
  std::vector<RankedRow> rows;
  double range = 1;  // the largest gain_grade there can be
};

// The ratio of the two, of eleven, that ranks the rows best (ndcg@10; see
// PickRatio), and of that ratio the weights and the bias under which the
// sigmoid of the sum is nearest to the grades (cross-entropy). {1, 0, 0} where
// the linear model does not help. There may be no rows.
LexicalMixture FitLexicalMixture(const LexicalRows& rows);

}  // namespace vitrine
