#pragma once

// Which products go together in the shop's own sequences: for each product the
// neighbours that its buyers took too, with weights. What a history says of a
// product by these counts, beside what the texts say.
//
// Free of LibTorch. On disk it is <head>.cooccurrence.safetensors, which
// manifest.proto describes.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace vitrine {

// How a recommendation head combines its texts with the counts:
//   logit = text_weight * cosine +
//           log(count_scale * count^count_power +
//               (1 + popularity)^popularity_power)
// What is evidenced twice, by texts and by counts, adds up; where there are no
// counts, popularity takes their place, and of items without it, the texts
// alone speak.
struct Mixture {
  float history_decay = 0.7;  // of one step back in the history
  float text_weight = 5;
  float count_scale = 50;
  float count_power = 1;
  float popularity_power = 0.6;

  double Logit(double cosine, double count, double popularity) const;
};

// As counting makes it. Items are told by their index in `ids`.
struct CooccurrenceTable {
  std::vector<std::string> ids;
  std::vector<float> popularity;  // of each item: how many users had it
  // Those of item i are [ends[i - 1], ends[i]) of the two below.
  std::vector<int32_t> neighbour_ends;
  std::vector<int32_t> neighbours;
  std::vector<float> weights;
  Mixture mixture;
};

// Immutable.
class Cooccurrence {
 public:
  // kInvalidArgument says what is wrong with the table: sizes that do not fit,
  // an empty or repeated id, an index outside, a weight that is not above 0, a
  // mixture with a number below 0.
  static absl::StatusOr<std::unique_ptr<const Cooccurrence>> Create(
      CooccurrenceTable table);
  // The file; errors name it.
  static absl::StatusOr<std::unique_ptr<const Cooccurrence>> Open(
      const std::string& path);
  absl::Status Write(const std::string& path) const;

  int32_t size() const { return static_cast<int32_t>(table_.ids.size()); }
  const std::string& id(int32_t item) const { return table_.ids[item]; }
  // The item's index, or kUnknown.
  static constexpr int32_t kUnknown = -1;
  int32_t Find(absl::string_view id) const;

  const Mixture& mixture() const { return table_.mixture; }

  // Of kUnknown: 0, and none.
  float popularity(int32_t item) const;
  absl::Span<const int32_t> neighbours(int32_t item) const;
  absl::Span<const float> weights(int32_t item) const;

  // Bytes on disk, about.
  int64_t size_bytes() const;

 private:
  explicit Cooccurrence(CooccurrenceTable table) : table_(std::move(table)) {}
  int32_t begin(int32_t item) const {
    return item == 0 ? 0 : table_.neighbour_ends[item - 1];
  }

  const CooccurrenceTable table_;
  absl::flat_hash_map<absl::string_view, int32_t> by_id_;  // into table_
};

// The head's file in a version folder.
std::string CooccurrenceFile(absl::string_view head);

// What a history says of products by the counts. For one thread; the counts
// outlive it.
class HistoryCounts {
 public:
  // `history`, oldest first, may hold kUnknown. A product counts once, where it
  // was last; a step back in the history takes the factor `decay`.
  HistoryCounts(const Cooccurrence& counts, absl::Span<const int32_t> history,
                double decay);

  // The sum over the history of decay^step * weight. 0: nothing is known.
  float Of(int32_t item) const;
  // All products that have one.
  const absl::flat_hash_map<int32_t, float>& all() const { return sums_; }

 private:
  absl::flat_hash_map<int32_t, float> sums_;
};

}  // namespace vitrine
