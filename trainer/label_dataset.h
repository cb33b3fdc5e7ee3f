#pragma once

// From the label store to files of rows that FineTune reads. How feedback
// becomes examples is said here, and nowhere else:
//
// Relevance. A judgement is a row of its own grade; of several for one query
// and item the newest counts. Where there is no judgement, what shoppers did on
// lists of search results (events with a query and an impression) counts:
//   - a purchase has grade 1, a cart 0.9, a click 0.7, a view 0.5; of several
//     events on one shown item the strongest counts;
//   - an item that was skipped has grade 0 where one that was shown below it
//     got a click or more: then it was seen (Joachims, 2002, "skip above").
//     Other skipped items, those of lists without any click among them, tell
//     nothing;
//   - an item that is taken from far down the list tells more, since few look
//     there: its row weighs 1 / propensity, with propensity = position^-0.5, at
//     most 5 (Joachims, Swaminathan, Schnabel, 2017). Skipped ones weigh 1:
//     they were seen. A position that is not known weighs 1.
// Rows of one query and item from several impressions become one, with the
// weighted mean of the grades and the sum of the weights, at most 10: in the
// cross-entropy that is the same thing.
// An event with a query but without an impression is a row by its own grade.
//
// Recommendation. The events of a shopper but skips, in order of time, an item
// after itself left out, are one history.
//
// Interest and classification. Labels as they are; of several for one text the
// newest counts.
//
// Items. Of several texts for one id the newest counts.
//
// Old and new. Rows are held out by a hash of query, text or user (dataset.h),
// old and new alike. Of the rows to train on, those with a label after the base
// version's watermark are all used; older ones fill up the replay share, those
// with the smallest hashes first, each head's in proportion to what it has.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "store/label_store.h"
#include "trainer/fine_tune.h"

namespace vitrine {

struct LabelDatasetOptions {
  std::string model;
  int64_t base_watermark = 0;  // labels up to it are old
  int64_t watermark = 0;       // labels up to it are used
  double validation_share = 0.1;
  double replay_share = 0.5;
  uint64_t seed = 1;
  // Kind, head and weight of the heads to train; those without any row to train
  // on are left out of the result where `skip_empty`, else kFailedPrecondition
  // names one.
  std::vector<FitTask> tasks;
  bool skip_empty = false;
};

struct LabelDataset {
  std::string items;           // a file; empty: no rows name items
  std::vector<FitTask> tasks;  // with their files, grades 0 to 1
  int64_t training_rows = 0;   // over all tasks; events make longer histories
  int64_t validation_rows = 0;
};

// Writes into `folder`, which exists. The same labels and options give the same
// files. kFailedPrecondition: there is nothing to train on. kInternal: a label
// of the store cannot be read.
absl::StatusOr<LabelDataset> WriteLabelDataset(
    LabelStore& store, const LabelDatasetOptions& options,
    const std::string& folder);

}  // namespace vitrine
