#pragma once

// What evaluation asks of a model, whoever runs it: the network in training, or
// an engine as a server has it.

#include <vector>

#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace vitrine {

class Inference {
 public:
  virtual ~Inference() = default;

  // Head number `h`'s raw outputs, row-major, in the order of the sequences.
  virtual std::vector<float> Infer(
      int h, absl::Span<const Encoding* const> sequences) const = 0;
  // How many floats a sequence has there.
  virtual int width(int h) const = 0;
};

}  // namespace vitrine
