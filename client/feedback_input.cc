#include "client/feedback_input.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "client/input.h"
#include "google/protobuf/util/json_util.h"

namespace vitrine {
namespace {

using nlohmann::json;

// Of a digest's characters: 128 bits.
constexpr size_t kIdCharacters = 32;

absl::StatusOr<v1::Feedback> FromProtoJson(const json& row) {
  v1::Feedback feedback;
  const auto status =
      google::protobuf::util::JsonStringToMessage(row.dump(), &feedback);
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "not a vitrine.v1.Feedback: ", std::string(status.message())));
  }
  return feedback;
}

absl::StatusOr<std::string> TextOf(const json& row, const char* name) {
  const auto value = row.find(name);
  if (value == row.end()) {
    return absl::InvalidArgumentError(absl::StrCat("no \"", name, "\" in it"));
  }
  if (!value->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not text"));
  }
  return value->get<std::string>();
}

absl::StatusOr<std::vector<std::string>> TextsOf(const json& row,
                                                 const char* name) {
  const json& value = row.at(name);
  std::vector<std::string> texts;
  if (value.is_array()) {
    for (const json& element : value) {
      if (!element.is_string()) break;
      texts.push_back(element.get<std::string>());
    }
  }
  if (!value.is_array() || texts.size() != value.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not a list of texts"));
  }
  return texts;
}

absl::StatusOr<v1::Item> FindItem(const std::string& id,
                                  const FeedbackInput& input) {
  const auto item = input.items.find(id);
  if (item == input.items.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("item \"", id, "\" is not among --items"));
  }
  return item->second;
}

absl::StatusOr<v1::Feedback> Judgement(const json& row,
                                       const FeedbackInput& input) {
  v1::Feedback feedback;
  v1::RelevanceJudgement& label = *feedback.mutable_relevance();
  ASSIGN_OR_RETURN(*label.mutable_query(), TextOf(row, "query"));
  const json& grade = row.at("grade");
  if (!grade.is_number()) {
    return absl::InvalidArgumentError("\"grade\" is not a number");
  }
  const double value = grade.get<double>();
  if (!(value >= input.min_grade && value <= input.max_grade)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"grade\": ", value, " is not in [", input.min_grade,
                     ", ", input.max_grade, "] (--grades)"));
  }
  label.set_grade(static_cast<float>((value - input.min_grade) /
                                     (input.max_grade - input.min_grade)));
  if (row.contains("item")) {
    ASSIGN_OR_RETURN(*label.mutable_item(), ParseItem(row["item"].dump()));
  } else if (row.contains("title")) {
    ASSIGN_OR_RETURN(*label.mutable_item(), ParseItem(row.dump()));
  } else {
    ASSIGN_OR_RETURN(const std::string id, TextOf(row, "item_id"));
    ASSIGN_OR_RETURN(*label.mutable_item(), FindItem(id, input));
  }
  return feedback;
}

absl::StatusOr<std::vector<v1::Feedback>> History(const json& row,
                                                  const FeedbackInput& input) {
  ASSIGN_OR_RETURN(const std::string user, TextOf(row, "user_id"));
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, TextsOf(row, "items"));
  std::vector<v1::Feedback> out;
  if (row.contains("categories")) {
    v1::InterestLabel& label = *out.emplace_back().mutable_interest();
    label.set_user_id(user);
    for (const std::string& id : ids) {
      ASSIGN_OR_RETURN(*label.add_history()->mutable_item(),
                       FindItem(id, input));
    }
    ASSIGN_OR_RETURN(const std::vector<std::string> categories,
                     TextsOf(row, "categories"));
    label.mutable_categories()->Assign(categories.begin(), categories.end());
    return out;
  }
  for (const std::string& id : ids) {
    v1::InteractionEvent& event = *out.emplace_back().mutable_interaction();
    event.set_user_id(user);
    event.set_type(input.event);
    ASSIGN_OR_RETURN(*event.mutable_item(), FindItem(id, input));
  }
  return out;
}

absl::StatusOr<v1::Feedback> Text(const json& row, const FeedbackInput& input) {
  v1::Feedback feedback;
  v1::TextLabel& label = *feedback.mutable_text_label();
  if (input.head.empty()) {
    return absl::InvalidArgumentError(
        "a text's label, and no --head to say which head it is for");
  }
  label.set_head(input.head);
  ASSIGN_OR_RETURN(*label.mutable_text(), TextOf(row, "text"));
  ASSIGN_OR_RETURN(*label.mutable_label(), TextOf(row, "label"));
  return feedback;
}

absl::StatusOr<std::vector<v1::Feedback>> FromRow(const json& row,
                                                  const FeedbackInput& input) {
  const auto has = [&row](const char* name) { return row.contains(name); };
  if (has("relevance") || has("interaction") || has("interest") ||
      has("text_label") || has("textLabel")) {
    ASSIGN_OR_RETURN(v1::Feedback feedback, FromProtoJson(row));
    return std::vector<v1::Feedback>{std::move(feedback)};
  }
  if (has("query") && has("grade")) {
    ASSIGN_OR_RETURN(v1::Feedback feedback, Judgement(row, input));
    return std::vector<v1::Feedback>{std::move(feedback)};
  }
  if (has("user_id") && has("items")) return History(row, input);
  if (has("text") && has("label")) {
    ASSIGN_OR_RETURN(v1::Feedback feedback, Text(row, input));
    return std::vector<v1::Feedback>{std::move(feedback)};
  }
  return absl::InvalidArgumentError(
      "neither a vitrine.v1.Feedback nor a row with query and grade, user_id "
      "and items, or text and label");
}

// What the options made of the row, its items aside: a catalogue that changes
// makes no new label of an old row, another scale of grades does.
std::string Reading(const v1::Feedback& entry) {
  switch (entry.kind_case()) {
    case v1::Feedback::kRelevance:
      return absl::StrCat("grade ", entry.relevance().grade());
    case v1::Feedback::kInteraction:
      return absl::StrCat("event ", entry.interaction().type());
    case v1::Feedback::kTextLabel:
      return absl::StrCat("head ", entry.text_label().head());
    default:
      return "";
  }
}

}  // namespace

absl::StatusOr<std::vector<v1::Feedback>> ParseFeedback(
    absl::string_view text, const FeedbackInput& input) {
  json row;
  std::string content;
  try {
    row = json::parse(text.begin(), text.end());
    // Refuses invalid UTF-8, and makes equal rows equal.
    content = row.dump();
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", e.what()));
  }
  if (!row.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a JSON ", row.type_name(), ", not an object"));
  }
  ASSIGN_OR_RETURN(std::vector<v1::Feedback> entries, FromRow(row, input));
  std::string id =
      Sha256(absl::StrCat(entries.empty() ? "" : Reading(entries[0]), "\n",
                          content))
          .substr(0, kIdCharacters);
  if (row.contains("feedback_id")) {
    ASSIGN_OR_RETURN(id, TextOf(row, "feedback_id"));
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].feedback_id().empty()) continue;
    entries[i].set_feedback_id(entries.size() == 1 ? id
                                                   : absl::StrCat(id, "-", i));
  }
  return entries;
}

}  // namespace vitrine
