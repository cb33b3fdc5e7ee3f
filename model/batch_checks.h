#pragma once

// What every engine checks before it runs a batch.

#include <cstddef>

#include "absl/status/status.h"
#include "model/batch.h"
#include "model/model_config.h"

namespace vitrine {

// kInvalidArgument, naming the sequence: parts that do not fit, a sequence that
// is empty or longer than the position table, an id outside a vocabulary, no
// head or one that is not among `heads`.
absl::Status CheckBatch(const Batch& batch, const EncoderConfig& config,
                        size_t heads);

}  // namespace vitrine
