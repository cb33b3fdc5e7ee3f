#pragma once

// Inputs without labels: what shoppers ask and see, one a line.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/featurizer.h"

namespace vitrine {

struct TextInputs {
  struct Part {
    std::vector<Encoding> pairs;   // of lines "query<TAB>item's title"
    std::vector<Encoding> single;  // each line's text; of a pair, the title
  };
  Part calibration;
  Part held_out;  // a share of the lines, by a hash of the query or the text
  std::string digest;  // SHA-256 over the lines, in order
};

// Plain or gzip; blank lines are skipped. kInvalidArgument names file and line:
// invalid UTF-8, a pair with an empty half. No text is in a message.
absl::StatusOr<TextInputs> ReadTextInputs(const std::string& path,
                                          const Featurizer& featurizer,
                                          double validation_share);

}  // namespace vitrine
