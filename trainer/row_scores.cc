#include "trainer/row_scores.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/log_sum_exp.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "trainer/catalogue_logits.h"
#include "trainer/evaluation.h"

namespace vitrine {
namespace {

// Fields in the order that they are put in, numbers as short as a float's
// digits allow.
using Json =
    nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool,
                         std::int64_t, std::uint64_t, float>;

constexpr size_t kTop = 10;

float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

Json RelevanceLine(const RelevanceRow& row, const Catalogue& catalogue,
                   float logit) {
  return {{"query", row.query},
          {"item_id", catalogue.items[row.item].id()},
          {"score", Sigmoid(logit)},
          {"logit", logit},
          {"grade", row.grade}};
}

Json InterestLine(const HistoryRow& row, const internal::Head& head,
                  absl::Span<const float> logits) {
  Json probabilities = Json::object();
  for (int l = 0; l < head.labels_size(); ++l) {
    probabilities[head.labels(l)] = Sigmoid(logits[l]);
  }
  return {{"user_id", row.user_id},
          {"probabilities", std::move(probabilities)},
          {"categories", row.categories}};
}

Json ClassificationLine(const TextRow& row, const internal::Head& head,
                        absl::Span<const float> logits) {
  const auto most = std::max_element(logits.begin(), logits.end());
  const double log_sum = LogSumExp(logits);
  Json probabilities = Json::object();
  for (int l = 0; l < head.labels_size(); ++l) {
    probabilities[head.labels(l)] =
        static_cast<float>(std::exp(logits[l] - log_sum));
  }
  return {{"label", row.label},
          {"predicted", head.labels(static_cast<int>(most - logits.begin()))},
          {"probabilities", std::move(probabilities)},
          {"logits", std::vector<float>(logits.begin(), logits.end())},
          {"energy", static_cast<float>(-log_sum)}};
}

Json RecommendationLine(const HistoryRow& row, const Catalogue& catalogue,
                        absl::Span<const float> scores) {
  const int32_t next = row.items.back();
  const auto seen = absl::MakeSpan(row.items).subspan(0, row.items.size() - 1);
  absl::flat_hash_set<int32_t> left_out(seen.begin(), seen.end());
  left_out.erase(next);
  std::vector<int32_t> order;
  for (int32_t item = 0; item < scores.size(); ++item) {
    if (!left_out.contains(item)) order.push_back(item);
  }
  const size_t count = std::min(kTop, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&scores](int32_t a, int32_t b) {
                      if (scores[a] != scores[b]) return scores[a] > scores[b];
                      return a < b;
                    });
  Json top = Json::array();
  for (size_t i = 0; i < count; ++i) {
    top.push_back(catalogue.items[order[i]].id());
  }
  return {{"user_id", row.user_id},
          {"next", catalogue.items[next].id()},
          {"place", PlaceOf(next, scores, seen)},
          {"top", std::move(top)}};
}

at::Tensor Matrix(const std::vector<float>& values, size_t rows) {
  const auto count = static_cast<int64_t>(rows);
  return at::tensor(values).view(
      {count, static_cast<int64_t>(values.size()) / count});
}

}  // namespace

absl::StatusOr<std::unique_ptr<RowScoreWriter>> RowScoreWriter::Open(
    const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "we");
  if (file == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  }
  return std::unique_ptr<RowScoreWriter>(new RowScoreWriter(path, file));
}

RowScoreWriter::~RowScoreWriter() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status RowScoreWriter::Write(
    const internal::Head& head, const Dataset& rows, const Catalogue& catalogue,
    const HeadTables& tables, const Featurizer& featurizer,
    absl::Span<const std::vector<float>> outputs) {
  const auto put = [this](const Json& line) {
    const std::string text =
        line.dump(-1, ' ', false, Json::error_handler_t::replace);
    std::fprintf(file_, "%s\n", text.c_str());
  };
  const auto logits = [&](size_t row) {
    return absl::MakeConstSpan(outputs[0])
        .subspan(row * head.labels_size(), head.labels_size());
  };
  switch (head.kind()) {
    case internal::HEAD_KIND_RELEVANCE:
      for (size_t i = 0; i < rows.relevance.size(); ++i) {
        const RelevanceRow& row = rows.relevance[i];
        float logit = outputs[0][i];
        if (tables.lexical != nullptr) {
          ASSIGN_OR_RETURN(const Tokens query, featurizer.Query(row.query));
          ASSIGN_OR_RETURN(const Tokens item,
                           featurizer.ItemText(catalogue.items[row.item]));
          const LexicalScorer& lexical = *tables.lexical;
          logit = lexical.mixture().Logit(
              logit, lexical.Value(lexical.OfQuery(query.ids), item.ids));
        }
        put(RelevanceLine(row, catalogue, logit));
      }
      break;
    case internal::HEAD_KIND_INTEREST:
      for (size_t i = 0; i < rows.histories.size(); ++i) {
        put(InterestLine(rows.histories[i], head, logits(i)));
      }
      break;
    case internal::HEAD_KIND_CLASSIFICATION:
      for (size_t i = 0; i < rows.texts.size(); ++i) {
        std::vector<float> row(logits(i).begin(), logits(i).end());
        if (tables.ngrams != nullptr) {
          ASSIGN_OR_RETURN(const Encoding text,
                           featurizer.Text(rows.texts[i].text));
          tables.ngrams->mixture().Combine(tables.ngrams->Margins(text.ids),
                                           absl::MakeSpan(row));
        }
        put(ClassificationLine(rows.texts[i], head, row));
      }
      break;
    case internal::HEAD_KIND_RECOMMENDATION: {
      // Some users at a time: all of them times all items may be too much.
      constexpr size_t kUsers = 1024;
      const at::NoGradGuard no_grad;
      const auto listed = static_cast<size_t>(catalogue.listed);
      const at::Tensor items = Matrix(outputs[0], listed).t();
      const at::Tensor users = Matrix(outputs[1], rows.histories.size());
      const CatalogueLogits combined(tables.counts.get(), catalogue);
      for (size_t begin = 0; begin < rows.histories.size(); begin += kUsers) {
        const size_t end = std::min(begin + kUsers, rows.histories.size());
        const at::Tensor cosines =
            at::mm(users.slice(0, begin, end), items).contiguous();
        for (size_t i = begin; i < end; ++i) {
          const absl::Span<float> scores(
              cosines.data_ptr<float>() + (i - begin) * listed, listed);
          const std::vector<int32_t>& all = rows.histories[i].items;
          combined.Combine(absl::MakeSpan(all).subspan(0, all.size() - 1),
                           scores);
          put(RecommendationLine(rows.histories[i], catalogue, scores));
        }
      }
      break;
    }
    default:
      return absl::InternalError(
          absl::StrCat("head ", head.name(), " has no kind"));
  }
  return absl::OkStatus();
}

absl::Status RowScoreWriter::Close() {
  const bool failed = std::ferror(file_) != 0;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!failed && closed) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(path_, ": not written whole: ", std::strerror(errno)));
}

}  // namespace vitrine
