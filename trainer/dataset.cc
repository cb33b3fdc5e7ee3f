#include "trainer/dataset.h"

#include <cmath>
#include <cstdlib>
#include <functional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/unicode.h"
#include "nlohmann/json.hpp"
#include "trainer/line_reader.h"

namespace vitrine {
namespace {

using Json = nlohmann::json;

absl::Status FieldError(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("\"", field, "\": ", what));
}

absl::string_view TypeName(const Json& value) {
  return value.is_number() ? "number" : value.type_name();
}

// Null where the field is absent or null.
const Json* Find(const Json& row, const char* field) {
  const auto it = row.find(field);
  return it == row.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<std::string> StringOf(const Json& value,
                                     absl::string_view field) {
  if (!value.is_string()) {
    return FieldError(
        field, absl::StrCat("a string is expected, not ", TypeName(value)));
  }
  return value.get<std::string>();
}

// A string, or a whole number where the file has unquoted ids.
absl::StatusOr<std::string> IdOf(const Json& value, absl::string_view field) {
  std::string id;
  if (value.is_number_integer()) {
    id = absl::StrCat(value.get<int64_t>());
  } else {
    ASSIGN_OR_RETURN(id, StringOf(value, field));
  }
  if (id.empty()) return FieldError(field, "empty");
  return id;
}

absl::StatusOr<std::string> RequiredString(const Json& row, const char* field) {
  const Json* const value = Find(row, field);
  if (value == nullptr) return FieldError(field, "missing");
  ASSIGN_OR_RETURN(std::string text, StringOf(*value, field));
  if (absl::StripAsciiWhitespace(text).empty()) {
    return FieldError(field, "empty");
  }
  return text;
}

absl::StatusOr<std::string> RequiredId(const Json& row, const char* field) {
  const Json* const value = Find(row, field);
  if (value == nullptr) return FieldError(field, "missing");
  return IdOf(*value, field);
}

absl::Status OptionalString(const Json& row, const char* field,
                            std::string* out) {
  const Json* const value = Find(row, field);
  if (value == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(*out, StringOf(*value, field));
  return absl::OkStatus();
}

// An attribute's value as text: numbers and booleans are written out.
absl::StatusOr<std::string> AttributeOf(const Json& value,
                                        absl::string_view field) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  return FieldError(
      field, absl::StrCat("a string is expected, not ", TypeName(value)));
}

absl::Status ReadCategories(const Json& row, v1::Item* item) {
  if (const Json* const list = Find(row, "categories")) {
    if (list->is_string()) {
      item->add_categories(list->get<std::string>());
    } else if (list->is_array()) {
      for (const Json& value : *list) {
        ASSIGN_OR_RETURN(*item->add_categories(),
                         StringOf(value, "categories"));
      }
    } else {
      return FieldError("categories", absl::StrCat("a list is expected, not ",
                                                   TypeName(*list)));
    }
  } else if (const Json* const one = Find(row, "category")) {
    ASSIGN_OR_RETURN(*item->add_categories(), StringOf(*one, "category"));
  }
  return absl::OkStatus();
}

absl::Status ReadAttributes(const Json& row, v1::Item* item) {
  const Json* const attributes = Find(row, "attributes");
  if (attributes == nullptr) return absl::OkStatus();
  if (!attributes->is_object() && !attributes->is_array()) {
    return FieldError("attributes", absl::StrCat("an object is expected, not ",
                                                 TypeName(*attributes)));
  }
  int number = 0;
  for (const auto& [key, value] : attributes->items()) {
    if (value.is_null()) continue;
    // A list's entries get keys that sort in its order.
    const std::string name =
        attributes->is_array() ? absl::StrFormat("%03d", number++) : key;
    ASSIGN_OR_RETURN((*item->mutable_attributes())[name],
                     AttributeOf(value, absl::StrCat("attributes.", key)));
  }
  return absl::OkStatus();
}

// Everything but the id.
absl::Status ReadItemFields(const Json& row, v1::Item* item) {
  RETURN_IF_ERROR(OptionalString(row, "title", item->mutable_title()));
  RETURN_IF_ERROR(OptionalString(row, "brand", item->mutable_brand()));
  RETURN_IF_ERROR(
      OptionalString(row, "description", item->mutable_description()));
  RETURN_IF_ERROR(ReadCategories(row, item));
  RETURN_IF_ERROR(ReadAttributes(row, item));
  if (item->title().empty() && item->brand().empty() &&
      item->description().empty() && item->categories().empty() &&
      item->attributes().empty()) {
    return FieldError("title", "missing, and no other text in the item");
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> LookUp(const Catalogue& catalogue,
                               const std::string& id, absl::string_view field) {
  const auto it = catalogue.by_id.find(id);
  if (it == catalogue.by_id.end()) {
    return FieldError(
        field,
        absl::StrCat("unknown item id \"", absl::Utf8SafeCHexEscape(id), "\"",
                     catalogue.listed == 0 ? " (no items file is given)" : ""));
  }
  return it->second;
}

// The item of a relevance row, which may be written out in it.
absl::StatusOr<int32_t> ItemOfRow(const Json& row, Catalogue* catalogue) {
  const Json* inner = Find(row, "item");
  if (inner != nullptr && !inner->is_object()) {
    return FieldError(
        "item", absl::StrCat("an object is expected, not ", TypeName(*inner)));
  }
  const bool flat = inner == nullptr && Find(row, "title") != nullptr;
  if (inner == nullptr && !flat) {
    if (Find(row, "item_id") == nullptr) {
      return FieldError("item_id", "missing, and neither item nor title");
    }
    ASSIGN_OR_RETURN(const std::string id, RequiredId(row, "item_id"));
    return LookUp(*catalogue, id, "item_id");
  }
  v1::Item item;
  const Json& fields = flat ? row : *inner;
  for (const char* const name : {"item_id", "id"}) {
    if (const Json* const id = Find(fields, name)) {
      ASSIGN_OR_RETURN(*item.mutable_id(), IdOf(*id, name));
      break;
    }
  }
  RETURN_IF_ERROR(ReadItemFields(fields, &item));
  catalogue->items.push_back(std::move(item));
  return static_cast<int32_t>(catalogue->items.size() - 1);
}

absl::Status ReadRelevanceRow(const Json& row, const GradeRange& grades,
                              Catalogue* catalogue, RelevanceRow* out) {
  ASSIGN_OR_RETURN(out->query, RequiredString(row, "query"));
  const Json* const grade = Find(row, "grade");
  if (grade == nullptr) return FieldError("grade", "missing");
  if (!grade->is_number()) {
    return FieldError(
        "grade", absl::StrCat("a number is expected, not ", TypeName(*grade)));
  }
  out->grade = grade->get<float>();
  if (!(out->grade >= grades.min && out->grade <= grades.max)) {
    return FieldError("grade", absl::StrCat(out->grade, " is outside ",
                                            grades.min, ":", grades.max));
  }
  if (const Json* const weight = Find(row, "weight")) {
    if (!weight->is_number()) {
      return FieldError("weight", absl::StrCat("a number is expected, not ",
                                               TypeName(*weight)));
    }
    out->weight = weight->get<float>();
    if (!(out->weight > 0 && std::isfinite(out->weight))) {
      return FieldError(
          "weight",
          absl::StrCat(out->weight, " is not above 0, or not finite"));
    }
  }
  ASSIGN_OR_RETURN(out->item, ItemOfRow(row, catalogue));
  return absl::OkStatus();
}

absl::Status ReadHistoryRow(const Json& row, internal::HeadKind kind,
                            const Catalogue& catalogue, HistoryRow* out) {
  ASSIGN_OR_RETURN(out->user_id, RequiredId(row, "user_id"));
  const Json* const items = Find(row, "items");
  if (items == nullptr) return FieldError("items", "missing");
  if (!items->is_array()) {
    return FieldError(
        "items", absl::StrCat("a list is expected, not ", TypeName(*items)));
  }
  for (const Json& value : *items) {
    ASSIGN_OR_RETURN(const std::string id, IdOf(value, "items"));
    ASSIGN_OR_RETURN(const int32_t item, LookUp(catalogue, id, "items"));
    out->items.push_back(item);
  }
  if (kind == internal::HEAD_KIND_INTEREST) {
    if (out->items.empty()) return FieldError("items", "empty");
    const Json* const categories = Find(row, "categories");
    if (categories == nullptr) return FieldError("categories", "missing");
    if (!categories->is_array()) {
      return FieldError("categories", absl::StrCat("a list is expected, not ",
                                                   TypeName(*categories)));
    }
    for (const Json& value : *categories) {
      ASSIGN_OR_RETURN(std::string name, StringOf(value, "categories"));
      if (name.empty()) return FieldError("categories", "an empty name");
      out->categories.push_back(std::move(name));
    }
    return absl::OkStatus();
  }
  if (Find(row, "next") != nullptr) {
    ASSIGN_OR_RETURN(const std::string id, RequiredId(row, "next"));
    ASSIGN_OR_RETURN(const int32_t item, LookUp(catalogue, id, "next"));
    out->items.push_back(item);
  }
  if (out->items.size() < 2) {
    return FieldError("items", "at least 2 are needed: a history and a target");
  }
  return absl::OkStatus();
}

absl::Status ReadTextRow(const Json& row, TextRow* out) {
  ASSIGN_OR_RETURN(out->text, RequiredString(row, "text"));
  const Json* const label = Find(row, "label");
  if (label == nullptr) return FieldError("label", "missing");
  ASSIGN_OR_RETURN(out->label, IdOf(*label, "label"));
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseRow(const std::string& line) {
  if (const auto offset = FindInvalidUtf8(line)) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid UTF-8 at byte ", *offset));
  }
  Json row;
  try {
    row = Json::parse(line);
  } catch (const Json::exception& e) {
    // The library's own text quotes the input, which may be a user's.
    const auto* const parse = dynamic_cast<const Json::parse_error*>(&e);
    return absl::InvalidArgumentError(absl::StrCat(
        "not JSON", parse ? absl::StrCat(" at byte ", parse->byte) : ""));
  }
  if (!row.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a JSON object is expected, not ", TypeName(row)));
  }
  return row;
}

// Calls `take` for each row of the file; blank lines are skipped.
absl::Status ForEachRow(const std::string& path, std::string* digest,
                        const std::function<absl::Status(const Json&)>& take) {
  ASSIGN_OR_RETURN(const auto reader, LineReader::Open(path));
  std::string line;
  int64_t rows = 0;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&line));
    if (!more) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const absl::StatusOr<Json> row = ParseRow(line);
    const absl::Status status = row.ok() ? take(*row) : row.status();
    RETURN_IF_ERROR(Annotate(status, reader->where()));
    *digest = Sha256(absl::StrCat(*digest, line));
    ++rows;
  }
  if (rows == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no rows"));
  }
  return absl::OkStatus();
}

template <typename Row, typename Key>
void SplitRows(std::vector<Row> all, double share, const Key& key,
               std::vector<Row>* training, std::vector<Row>* validation) {
  for (Row& row : all) {
    (IsHeldOut(key(row), share) ? validation : training)
        ->push_back(std::move(row));
  }
}

}  // namespace

absl::StatusOr<Catalogue> ReadItems(const std::string& path,
                                    std::string* digest) {
  Catalogue catalogue;
  RETURN_IF_ERROR(
      ForEachRow(path, digest, [&catalogue](const Json& row) -> absl::Status {
        v1::Item item;
        const char* const field =
            Find(row, "id") == nullptr && Find(row, "item_id") != nullptr
                ? "item_id"
                : "id";
        ASSIGN_OR_RETURN(*item.mutable_id(), RequiredId(row, field));
        RETURN_IF_ERROR(ReadItemFields(row, &item));
        const auto [it, added] = catalogue.by_id.emplace(
            item.id(), static_cast<int32_t>(catalogue.items.size()));
        if (!added) {
          return FieldError(
              field, absl::StrCat("\"", item.id(), "\" is there already"));
        }
        catalogue.items.push_back(std::move(item));
        return absl::OkStatus();
      }));
  catalogue.listed = static_cast<int32_t>(catalogue.items.size());
  return catalogue;
}

absl::StatusOr<Dataset> ReadDataset(internal::HeadKind kind,
                                    const std::string& path,
                                    const GradeRange& grades,
                                    Catalogue* catalogue, std::string* digest) {
  Dataset data;
  data.kind = kind;
  data.grades = grades;
  RETURN_IF_ERROR(
      ForEachRow(path, digest, [&](const Json& row) -> absl::Status {
        switch (kind) {
          case internal::HEAD_KIND_RELEVANCE:
            return ReadRelevanceRow(row, grades, catalogue,
                                    &data.relevance.emplace_back());
          case internal::HEAD_KIND_RECOMMENDATION:
          case internal::HEAD_KIND_INTEREST:
            return ReadHistoryRow(row, kind, *catalogue,
                                  &data.histories.emplace_back());
          case internal::HEAD_KIND_CLASSIFICATION:
            return ReadTextRow(row, &data.texts.emplace_back());
          default:
            return absl::InternalError(absl::StrCat("head kind ", kind));
        }
      }));
  return data;
}

bool IsHeldOut(absl::string_view key, double share) {
  const std::string hash = Sha256(key).substr(0, 8);
  return std::strtoul(hash.c_str(), nullptr, 16) < share * 4294967296.0;
}

std::string SameTextKey(absl::string_view text) {
  return absl::AsciiStrToLower(absl::StrJoin(
      absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty()),
      " "));
}

Split SplitDataset(Dataset all, double share) {
  Split split;
  for (Dataset* const part : {&split.training, &split.validation}) {
    part->kind = all.kind;
    part->grades = all.grades;
  }
  SplitRows(
      std::move(all.relevance), share,
      [](const RelevanceRow& row) { return SameTextKey(row.query); },
      &split.training.relevance, &split.validation.relevance);
  SplitRows(
      std::move(all.histories), share,
      [](const HistoryRow& row) { return row.user_id; },
      &split.training.histories, &split.validation.histories);
  SplitRows(
      std::move(all.texts), share,
      [](const TextRow& row) { return SameTextKey(row.text); },
      &split.training.texts, &split.validation.texts);
  return split;
}

}  // namespace vitrine
