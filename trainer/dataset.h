#pragma once

// Labelled rows for fine-tuning, read from files of JSON lines (plain or
// gzip). Every error names file, line and field.
//
//   items            {"id", "title", "brand", "description",
//                     "categories": [...], "attributes": {...}}
//   relevance        {"query", "grade"} and the item: "item_id" of the items
//                    file, or "item": {...}, or the item's fields in the row;
//                    "weight" of its loss, above 0, is 1 unless given
//   recommendation   {"user_id", "items": [id, ...]}, oldest first; with
//                    "next": id, that item comes last
//   interest         {"user_id", "items": [id, ...], "categories": [...]}
//   classification   {"text", "label"}
//
// Other fields are ignored. In items, "item_id" stands for "id", "category"
// for a single category; "attributes" may be a list.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// The products that rows speak of, by index.
struct Catalogue {
  std::vector<v1::Item> items;
  absl::flat_hash_map<std::string, int32_t> by_id;
  // The first `listed` items came from the items file: what recommendation
  // ranks. Those after them were written out in relevance rows.
  int32_t listed = 0;
};

struct RelevanceRow {
  std::string query;
  int32_t item = 0;
  float grade = 0;   // as in the file
  float weight = 1;  // of its loss; above 0
};

struct HistoryRow {
  std::string user_id;
  std::vector<int32_t> items;           // oldest first
  std::vector<std::string> categories;  // interest only
};

struct TextRow {
  std::string text;
  std::string label;
};

// The grades that stand for 0 and 1.
struct GradeRange {
  float min = 0;
  float max = 3;
};

// The rows of one task: the vector that its kind uses is filled.
struct Dataset {
  internal::HeadKind kind = internal::HEAD_KIND_UNSPECIFIED;
  GradeRange grades;
  std::vector<RelevanceRow> relevance;
  std::vector<HistoryRow> histories;
  std::vector<TextRow> texts;

  size_t size() const {
    return relevance.size() + histories.size() + texts.size();
  }
};

// kInvalidArgument: not JSON, a missing field or one of the wrong type,
// invalid UTF-8, a repeated id, an item without text, no rows at all.
// `digest` is a running SHA-256 over rows: each row is chained to it.
absl::StatusOr<Catalogue> ReadItems(const std::string& path,
                                    std::string* digest);

// Ids are looked up in `catalogue`; items written out in rows are added to it.
// kInvalidArgument too: an unknown id, a grade outside `grades`, a sequence
// that is too short (2 items for recommendation, 1 for interest).
absl::StatusOr<Dataset> ReadDataset(internal::HeadKind kind,
                                    const std::string& path,
                                    const GradeRange& grades,
                                    Catalogue* catalogue, std::string* digest);

struct Split {
  Dataset training;
  Dataset validation;
};

// By a hash of the query, the user or the text, so that all rows of one are on
// one side, and on the same side in every run. `share` is in [0, 1).
Split SplitDataset(Dataset all, double share);

// What decides of a row: whether the rows of `key` (a SameTextKey of the query
// or the text, or the user's id) are held out.
bool IsHeldOut(absl::string_view key, double share);
// Near enough the same text for every tokenizer: "Red sofa" and "red  sofa" are
// held out together.
std::string SameTextKey(absl::string_view text);

}  // namespace vitrine
