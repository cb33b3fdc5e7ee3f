#include "model/lexical_scorer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/raw_safetensors.h"
#include "model/safetensors.h"

namespace vitrine {
namespace {

constexpr double kBm25K1 = 1.2, kBm25B = 0.75;
constexpr double kBm25Scale = 25;

absl::StatusOr<LexicalTable> ReadTable(const Safetensors& file) {
  RETURN_IF_ERROR(
      CheckRawNames(file, {"ngrams", "idf", "statistics", "query_weights",
                           "item_weights", "overlap", "bias", "mixture"}));
  LexicalTable table;
  ASSIGN_OR_RETURN(table.ngrams, ReadNgrams(file));
  ASSIGN_OR_RETURN(table.idf, ReadRawFloats(file, "idf"));
  ASSIGN_OR_RETURN(table.query_weights, ReadRawFloats(file, "query_weights"));
  ASSIGN_OR_RETURN(table.item_weights, ReadRawFloats(file, "item_weights"));
  ASSIGN_OR_RETURN(const auto statistics,
                   ReadRawNumbers(file, "statistics", 2));
  table.unlisted_idf = statistics[0];
  table.item_tokens = statistics[1];
  ASSIGN_OR_RETURN(const auto overlap, ReadRawNumbers(file, "overlap", 3));
  table.overlap = {overlap[0], overlap[1], overlap[2]};
  ASSIGN_OR_RETURN(const auto bias, ReadRawNumbers(file, "bias", 1));
  table.bias = bias[0];
  ASSIGN_OR_RETURN(const auto mixture, ReadRawNumbers(file, "mixture", 3));
  table.mixture = {mixture[0], mixture[1], mixture[2]};
  return table;
}

absl::Status Check(const LexicalTable& table) {
  RETURN_IF_ERROR(CheckNgrams(table.ngrams, table.idf));
  if (table.query_weights.size() != table.ngrams.size() ||
      table.item_weights.size() != table.ngrams.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        table.ngrams.size(), " n-grams, but ", table.query_weights.size(),
        " query_weights and ", table.item_weights.size(), " item_weights"));
  }
  RETURN_IF_ERROR(CheckFinite("query_weights", table.query_weights));
  RETURN_IF_ERROR(CheckFinite("item_weights", table.item_weights));
  RETURN_IF_ERROR(CheckFinite(
      "overlap",
      {table.overlap.cosine, table.overlap.share, table.overlap.bm25}));
  RETURN_IF_ERROR(CheckFinite("bias", {table.bias}));
  // Written so that NaN fails.
  if (!(table.unlisted_idf >= 0 && table.unlisted_idf <= 1e6f) ||
      !(table.item_tokens > 0 && table.item_tokens <= 1e6f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("statistics: ", table.unlisted_idf, " and ",
                     table.item_tokens, ", not from 0 and above 0, to 1e6"));
  }
  for (const float weight :
       {table.mixture.encoder_weight, table.mixture.lexical_weight}) {
    if (!(weight >= 0 && weight <= 1e6f)) {
      return absl::InvalidArgumentError(
          absl::StrCat("mixture: ", weight, ", outside 0 to 1e6"));
    }
  }
  return CheckFinite("mixture", {table.mixture.bias});
}

}  // namespace

LexicalScorer::LexicalScorer(LexicalTable table)
    : table_(std::move(table)), index_(table_.ngrams, table_.idf) {}

absl::StatusOr<std::unique_ptr<const LexicalScorer>> LexicalScorer::Create(
    LexicalTable table) {
  RETURN_IF_ERROR(Check(table));
  return std::unique_ptr<const LexicalScorer>(
      new LexicalScorer(std::move(table)));
}

absl::StatusOr<std::unique_ptr<const LexicalScorer>> LexicalScorer::Open(
    const std::string& path) {
  return OpenRaw<LexicalScorer>(path, ReadTable);
}

absl::Status LexicalScorer::Write(const std::string& path) const {
  const auto numbers = [](const char* name, const std::vector<float>& values) {
    return ToRaw(name, "F32", {static_cast<int64_t>(values.size())}, values);
  };
  const LexicalTable& t = table_;
  return WriteRawSafetensors(
      path,
      {ToRaw(t.ngrams), numbers("idf", t.idf),
       numbers("statistics", {t.unlisted_idf, t.item_tokens}),
       numbers("query_weights", t.query_weights),
       numbers("item_weights", t.item_weights),
       numbers("overlap", {t.overlap.cosine, t.overlap.share, t.overlap.bm25}),
       numbers("bias", {t.bias}),
       numbers("mixture", {t.mixture.encoder_weight, t.mixture.lexical_weight,
                           t.mixture.bias})});
}

int64_t LexicalScorer::size_bytes() const {
  return 1024 + 5 * 4 * static_cast<int64_t>(table_.ngrams.size());
}

LexicalScorer::Query LexicalScorer::OfQuery(
    absl::Span<const int32_t> ids) const {
  Query query;
  query.features = index_.Features(ids);
  for (const auto& [place, value] : query.features) {
    query.value += value * table_.query_weights[place];
  }
  std::vector<int32_t> different(ids.begin(), ids.end());
  std::sort(different.begin(), different.end());
  different.erase(std::unique(different.begin(), different.end()),
                  different.end());
  for (const int32_t token : different) {
    const int32_t place = index_.Find({token});
    query.tokens.emplace_back(token, place == NgramIndex::kUnknown
                                         ? table_.unlisted_idf
                                         : table_.idf[place]);
  }
  return query;
}

LexicalScorer::Features LexicalScorer::OfItem(
    absl::Span<const int32_t> ids) const {
  return index_.Features(ids);
}

Overlap LexicalScorer::OverlapOf(const Query& query,
                                 absl::Span<const int32_t> ids,
                                 const Features& features) const {
  Overlap out;
  double cosine = 0;
  auto q = query.features.begin();
  auto i = features.begin();
  while (q != query.features.end() && i != features.end()) {
    if (q->first < i->first) {
      ++q;
    } else if (i->first < q->first) {
      ++i;
    } else {
      cosine += double{q++->second} * i++->second;
    }
  }
  out.cosine = static_cast<float>(cosine);
  if (query.tokens.empty()) return out;
  const double length =
      kBm25K1 * (1 - kBm25B +
                 kBm25B * static_cast<double>(ids.size()) / table_.item_tokens);
  double found = 0, bm25 = 0;
  for (const auto& [token, idf] : query.tokens) {
    const auto count =
        static_cast<double>(std::count(ids.begin(), ids.end(), token));
    if (count == 0) continue;
    ++found;
    bm25 += idf * count * (kBm25K1 + 1) / (count + length);
  }
  out.share =
      static_cast<float>(found / static_cast<double>(query.tokens.size()));
  out.bm25 = static_cast<float>(bm25 / kBm25Scale);
  return out;
}

float LexicalScorer::Value(const Query& query,
                           absl::Span<const int32_t> item) const {
  const Features features = OfItem(item);
  const Overlap overlap = OverlapOf(query, item, features);
  float value =
      table_.bias + query.value + overlap.cosine * table_.overlap.cosine +
      overlap.share * table_.overlap.share + overlap.bm25 * table_.overlap.bm25;
  for (const auto& [place, weight] : features) {
    value += weight * table_.item_weights[place];
  }
  return value;
}

std::string LexicalFile(absl::string_view head) {
  return absl::StrCat(head, ".lexical.safetensors");
}

}  // namespace vitrine
