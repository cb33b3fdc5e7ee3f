#pragma once

// RETURN_IF_ERROR(expr) and ASSIGN_OR_RETURN(lhs, expr): the two ways to pass
// an error on. Abseil's 2022 release has neither.

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define RETURN_IF_ERROR(expr)                          \
  do {                                                 \
    absl::Status vitrine_status_ = (expr);             \
    if (!vitrine_status_.ok()) return vitrine_status_; \
  } while (false)

#define VITRINE_CONCAT_INNER_(a, b) a##b
#define VITRINE_CONCAT_(a, b) VITRINE_CONCAT_INNER_(a, b)

// `lhs` may declare a variable: ASSIGN_OR_RETURN(auto x, F());
#define ASSIGN_OR_RETURN(lhs, expr) \
  VITRINE_ASSIGN_OR_RETURN_(VITRINE_CONCAT_(vitrine_or_, __LINE__), lhs, expr)
#define VITRINE_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return std::move(tmp).status();  \
  lhs = *std::move(tmp)

namespace vitrine {

// The same status with "prefix: " before its message; payloads are kept.
// OK stays OK. For naming the thing an inner error is about.
inline absl::Status Annotate(const absl::Status& status,
                             absl::string_view prefix) {
  if (status.ok()) return status;
  std::string message(prefix);
  message.append(": ").append(status.message().data(), status.message().size());
  absl::Status out(status.code(), message);
  status.ForEachPayload([&out](absl::string_view url, const absl::Cord& value) {
    out.SetPayload(url, value);
  });
  return out;
}

}  // namespace vitrine
