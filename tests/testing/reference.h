#pragma once

// Random token sequences, and what tests/data/reference_bert.py says of them.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/tokenizer.h"

namespace vitrine::testing {

// A sequence of each length: ids over the whole vocabulary, segments 0 then 1
// where the encoder has both.
std::vector<Encoding> RandomSequences(const EncoderConfig& config,
                                      const std::vector<int>& lengths,
                                      uint64_t seed);

struct ReferenceOutput {
  std::vector<float> logits;  // empty where there is no classifier
  std::vector<float> mean;    // of the last hidden states, (hidden)
  std::vector<float> first;   // of the last hidden states, (hidden)
};

// Runs the NumPy reference over a Hugging Face folder, a version's or one with
// a classifier. The sequences go through a file in `folder`'s parent.
absl::StatusOr<std::vector<ReferenceOutput>> RunReference(
    const std::string& folder, const std::vector<Encoding>& sequences);

}  // namespace vitrine::testing
