#include "server/request_checks.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace vitrine {

absl::Status RequestChecks::Count(absl::string_view field, int count, int limit,
                                  absl::string_view limit_name) const {
  if (count <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": ", count, " > ", limit, " (limits.", limit_name, ")"));
}

absl::Status RequestChecks::ItemCount(int count) const {
  if (count == 0) {
    return absl::InvalidArgumentError("items: at least one is needed");
  }
  return Count("items", count, limits_.max_items(), "max_items");
}

absl::Status RequestChecks::TextCount(int count) const {
  if (count == 0) {
    return absl::InvalidArgumentError("texts: at least one is needed");
  }
  return Count("texts", count, limits_.max_texts(), "max_texts");
}

absl::Status RequestChecks::TopK(int top_k) const {
  if (top_k >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("top_k: ", top_k, " is negative"));
}

absl::Status RequestChecks::Text(absl::string_view field,
                                 absl::string_view text) const {
  const size_t limit = limits_.max_field_bytes();
  if (text.size() <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", text.size(),
                                                 " bytes > ", limit,
                                                 " (limits.max_field_bytes)"));
}

absl::Status RequestChecks::Item(const std::string& path,
                                 const v1::Item& item) const {
  // The names are put together for errors only: this runs for every item.
  const size_t limit = limits_.max_field_bytes();
  const auto check = [&](absl::string_view field, absl::string_view text) {
    if (text.size() <= limit) return absl::OkStatus();
    return Text(absl::StrCat(path, ".", field), text);
  };
  RETURN_IF_ERROR(check("id", item.id()));
  RETURN_IF_ERROR(check("title", item.title()));
  RETURN_IF_ERROR(check("description", item.description()));
  RETURN_IF_ERROR(check("brand", item.brand()));
  for (const std::string& category : item.categories()) {
    RETURN_IF_ERROR(check("categories", category));
  }
  for (const auto& [key, value] : item.attributes()) {
    RETURN_IF_ERROR(check("attributes key", key));
    RETURN_IF_ERROR(check("attributes value", value));
  }
  const int most = limits_.max_attributes();
  if (item.categories_size() > most) {
    return Count(absl::StrCat(path, ".categories"), item.categories_size(),
                 most, "max_attributes");
  }
  const int attributes = static_cast<int>(item.attributes().size());
  if (attributes > most) {
    return Count(absl::StrCat(path, ".attributes"), attributes, most,
                 "max_attributes");
  }
  return absl::OkStatus();
}

absl::Status RequestChecks::History(
    absl::string_view path,
    const google::protobuf::RepeatedPtrField<v1::Interaction>& history) const {
  RETURN_IF_ERROR(
      Count(path, history.size(), limits_.max_history(), "max_history"));
  for (int i = 0; i < history.size(); ++i) {
    RETURN_IF_ERROR(
        Item(absl::StrCat(path, "[", i, "].item"), history[i].item()));
  }
  return absl::OkStatus();
}

absl::Status CheckBadStrings(const std::vector<BadString>& bad,
                             absl::string_view element,
                             std::vector<absl::Status>* errors) {
  for (const BadString& string : bad) {
    absl::Status status = absl::InvalidArgumentError(string.message());
    const bool own = errors != nullptr && string.element == element &&
                     string.index >= 0 && string.index < errors->size();
    if (!own) return status;
    (*errors)[string.index] = std::move(status);
  }
  return absl::OkStatus();
}

}  // namespace vitrine
