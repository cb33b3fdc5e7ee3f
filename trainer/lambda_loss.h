#pragma once

// A loss for the order of the rows of a query: NDCG-Loss2++ of the LambdaLoss
// framework (Wang, Li, Golbandi, Bendersky, Najork: The LambdaLoss Framework
// for Ranking Metric Optimization, CIKM 2018).

#include <cstdint>

#include "absl/types/span.h"

namespace at {
class Tensor;
}

namespace vitrine {

// One row of a batch, beside its score.
struct LambdaRow {
  int32_t query = 0;  // rows of one query have the same
  float grade = 0;    // from 0; the gain is 2^grade - 1
  float weight = 1;   // a pair weighs the mean of its rows'
};

// The mean over the queries with different grades of
//   sum over pairs (i, j) with grade_i > grade_j of
//     (rho_ij + mu * delta_ij) * |G_i - G_j| * log2(1 + exp(s_j - s_i)),
// G = gain / ideal DCG of the query's rows in the batch, with
//   rho_ij   = |1 / D(rank_i) - 1 / D(rank_j)|,
//   delta_ij = |1 / D(|rank_i - rank_j|) - 1 / D(|rank_i - rank_j| + 1)|,
// D(r) = log2(1 + r), ranks from 1 by the scores as they are now, mu = 10. No
// gradient goes through the ranks. A scalar; 0 where no query has two grades.
// scores: (rows), fp32.
at::Tensor LambdaLoss(const at::Tensor& scores,
                      absl::Span<const LambdaRow> rows);

}  // namespace vitrine
