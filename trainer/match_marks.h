#pragma once

// Whether an encoder sees match marks (model/featurizer.h): the rows of its
// segment table decide.

#include "absl/status/status.h"

namespace vitrine {

struct SourceModel;

enum class MatchMarks {
  kAuto,  // as the model is
  kOn,    // four rows
  kOff,   // two rows at most
};

// Before the weights are used. Rows that are added begin as those of the
// unmarked words, so that the encoder gives what it gave until it is trained;
// rows that are taken away are gone. kInvalidArgument: more than four rows,
// which mean something else.
absl::Status SetMatchMarks(MatchMarks marks, SourceModel* source);

}  // namespace vitrine
