#include "server/feedback_checks.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/grpc_status.h"

namespace vitrine {
namespace {

constexpr size_t kMaxHeadBytes = 64;
// Hosts' clocks differ.
constexpr absl::Duration kClockSkew = absl::Minutes(5);

bool IsBlank(const std::string& text) {
  return absl::StripAsciiWhitespace(text).empty();
}

absl::Status Needed(absl::string_view field) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": is empty"));
}

absl::Status CheckId(absl::string_view field, const std::string& id) {
  if (id.size() > kMaxFeedbackIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", id.size(), " bytes > ", kMaxFeedbackIdBytes));
  }
  // Databases end a text at its first NUL: two ids would be one.
  if (id.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", Quoted(id), " holds a NUL"));
  }
  return absl::OkStatus();
}

absl::Status CheckItem(const RequestChecks& checks, const std::string& path,
                       const v1::Item& item) {
  RETURN_IF_ERROR(checks.Item(path, item));
  if (IsBlank(item.title()) && IsBlank(item.description())) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has neither title nor description"));
  }
  return absl::OkStatus();
}

absl::Status CheckRelevance(const RequestChecks& checks,
                            const v1::RelevanceJudgement& label) {
  if (IsBlank(label.query())) return Needed("relevance.query");
  RETURN_IF_ERROR(checks.Text("relevance.query", label.query()));
  RETURN_IF_ERROR(CheckItem(checks, "relevance.item", label.item()));
  if (!(label.grade() >= 0 && label.grade() <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("relevance.grade: ", label.grade(), " is not in [0, 1]"));
  }
  return absl::OkStatus();
}

absl::Status CheckInteraction(const RequestChecks& checks,
                              const v1::InteractionEvent& event) {
  if (event.user_id().empty()) return Needed("interaction.user_id");
  RETURN_IF_ERROR(CheckId("interaction.user_id", event.user_id()));
  RETURN_IF_ERROR(CheckId("interaction.session_id", event.session_id()));
  RETURN_IF_ERROR(CheckId("interaction.impression_id", event.impression_id()));
  RETURN_IF_ERROR(checks.Text("interaction.query", event.query()));
  // Histories and impressions are put together by the item's id.
  if (event.item().id().empty()) return Needed("interaction.item.id");
  RETURN_IF_ERROR(CheckItem(checks, "interaction.item", event.item()));
  if (event.type() == v1::INTERACTION_TYPE_UNSPECIFIED ||
      !v1::InteractionType_IsValid(event.type())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "interaction.type: ", static_cast<int>(event.type()), " is unknown"));
  }
  if (event.position() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "interaction.position: ", event.position(), " is negative"));
  }
  return absl::OkStatus();
}

absl::Status CheckInterest(const RequestChecks& checks,
                           const v1::InterestLabel& label) {
  if (label.history().empty()) return Needed("interest.history");
  RETURN_IF_ERROR(CheckId("interest.user_id", label.user_id()));
  RETURN_IF_ERROR(checks.History("interest.history", label.history()));
  for (int i = 0; i < label.history_size(); ++i) {
    RETURN_IF_ERROR(CheckItem(checks,
                              absl::StrCat("interest.history[", i, "].item"),
                              label.history(i).item()));
  }
  const int most = checks.limits().max_attributes();
  if (label.categories_size() > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("interest.categories: ", label.categories_size(), " > ",
                     most, " (limits.max_attributes)"));
  }
  for (const std::string& category : label.categories()) {
    if (IsBlank(category)) return Needed("interest.categories");
    RETURN_IF_ERROR(checks.Text("interest.categories", category));
  }
  return absl::OkStatus();
}

absl::Status CheckTextLabel(const RequestChecks& checks,
                            const v1::TextLabel& label) {
  if (label.head().empty()) return Needed("text_label.head");
  const bool named =
      label.head().size() <= kMaxHeadBytes &&
      label.head().find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") ==
          std::string::npos;
  if (!named) {
    return absl::InvalidArgumentError(
        absl::StrCat("text_label.head: ", Quoted(label.head()),
                     " is not of the form [a-z0-9_]{1,", kMaxHeadBytes, "}"));
  }
  if (IsBlank(label.text())) return Needed("text_label.text");
  RETURN_IF_ERROR(checks.Text("text_label.text", label.text()));
  if (IsBlank(label.label())) return Needed("text_label.label");
  return checks.Text("text_label.label", label.label());
}

absl::Status CheckTime(absl::Time now,
                       const google::protobuf::Timestamp& time) {
  if (time.nanos() < 0 || time.nanos() > 999999999) {
    return absl::InvalidArgumentError(absl::StrCat(
        "time.nanos: ", time.nanos(), " is not in [0, 999999999]"));
  }
  const int64_t latest = absl::ToUnixSeconds(now + kClockSkew);
  if (time.seconds() > latest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "time: ", time.seconds(), " s since 1970 lies in the future; it is ",
        absl::ToUnixSeconds(now), " now"));
  }
  if (time.seconds() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("time: ", time.seconds(), " s lies before 1970"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckFeedback(const RequestChecks& checks, absl::Time now,
                           const v1::Feedback& feedback) {
  if (feedback.feedback_id().empty()) return Needed("feedback_id");
  RETURN_IF_ERROR(CheckId("feedback_id", feedback.feedback_id()));
  if (feedback.has_time()) RETURN_IF_ERROR(CheckTime(now, feedback.time()));
  switch (feedback.kind_case()) {
    case v1::Feedback::kRelevance:
      return CheckRelevance(checks, feedback.relevance());
    case v1::Feedback::kInteraction:
      return CheckInteraction(checks, feedback.interaction());
    case v1::Feedback::kInterest:
      return CheckInterest(checks, feedback.interest());
    case v1::Feedback::kTextLabel:
      return CheckTextLabel(checks, feedback.text_label());
    case v1::Feedback::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "kind: says nothing; set relevance, interaction, interest or text_label");
}

}  // namespace vitrine
