#pragma once

// What shops and shoppers said, in the order in which it was committed.
// Thread-safe; calls block on the database.
//
// Errors are Database::Open's; kResourceExhausted where the disk is full.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "store/database.h"
#include "vitrine/v1/feedback.pb.h"

namespace vitrine {

struct StoredLabel {
  // Rises in the order of commits, with gaps: who has read up to a number has
  // read all up to it.
  int64_t number = 0;
  absl::Time received;
  v1::Feedback feedback;
};

class LabelStore {
 public:
  explicit LabelStore(Database& database) : database_(database) {}

  enum class Outcome { kStored, kDuplicate };
  // In one transaction, committed to disk on return; all or nothing on an
  // error. An id that is there already (or twice in `labels`) changes nothing.
  absl::StatusOr<std::vector<Outcome>> Add(
      const std::string& model, absl::Span<const v1::Feedback* const> labels,
      absl::Time received);

  // The highest number; 0: there is none.
  absl::StatusOr<int64_t> Watermark(const std::string& model);
  // Labels with numbers in (after, upto].
  absl::StatusOr<int64_t> Count(const std::string& model, int64_t after,
                                int64_t upto);
  // Calls `visit` for each of those, by rising number, and ends early with the
  // error that it returns. No lock or transaction is held across calls of
  // `visit`.
  absl::Status Read(
      const std::string& model, int64_t after, int64_t upto,
      const std::function<absl::Status(const StoredLabel&)>& visit);

 private:
  Database& database_;
};

}  // namespace vitrine
