#pragma once

#include <cstddef>
#include <vector>

namespace vitrine {

// Which of several ways to weigh two models against each other is to be taken,
// by rows held out: gains[w][u] is how well unit u (a row, a query) does under
// way `w`. It is `usual`, what was right elsewhere, unless there are thirty
// units or more and another's mean is better by more than two standard errors
// of that difference: of those the best, the first of equals.
size_t PickRatio(const std::vector<std::vector<double>>& gains, size_t usual);

}  // namespace vitrine
