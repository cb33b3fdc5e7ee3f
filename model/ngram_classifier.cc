#include "model/ngram_classifier.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/raw_safetensors.h"
#include "model/safetensors.h"

namespace vitrine {
namespace {

absl::StatusOr<NgramTable> ReadTable(const Safetensors& file) {
  RETURN_IF_ERROR(
      CheckRawNames(file, {"ngrams", "idf", "bias", "weights", "mixture",
                           "split_tokens", "split_ends", "split_parts"}));
  NgramTable table;
  if (file.Find("split_tokens") != nullptr) {
    TokenSplits::Table splits;
    ASSIGN_OR_RETURN(splits.tokens, ReadRawInts(file, "split_tokens"));
    ASSIGN_OR_RETURN(splits.ends, ReadRawInts(file, "split_ends"));
    ASSIGN_OR_RETURN(splits.parts, ReadRawInts(file, "split_parts"));
    ASSIGN_OR_RETURN(table.splits, TokenSplits::Create(std::move(splits)));
  }
  ASSIGN_OR_RETURN(table.ngrams, ReadNgrams(file));
  ASSIGN_OR_RETURN(table.idf, ReadRawFloats(file, "idf"));
  ASSIGN_OR_RETURN(table.bias, ReadRawFloats(file, "bias"));
  ASSIGN_OR_RETURN(table.weights, ReadRawFloats(file, "weights", 2));
  ASSIGN_OR_RETURN(const std::vector<float> mixture,
                   ReadRawNumbers(file, "mixture", 2));
  table.mixture = {mixture[0], mixture[1]};
  return table;
}

absl::Status Check(const NgramTable& table) {
  RETURN_IF_ERROR(CheckNgrams(table.ngrams, table.idf));
  if (table.weights.size() != table.ngrams.size() * table.bias.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(table.ngrams.size(), " n-grams of ", table.bias.size(),
                     " labels, but ", table.weights.size(), " weights"));
  }
  if (table.bias.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("bias: ", table.bias.size(), " labels, not 2 or more"));
  }
  RETURN_IF_ERROR(CheckFinite("bias", table.bias));
  RETURN_IF_ERROR(CheckFinite("weights", table.weights));
  for (const float weight :
       {table.mixture.encoder_weight, table.mixture.ngram_weight}) {
    // Written so that NaN fails.
    if (!(weight >= 0 && weight <= 1e6f)) {
      return absl::InvalidArgumentError(
          absl::StrCat("mixture: ", weight, ", outside 0 to 1e6"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void NgramMixture::Combine(absl::Span<const float> margins,
                           absl::Span<float> logits) const {
  for (float& logit : logits) logit *= encoder_weight;
  for (size_t l = 0; l < std::min(margins.size(), logits.size()); ++l) {
    logits[l] += ngram_weight * margins[l];
  }
}

NgramClassifier::NgramClassifier(NgramTable table)
    : table_(std::move(table)),
      index_(table_.ngrams, table_.idf, &table_.splits) {}

absl::StatusOr<std::unique_ptr<const NgramClassifier>> NgramClassifier::Create(
    NgramTable table) {
  RETURN_IF_ERROR(Check(table));
  return std::unique_ptr<const NgramClassifier>(
      new NgramClassifier(std::move(table)));
}

absl::StatusOr<std::unique_ptr<const NgramClassifier>> NgramClassifier::Open(
    const std::string& path) {
  return OpenRaw<NgramClassifier>(path, ReadTable);
}

absl::Status NgramClassifier::Write(const std::string& path) const {
  const auto ngrams = static_cast<int64_t>(table_.ngrams.size());
  const std::vector<float> mixture = {table_.mixture.encoder_weight,
                                      table_.mixture.ngram_weight};
  std::vector<RawTensor> tensors = {
      ToRaw(table_.ngrams), ToRaw("idf", "F32", {ngrams}, table_.idf),
      ToRaw("bias", "F32", {labels()}, table_.bias),
      ToRaw("weights", "F32", {ngrams, labels()}, table_.weights),
      ToRaw("mixture", "F32", {2}, mixture)};
  const TokenSplits::Table& splits = table_.splits.table();
  if (!splits.tokens.empty()) {
    const auto list = [](const char* name, const std::vector<int32_t>& ids) {
      return ToRaw(name, "I32", {static_cast<int64_t>(ids.size())}, ids);
    };
    tensors.push_back(list("split_tokens", splits.tokens));
    tensors.push_back(list("split_ends", splits.ends));
    tensors.push_back(list("split_parts", splits.parts));
  }
  return WriteRawSafetensors(path, tensors);
}

std::vector<float> NgramClassifier::Margins(
    absl::Span<const int32_t> ids) const {
  std::vector<float> margins = table_.bias;
  for (const auto& [ngram, value] : index_.Features(ids)) {
    const float* const row = table_.weights.data() + int64_t{ngram} * labels();
    for (int l = 0; l < labels(); ++l) margins[l] += value * row[l];
  }
  return margins;
}

int64_t NgramClassifier::size_bytes() const {
  const TokenSplits::Table& splits = table_.splits.table();
  return 1024 + 4 * static_cast<int64_t>(
                        3 * table_.ngrams.size() + table_.bias.size() +
                        table_.weights.size() + 2 * splits.tokens.size() +
                        splits.parts.size());
}

std::string NgramFile(absl::string_view head) {
  return absl::StrCat(head, ".ngrams.safetensors");
}

}  // namespace vitrine
