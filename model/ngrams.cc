#include "model/ngrams.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {

absl::StatusOr<TokenSplits> TokenSplits::Create(Table table) {
  if (table.ends.size() != table.tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("split_tokens: ", table.tokens.size(), ", but ",
                     table.ends.size(), " split_ends"));
  }
  int32_t begin = 0;
  for (size_t i = 0; i < table.tokens.size(); ++i) {
    if (i > 0 && table.tokens[i] <= table.tokens[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat(
          "split_tokens: number ", i, " is not above the one before"));
    }
    if (table.ends[i] <= begin) {
      return absl::InvalidArgumentError(absl::StrCat(
          "split_ends: number ", i, " is not above the one before"));
    }
    begin = table.ends[i];
  }
  if (begin != static_cast<int64_t>(table.parts.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("split_parts: ", table.parts.size(), ", not ", begin));
  }
  TokenSplits splits;
  splits.table_ = std::move(table);
  return splits;
}

absl::Span<const int32_t> TokenSplits::Of(int32_t token) const {
  const std::vector<int32_t>& tokens = table_.tokens;
  const auto it = std::lower_bound(tokens.begin(), tokens.end(), token);
  if (it == tokens.end() || *it != token) return {};
  const auto i = it - tokens.begin();
  const int32_t begin = i == 0 ? 0 : table_.ends[i - 1];
  return absl::MakeConstSpan(table_.parts)
      .subspan(begin, table_.ends[i] - begin);
}

std::vector<std::pair<Ngram, int32_t>> CountNgrams(
    absl::Span<const int32_t> ids, const TokenSplits& splits) {
  std::vector<Ngram> all;
  all.reserve(2 * ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    all.push_back({ids[i]});
    if (i > 0) all.push_back({ids[i - 1], ids[i]});
  }
  if (!splits.table().tokens.empty()) {
    int32_t last = Ngram::kNone;
    bool last_is_part = false;
    for (const int32_t id : ids) {
      const absl::Span<const int32_t> parts = splits.Of(id);
      const bool is_part = !parts.empty();
      for (const int32_t part : is_part ? parts : absl::MakeConstSpan(&id, 1)) {
        if (is_part) all.push_back({part});
        if (last != Ngram::kNone && (is_part || last_is_part)) {
          all.push_back({last, part});
        }
        last = part;
        last_is_part = is_part;
      }
    }
  }
  std::sort(all.begin(), all.end());
  std::vector<std::pair<Ngram, int32_t>> counts;
  for (const Ngram& ngram : all) {
    if (counts.empty() || counts.back().first != ngram) {
      counts.emplace_back(ngram, 0);
    }
    ++counts.back().second;
  }
  return counts;
}

NgramIndex::NgramIndex(absl::Span<const Ngram> ngrams,
                       absl::Span<const float> idf, const TokenSplits* splits)
    : idf_(idf), splits_(splits) {
  places_.reserve(ngrams.size());
  for (size_t i = 0; i < ngrams.size(); ++i) {
    places_.emplace(ngrams[i], static_cast<int32_t>(i));
  }
}

std::vector<std::pair<int32_t, float>> NgramIndex::Features(
    absl::Span<const int32_t> ids) const {
  std::vector<std::pair<int32_t, float>> features;
  double squares = 0;
  for (const auto& [ngram, count] :
       splits_ == nullptr ? CountNgrams(ids) : CountNgrams(ids, *splits_)) {
    const int32_t place = Find(ngram);
    if (place == kUnknown) continue;
    const double value = (1 + std::log(count)) * idf_[place];
    features.emplace_back(place, static_cast<float>(value));
    squares += value * value;
  }
  for (auto& [place, value] : features) {
    value = static_cast<float>(value / std::sqrt(squares));
  }
  return features;
}

RawTensor ToRaw(const std::vector<Ngram>& ngrams) {
  std::vector<int32_t> ids;
  for (const Ngram& ngram : ngrams) {
    ids.push_back(ngram.first);
    ids.push_back(ngram.second);
  }
  return ToRaw("ngrams", "I32", {static_cast<int64_t>(ngrams.size()), 2}, ids);
}

absl::StatusOr<std::vector<Ngram>> ReadNgrams(const Safetensors& file) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   ReadRawInts(file, "ngrams", 2));
  if (const int64_t tokens = file.Find("ngrams")->shape[1]; tokens != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("ngrams: of ", tokens, " tokens, not 2"));
  }
  std::vector<Ngram> ngrams;
  for (size_t i = 0; i < ids.size(); i += 2) {
    ngrams.push_back({ids[i], ids[i + 1]});
  }
  return ngrams;
}

absl::Status CheckNgrams(absl::Span<const Ngram> ngrams,
                         absl::Span<const float> idf) {
  if (idf.size() != ngrams.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ngrams.size(), " n-grams, but idf of ", idf.size()));
  }
  for (size_t i = 1; i < ngrams.size(); ++i) {
    if (!(ngrams[i - 1] < ngrams[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("ngrams: number ", i, " is not above the one before"));
    }
  }
  return CheckFinite("idf", idf);
}

absl::Status CheckFinite(const char* name, absl::Span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": number ", i, " is ", values[i]));
  }
  return absl::OkStatus();
}

}  // namespace vitrine
