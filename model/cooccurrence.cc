#include "model/cooccurrence.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/raw_safetensors.h"
#include "model/safetensors.h"

namespace vitrine {
namespace {

// A decay of 1 never ends: older products say nothing new.
constexpr size_t kNewest = 64;

template <typename T>
RawTensor List(const char* name, const char* dtype,
               const std::vector<T>& values) {
  return ToRaw(name, dtype, {static_cast<int64_t>(values.size())}, values);
}

// As the file has them.
std::vector<float> Numbers(const Mixture& mixture) {
  return {mixture.history_decay, mixture.text_weight, mixture.count_scale,
          mixture.count_power, mixture.popularity_power};
}

// Each list's end in what they share: they rise, and the last is its size.
absl::Status CheckEnds(const char* name, absl::Span<const int32_t> ends,
                       size_t total) {
  int32_t last = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i] < last) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": number ", i, " is ", ends[i], ", after ", last));
    }
    last = ends[i];
  }
  if (static_cast<size_t>(last) != total) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": the last is ", last, ", of ", total));
  }
  return absl::OkStatus();
}

absl::StatusOr<CooccurrenceTable> ReadTable(const Safetensors& file) {
  RETURN_IF_ERROR(CheckRawNames(
      file, {"item_ids", "item_id_ends", "popularity", "neighbour_ends",
             "neighbours", "weights", "mixture"}));
  CooccurrenceTable table;
  ASSIGN_OR_RETURN(const TensorView* const ids,
                   FindRaw(file, "item_ids", 1, 1));
  ASSIGN_OR_RETURN(const std::vector<int32_t> id_ends,
                   ReadRawInts(file, "item_id_ends"));
  RETURN_IF_ERROR(CheckEnds("item_id_ends", id_ends, ids->bytes.size()));
  int32_t begin = 0;
  for (const int32_t end : id_ends) {
    table.ids.emplace_back(ids->bytes.substr(begin, end - begin));
    begin = end;
  }
  ASSIGN_OR_RETURN(table.popularity, ReadRawFloats(file, "popularity"));
  ASSIGN_OR_RETURN(table.neighbour_ends, ReadRawInts(file, "neighbour_ends"));
  ASSIGN_OR_RETURN(table.neighbours, ReadRawInts(file, "neighbours"));
  ASSIGN_OR_RETURN(table.weights, ReadRawFloats(file, "weights"));
  ASSIGN_OR_RETURN(const std::vector<float> mixture,
                   ReadRawNumbers(file, "mixture", 5));
  table.mixture = {mixture[0], mixture[1], mixture[2], mixture[3], mixture[4]};
  return table;
}

absl::Status Check(const CooccurrenceTable& table) {
  const size_t items = table.ids.size();
  if (table.popularity.size() != items ||
      table.neighbour_ends.size() != items) {
    return absl::InvalidArgumentError(absl::StrCat(
        items, " items, but popularity of ", table.popularity.size(),
        " and neighbour_ends of ", table.neighbour_ends.size()));
  }
  if (table.weights.size() != table.neighbours.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(table.neighbours.size(), " neighbours, but ",
                     table.weights.size(), " weights"));
  }
  RETURN_IF_ERROR(CheckEnds("neighbour_ends", table.neighbour_ends,
                            table.neighbours.size()));
  for (size_t i = 0; i < items; ++i) {
    // Written so that NaN fails, here and below.
    if (!(table.popularity[i] >= 0) || std::isinf(table.popularity[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("popularity: number ", i, " is ", table.popularity[i]));
    }
  }
  for (size_t i = 0; i < table.neighbours.size(); ++i) {
    if (table.neighbours[i] < 0 || table.neighbours[i] >= items) {
      return absl::InvalidArgumentError(
          absl::StrCat("neighbours: number ", i, " is ", table.neighbours[i],
                       ", of ", items, " items"));
    }
    if (!(table.weights[i] > 0) || std::isinf(table.weights[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights: number ", i, " is ", table.weights[i]));
    }
  }
  const std::vector<float> mixture = Numbers(table.mixture);
  for (size_t i = 0; i < mixture.size(); ++i) {
    if (!(mixture[i] >= 0 && mixture[i] <= 1e9f)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "mixture: number ", i, " is ", mixture[i], ", outside 0 to 1e9"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

double Mixture::Logit(double cosine, double count, double popularity) const {
  double evidence = std::pow(1 + popularity, popularity_power);
  if (count > 0) evidence += count_scale * std::pow(count, count_power);
  return text_weight * cosine + std::log(evidence);
}

absl::StatusOr<std::unique_ptr<const Cooccurrence>> Cooccurrence::Create(
    CooccurrenceTable table) {
  RETURN_IF_ERROR(Check(table));
  std::unique_ptr<Cooccurrence> counts(new Cooccurrence(std::move(table)));
  counts->by_id_.reserve(counts->size());
  for (int32_t item = 0; item < counts->size(); ++item) {
    const std::string& id = counts->id(item);
    if (id.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("item_ids: number ", item, " is empty"));
    }
    if (!counts->by_id_.emplace(id, item).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "item_ids: \"", absl::CHexEscape(id), "\" is there twice"));
    }
  }
  return counts;
}

absl::StatusOr<std::unique_ptr<const Cooccurrence>> Cooccurrence::Open(
    const std::string& path) {
  return OpenRaw<Cooccurrence>(path, ReadTable);
}

absl::Status Cooccurrence::Write(const std::string& path) const {
  std::vector<int32_t> id_ends;
  std::string ids;
  for (const std::string& id : table_.ids) {
    ids += id;
    id_ends.push_back(static_cast<int32_t>(ids.size()));
  }
  // Those of four bytes first, so that a map of the file has them aligned.
  return WriteRawSafetensors(
      path,
      {List("item_id_ends", "I32", id_ends),
       List("popularity", "F32", table_.popularity),
       List("neighbour_ends", "I32", table_.neighbour_ends),
       List("neighbours", "I32", table_.neighbours),
       List("weights", "F32", table_.weights),
       List("mixture", "F32", Numbers(table_.mixture)),
       List("item_ids", "U8", std::vector<char>(ids.begin(), ids.end()))});
}

int32_t Cooccurrence::Find(absl::string_view id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? kUnknown : it->second;
}

float Cooccurrence::popularity(int32_t item) const {
  return item == kUnknown ? 0 : table_.popularity[item];
}

absl::Span<const int32_t> Cooccurrence::neighbours(int32_t item) const {
  if (item == kUnknown) return {};
  return absl::MakeConstSpan(table_.neighbours)
      .subspan(begin(item), table_.neighbour_ends[item] - begin(item));
}

absl::Span<const float> Cooccurrence::weights(int32_t item) const {
  if (item == kUnknown) return {};
  return absl::MakeConstSpan(table_.weights)
      .subspan(begin(item), table_.neighbour_ends[item] - begin(item));
}

int64_t Cooccurrence::size_bytes() const {
  int64_t bytes = 1024;  // the header
  for (const std::string& id : table_.ids) {
    bytes += static_cast<int64_t>(id.size()) + 12;
  }
  return bytes + 8 * static_cast<int64_t>(table_.neighbours.size());
}

std::string CooccurrenceFile(absl::string_view head) {
  return absl::StrCat(head, ".cooccurrence.safetensors");
}

HistoryCounts::HistoryCounts(const Cooccurrence& counts,
                             absl::Span<const int32_t> history, double decay) {
  absl::flat_hash_set<int32_t> seen;
  double factor = 1;
  for (size_t i = history.size(), steps = 0; i-- > 0 && steps < kNewest;) {
    const int32_t item = history[i];
    // What is unknown takes its place in the history all the same.
    if (item != Cooccurrence::kUnknown && !seen.insert(item).second) continue;
    const absl::Span<const int32_t> neighbours = counts.neighbours(item);
    const absl::Span<const float> weights = counts.weights(item);
    for (size_t k = 0; k < neighbours.size(); ++k) {
      sums_[neighbours[k]] += static_cast<float>(factor * weights[k]);
    }
    factor *= decay;
    ++steps;
  }
}

float HistoryCounts::Of(int32_t item) const {
  const auto it = sums_.find(item);
  return it == sums_.end() ? 0 : it->second;
}

}  // namespace vitrine
