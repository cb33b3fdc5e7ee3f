#pragma once

// How the learning rate moves over a run.

#include <cstdint>

namespace vitrine {

enum class Schedule { kConstant, kLinear, kCosine };

// The learning rate's factor at `step` (from 0) of `steps`: up to 1 over the
// warm-up, a share of the steps, then by the schedule, down to 0 but for
// kConstant.
double RateFactor(Schedule schedule, double warmup, int64_t step,
                  int64_t steps);

}  // namespace vitrine
