#pragma once

// What a head said of each row, as lines of JSON for other programs, in the
// order of the rows:
//
//   relevance       {"query", "item_id", "score", "logit", "grade"}; score is
//                   sigmoid(logit), item_id "" where the row has none
//   recommendation  {"user_id", "next", "place", "top": [id, ..]}; place is
//                   that of `next`, from 0, as PlaceOf() has it, and top the
//                   ten best, items of the history left out of both
//   interest        {"user_id", "probabilities": {label: p, ..},
//                    "categories": [..]}, the last as in the row
//   classification  {"label", "predicted", "probabilities": {label: p, ..},
//                    "logits": [..], "energy"}; label as in the row, energy
//                   -log(sum of exp(logit))
//
// Labels are in the head's order.

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/featurizer.h"
#include "model/head_tables.h"
#include "trainer/dataset.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

class RowScoreWriter {
 public:
  // Empties the file, so that one that cannot be written is found out before
  // the work.
  static absl::StatusOr<std::unique_ptr<RowScoreWriter>> Open(
      const std::string& path);
  ~RowScoreWriter();
  RowScoreWriter(const RowScoreWriter&) = delete;
  RowScoreWriter& operator=(const RowScoreWriter&) = delete;

  // `outputs` are the head's raw ones, as Task::Evaluate() asks for them: those
  // of the rows; for recommendation those of the listed items before them.
  // `tables` and `featurizer` are the head's and its version's.
  absl::Status Write(const internal::Head& head, const Dataset& rows,
                     const Catalogue& catalogue, const HeadTables& tables,
                     const Featurizer& featurizer,
                     absl::Span<const std::vector<float>> outputs);
  // Nothing is sure to be in the file before.
  absl::Status Close();

 private:
  RowScoreWriter(std::string path, std::FILE* file)
      : path_(std::move(path)), file_(file) {}

  const std::string path_;
  std::FILE* file_;
};

}  // namespace vitrine
