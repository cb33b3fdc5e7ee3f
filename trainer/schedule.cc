#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>

namespace vitrine {

double RateFactor(Schedule schedule, double warmup, int64_t step,
                  int64_t steps) {
  const double warm = warmup * static_cast<double>(steps);
  const double at = static_cast<double>(step);
  if (at + 1 < warm) return (at + 1) / warm;
  if (schedule == Schedule::kConstant) return 1;
  const double left =
      std::clamp((static_cast<double>(steps) - at) /
                     std::max(1.0, static_cast<double>(steps) - warm),
                 0.0, 1.0);
  if (schedule == Schedule::kLinear) return left;
  return 0.5 * (1 - std::cos(left * 3.14159265358979323846));
}

}  // namespace vitrine
