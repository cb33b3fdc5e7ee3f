#include "trainer/mixture_rows.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "trainer/catalogue_logits.h"

namespace vitrine {
namespace {

constexpr size_t kOthers = 200;

}  // namespace

MixtureRow MixtureRowOf(const Cooccurrence& counts, const Catalogue& catalogue,
                        const std::vector<int32_t>& items,
                        absl::Span<const float> cosines, size_t user) {
  MixtureRow row;
  row.history = NumbersOf(counts, catalogue,
                          absl::MakeSpan(items).subspan(0, items.size() - 1));
  const auto add = [&](int32_t item, float copies) {
    row.candidates.push_back(
        {counts.Find(catalogue.items[item].id()), cosines[item], copies});
  };
  add(items.back(), 1);
  absl::flat_hash_set<int32_t> done(items.begin(), items.end());
  const HistoryCounts history(counts, row.history, /*decay=*/1);
  std::vector<int32_t> counted;
  for (const auto& [number, unused] : history.all()) {
    counted.push_back(catalogue.by_id.at(counts.id(number)));
  }
  // The map's order differs from run to run.
  std::sort(counted.begin(), counted.end());
  for (const int32_t item : counted) {
    if (done.insert(item).second) add(item, 1);
  }
  const size_t stride = std::max<size_t>(1, cosines.size() / kOthers);
  std::vector<int32_t> others;
  for (size_t item = user % stride; item < cosines.size(); item += stride) {
    if (!done.contains(static_cast<int32_t>(item))) {
      others.push_back(static_cast<int32_t>(item));
    }
  }
  const double rest = static_cast<double>(cosines.size() - done.size());
  for (const int32_t item : others) {
    add(item, static_cast<float>(rest / static_cast<double>(others.size())));
  }
  return row;
}

}  // namespace vitrine
