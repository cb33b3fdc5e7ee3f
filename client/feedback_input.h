#pragma once

// Rows of labels as entries of feedback: what `vitrine label import` reads.

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "vitrine/v1/feedback.pb.h"

namespace vitrine {

struct FeedbackInput {
  // Products that rows name by id.
  std::map<std::string, v1::Item> items;
  // The grades of relevance rows that stand for 0 and 1.
  double min_grade = 0;
  double max_grade = 3;
  // Of text rows.
  std::string head;
  // Of events in histories.
  v1::InteractionType event = v1::INTERACTION_TYPE_PURCHASE;
};

// One row is one or, for a history, several entries. It is either a
// vitrine.v1.Feedback in protobuf's JSON form, or a row as `vitrine-trainer
// fit` takes it:
//
//   {"query", "grade", "item_id" or the item's fields}   a judgement
//   {"user_id", "items": [id, ..], "categories": [..]}   an interest label
//   {"user_id", "items": [id, ..]}                       an event for each item
//   {"text", "label"}                                    a text label
//
// A row without an id of its own gets one by its content and by how the options
// read it, so that to import a file twice changes nothing. kInvalidArgument
// names the field.
absl::StatusOr<std::vector<v1::Feedback>> ParseFeedback(
    absl::string_view row, const FeedbackInput& input);

}  // namespace vitrine
