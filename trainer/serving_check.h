#pragma once

// A saved version as the server will have it: the same answers as in training,
// and in what time. Engines run on the CPU, with LibTorch's threads as they are
// set.

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/servable_model.h"
#include "trainer/gate.h"

namespace vitrine {

// A head's name and an input of it.
using HeadInput = std::pair<std::string, Encoding>;

// ServableModel::Load as described above, in fp32 unless told otherwise. A
// version in staging has no digests yet.
absl::StatusOr<std::shared_ptr<const ServableModel>> LoadForCheck(
    const std::string& folder, bool verify_digests,
    internal::Dtype dtype = internal::DTYPE_FP32);

// What the model's outputs differ in from those of training, `outputs[i]` being
// the raw ones for inputs[i]: for each head the first number that is further
// off than `tolerance` times the larger of 1 and its magnitude, as a sentence.
absl::StatusOr<std::vector<std::string>> CompareServed(
    const ServableModel& model, absl::Span<const HeadInput> inputs,
    absl::Span<const std::vector<float>> outputs, double tolerance);

// The median times of one batch of the inputs, each model with its own, runs of
// the two taking turns so that what else the machine does falls on both. Takes
// about two seconds, or five runs of each. Zero where either has no inputs.
absl::StatusOr<BatchLatency> CompareLatency(
    const ServableModel& candidate,
    absl::Span<const HeadInput> candidate_inputs,
    const ServableModel& incumbent,
    absl::Span<const HeadInput> incumbent_inputs);

}  // namespace vitrine
