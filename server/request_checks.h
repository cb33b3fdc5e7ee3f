#pragma once

// The rules that requests keep: counts and sizes, each limit from the
// configuration. Errors name the field, its value, the limit and its name.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "server/utf8_repair.h"
#include "vitrine/internal/config.pb.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// Immutable; any thread.
class RequestChecks {
 public:
  explicit RequestChecks(const internal::LimitsConfig& limits)
      : limits_(limits) {}

  const internal::LimitsConfig& limits() const { return limits_; }

  // At least one, at most limits.max_items or limits.max_texts.
  absl::Status ItemCount(int count) const;
  absl::Status TextCount(int count) const;
  absl::Status TopK(int top_k) const;

  // One text; `field` is how messages call it.
  absl::Status Text(absl::string_view field, absl::string_view text) const;
  // One item, `path` being "items[3]".
  absl::Status Item(const std::string& path, const v1::Item& item) const;
  // A whole history, `path` being "context.history"; empty is fine.
  absl::Status History(
      absl::string_view path,
      const google::protobuf::RepeatedPtrField<v1::Interaction>& history) const;

 private:
  absl::Status Count(absl::string_view field, int count, int limit,
                     absl::string_view limit_name) const;

  const internal::LimitsConfig limits_;
};

// Sorts out strings with invalid UTF-8: those within elements of the repeated
// field `element` become errors of `(*errors)[index]`; for any other the
// result is kInvalidArgument. `errors` may be null: then every one counts.
absl::Status CheckBadStrings(const std::vector<BadString>& bad,
                             absl::string_view element,
                             std::vector<absl::Status>* errors);

}  // namespace vitrine
