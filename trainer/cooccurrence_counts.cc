#include "trainer/cooccurrence_counts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"

namespace vitrine {
namespace {

// Long histories would count the square of their length.
constexpr int kFarthest = 50;

// A row without repetitions: each item where it was last, oldest first.
std::vector<int32_t> Distinct(const std::vector<int32_t>& items) {
  std::vector<int32_t> out;
  absl::flat_hash_set<int32_t> seen;
  for (size_t i = items.size(); i-- > 0;) {
    if (seen.insert(items[i]).second) out.push_back(items[i]);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

struct Sequences {
  struct Place {
    int32_t sequence;
    int32_t position;
  };
  std::vector<std::vector<int32_t>> items;
  std::vector<int32_t> user;               // of each; one's are neighbours
  std::vector<std::vector<Place>> places;  // of each item, in that order
};

Sequences Read(absl::Span<const HistoryRow* const> rows, size_t items) {
  absl::flat_hash_map<absl::string_view, int32_t> numbers;
  std::vector<std::pair<int32_t, const HistoryRow*>> by_user;
  for (const HistoryRow* const row : rows) {
    const auto [it, unused] =
        numbers.emplace(row->user_id, static_cast<int32_t>(numbers.size()));
    by_user.emplace_back(it->second, row);
  }
  std::stable_sort(
      by_user.begin(), by_user.end(),
      [](const auto& a, const auto& b) { return a.first < b.first; });
  Sequences out;
  out.places.resize(items);
  for (const auto& [user, row] : by_user) {
    const auto sequence = static_cast<int32_t>(out.items.size());
    out.items.push_back(Distinct(row->items));
    out.user.push_back(user);
    const std::vector<int32_t>& of = out.items.back();
    for (int32_t i = 0; i < of.size(); ++i) {
      out.places[of[i]].push_back({sequence, i});
    }
  }
  return out;
}

// The largest value that one user gives each neighbour, and the users' sum.
class Sums {
 public:
  explicit Sums(size_t items) : best_(items), sum_(items) {}

  void Offer(int32_t item, float value) {
    if (best_[item] == 0) of_user_.push_back(item);
    best_[item] = std::max(best_[item], value);
  }
  void EndUser() {
    for (const int32_t item : of_user_) {
      if (sum_[item] == 0) all_.push_back(item);
      sum_[item] += best_[item];
      best_[item] = 0;
    }
    of_user_.clear();
  }
  // Item and sum, and starts again.
  std::vector<std::pair<int32_t, float>> Take() {
    std::vector<std::pair<int32_t, float>> out;
    for (const int32_t item : all_) {
      out.emplace_back(item, sum_[item]);
      sum_[item] = 0;
    }
    all_.clear();
    return out;
  }

 private:
  std::vector<float> best_, sum_;  // of each item
  std::vector<int32_t> of_user_, all_;
};

void AddPlace(const std::vector<int32_t>& items, int32_t position,
              const CountingOptions& options, Sums* sums) {
  const auto size = static_cast<int32_t>(items.size());
  const int32_t end = std::min(size, position + kFarthest + 1);
  for (int32_t i = std::max(0, position - kFarthest); i < end; ++i) {
    if (i == position) continue;
    const double near =
        options.by_distance ? 1 / std::sqrt(std::abs(i - position)) : 1;
    const double value = i > position ? near : options.backward * near;
    if (value > 0) sums->Offer(items[i], static_cast<float>(value));
  }
}

}  // namespace

CountingOptions ClassicalCounting() {
  return {.backward = 1,
          .by_distance = false,
          .own_power = 0.5,
          .neighbour_power = 0.5,
          .neighbours = std::numeric_limits<int>::max()};
}

CooccurrenceTable CountCooccurrences(absl::Span<const HistoryRow* const> rows,
                                     const Catalogue& catalogue,
                                     const CountingOptions& options) {
  const size_t size = catalogue.items.size();
  const Sequences sequences = Read(rows, size);
  CooccurrenceTable table;
  std::vector<int32_t> index(size, -1);  // in the table
  std::vector<double> popularity(size);
  for (int32_t item = 0; item < size; ++item) {
    int32_t last = -1;
    for (const Sequences::Place& place : sequences.places[item]) {
      const int32_t user = sequences.user[place.sequence];
      popularity[item] += user != last;
      last = user;
    }
    if (popularity[item] == 0) continue;
    index[item] = static_cast<int32_t>(table.ids.size());
    table.ids.push_back(catalogue.items[item].id());
    table.popularity.push_back(static_cast<float>(popularity[item]));
  }
  Sums sums(size);
  for (int32_t item = 0; item < size; ++item) {
    if (index[item] < 0) continue;
    int32_t last = -1;
    for (const Sequences::Place& place : sequences.places[item]) {
      const int32_t user = sequences.user[place.sequence];
      if (user != last) sums.EndUser();
      last = user;
      AddPlace(sequences.items[place.sequence], place.position, options, &sums);
    }
    sums.EndUser();
    std::vector<std::pair<int32_t, float>> neighbours = sums.Take();
    for (auto& [other, weight] : neighbours) {
      weight = static_cast<float>(
          weight / (std::pow(popularity[item], options.own_power) *
                    std::pow(popularity[other], options.neighbour_power)));
    }
    std::sort(neighbours.begin(), neighbours.end(),
              [](const auto& a, const auto& b) {
                if (a.second != b.second) return a.second > b.second;
                return a.first < b.first;
              });
    if (neighbours.size() > options.neighbours) {
      neighbours.resize(options.neighbours);
    }
    std::sort(neighbours.begin(), neighbours.end());
    for (const auto& [other, weight] : neighbours) {
      table.neighbours.push_back(index[other]);
      table.weights.push_back(weight);
    }
    table.neighbour_ends.push_back(
        static_cast<int32_t>(table.neighbours.size()));
  }
  return table;
}

}  // namespace vitrine
