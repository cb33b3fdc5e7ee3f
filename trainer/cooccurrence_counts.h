#pragma once

// Counts which items the same users had, how close and in which order.

#include <cstdint>

#include "absl/types/span.h"
#include "model/cooccurrence.h"
#include "trainer/dataset.h"

namespace vitrine {

// The defaults are what did best on three shops (docs/recommendation.md).
struct CountingOptions {
  // What came after an item is what it speaks for; what came before, this much.
  double backward = 0.4;
  // Items that are n steps apart count 1 / sqrt(n), else 1.
  bool by_distance = true;
  // An item's weights are divided by this power of its own popularity, and of
  // the neighbour's.
  double own_power = 0.5;
  double neighbour_power = 0;
  int neighbours = 64;  // of an item, the strongest
};

// The textbook's: symmetric, by the cosine of the two items' users, all pairs.
CountingOptions ClassicalCounting();
inline constexpr double kClassicalDecay = 0.8;

// Over the items of `rows`, in the catalogue's order. Pairs more than 50 steps
// apart do not count. A user counts a pair once, as his rows have it closest:
// rows may be windows over one history. Within a row an item is where it was
// last. The mixture is the default one.
CooccurrenceTable CountCooccurrences(absl::Span<const HistoryRow* const> rows,
                                     const Catalogue& catalogue,
                                     const CountingOptions& options = {});

}  // namespace vitrine
