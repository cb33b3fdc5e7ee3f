#include "store/label_store.h"

#include <algorithm>
#include <string>
#include <unordered_set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "store/sql.h"

namespace vitrine {
namespace {

// Rows that one statement inserts: fewer round trips to PostgreSQL, less work
// in SOCI. A batch is cut into pieces of these sizes, the largest first.
constexpr size_t kInsertRows[] = {128, 16, 1};
// Rows that Read has in memory at a time.
constexpr int64_t kReadRows = 1000;

std::string InsertStatement(size_t rows) {
  std::string sql =
      "insert into labels (model, feedback_id, kind, received_ms, payload) "
      "values ";
  for (size_t i = 0; i < rows; ++i) {
    absl::StrAppend(&sql, i == 0 ? "" : ", ", "(:m", i, ", :i", i, ", :k", i,
                    ", :r", i, ", :p", i, ")");
  }
  absl::StrAppend(&sql,
                  " on conflict (model, feedback_id) do nothing "
                  "returning feedback_id");
  return sql;
}

// For whoever looks into the database by hand.
const char* KindName(const v1::Feedback& feedback) {
  switch (feedback.kind_case()) {
    case v1::Feedback::kRelevance:
      return "relevance";
    case v1::Feedback::kInteraction:
      return "interaction";
    case v1::Feedback::kInterest:
      return "interest";
    case v1::Feedback::kTextLabel:
      return "text_label";
    case v1::Feedback::KIND_NOT_SET:
      break;
  }
  return "none";
}

}  // namespace

absl::StatusOr<std::vector<LabelStore::Outcome>> LabelStore::Add(
    const std::string& model, absl::Span<const v1::Feedback* const> labels,
    absl::Time received) {
  static const auto& statements = *new std::vector<std::string>{
      InsertStatement(kInsertRows[0]), InsertStatement(kInsertRows[1]),
      InsertStatement(kInsertRows[2])};
  if (labels.empty()) return std::vector<Outcome>();

  // Encoded before the transaction, which others wait for.
  const int64_t received_ms = absl::ToUnixMillis(received);
  std::vector<std::pair<size_t, std::vector<SqlArg>>> inserts;
  for (size_t begin = 0; begin < labels.size();) {
    size_t size = 0;
    while (kInsertRows[size] > labels.size() - begin) ++size;
    std::vector<SqlArg> args;
    args.reserve(kInsertRows[size] * 5);
    for (const v1::Feedback* label : labels.subspan(begin, kInsertRows[size])) {
      args.emplace_back(model);
      args.emplace_back(label->feedback_id());
      args.emplace_back(KindName(*label));
      args.emplace_back(received_ms);
      args.emplace_back(absl::Base64Escape(label->SerializeAsString()));
    }
    inserts.emplace_back(size, std::move(args));
    begin += kInsertRows[size];
  }

  std::unordered_set<std::string> stored;
  RETURN_IF_ERROR(
      database_.sql().Write([&](SqlConnection& connection) -> absl::Status {
        // Numbers are given out at the insert and seen at the commit: without
        // this a number could appear below one that was read.
        RETURN_IF_ERROR(connection.Lock(SqlLock::kLabels));
        for (auto& [size, args] : inserts) {
          ASSIGN_OR_RETURN(auto rows, connection.Query(statements[size], 1,
                                                       std::move(args)));
          for (SqlRow& row : rows) stored.insert(std::move(row[0]));
        }
        return absl::OkStatus();
      }));

  std::vector<Outcome> outcomes;
  outcomes.reserve(labels.size());
  for (const v1::Feedback* label : labels) {
    outcomes.push_back(stored.erase(label->feedback_id()) > 0
                           ? Outcome::kStored
                           : Outcome::kDuplicate);
  }
  return outcomes;
}

absl::StatusOr<int64_t> LabelStore::Watermark(const std::string& model) {
  int64_t watermark = 0;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(const auto rows,
                         connection.Query("select coalesce(max(number), 0) "
                                          "from labels where model = :model",
                                          1, {model}));
        ASSIGN_OR_RETURN(watermark, SqlInt(rows[0][0]));
        return absl::OkStatus();
      }));
  return watermark;
}

absl::StatusOr<int64_t> LabelStore::Count(const std::string& model,
                                          int64_t after, int64_t upto) {
  int64_t count = 0;
  RETURN_IF_ERROR(
      database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
        ASSIGN_OR_RETURN(
            const auto rows,
            connection.Query("select count(*) from labels where model = :model "
                             "and number > :after and number <= :upto",
                             1, {model, after, upto}));
        ASSIGN_OR_RETURN(count, SqlInt(rows[0][0]));
        return absl::OkStatus();
      }));
  return count;
}

absl::Status LabelStore::Read(
    const std::string& model, int64_t after, int64_t upto,
    const std::function<absl::Status(const StoredLabel&)>& visit) {
  while (after < upto) {
    std::vector<SqlRow> rows;
    RETURN_IF_ERROR(
        database_.sql().Read([&](SqlConnection& connection) -> absl::Status {
          ASSIGN_OR_RETURN(
              rows, connection.Query("select number, received_ms, payload from "
                                     "labels where model = :model and "
                                     "number > :after and number <= :upto "
                                     "order by number limit :rows",
                                     3, {model, after, upto, kReadRows}));
          return absl::OkStatus();
        }));
    for (const SqlRow& row : rows) {
      StoredLabel label;
      ASSIGN_OR_RETURN(label.number, SqlInt(row[0]));
      ASSIGN_OR_RETURN(const int64_t received_ms, SqlInt(row[1]));
      label.received = absl::FromUnixMillis(received_ms);
      std::string bytes;
      if (!absl::Base64Unescape(row[2], &bytes) ||
          !label.feedback.ParseFromString(bytes)) {
        return absl::DataLossError(absl::StrCat(
            "label ", label.number, " of model ", model, " is damaged"));
      }
      RETURN_IF_ERROR(visit(label));
      after = label.number;
    }
    if (static_cast<int64_t>(rows.size()) < kReadRows) break;
  }
  return absl::OkStatus();
}

}  // namespace vitrine
