#pragma once

// Event files that TensorBoard opens: scalars over steps.
//
// A file is a series of records as TFRecord has them: the length (8 bytes,
// little endian), its masked CRC-32C, the data, the data's masked CRC-32C. The
// data is a tensorflow.Event.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "vitrine/internal/tensorboard.pb.h"

namespace vitrine {

// For one thread.
class TensorBoardWriter {
 public:
  // A new file events.out.tfevents.<seconds>.<host>.<pid>.<n> in `folder`,
  // which is made if need be. With `first_step` above 0 the run goes on from
  // there: what older files of the folder have after it is no longer shown.
  static absl::StatusOr<std::unique_ptr<TensorBoardWriter>> Create(
      const std::string& folder, int64_t first_step);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  using Scalar = std::pair<std::string, double>;  // "loss", 0.5
  // kResourceExhausted when the disk is full. After an error nothing more is
  // written: a reader stops at a record that is cut.
  absl::Status Write(int64_t step, const std::vector<Scalar>& scalars);

  const std::string& path() const { return path_; }

 private:
  TensorBoardWriter(std::string path, std::FILE* file)
      : path_(std::move(path)), file_(file) {}
  absl::Status Append(internal::TensorBoardEvent event);

  const std::string path_;
  std::FILE* file_;  // null after an error
};

// CRC-32C (Castagnoli), as RFC 3720 has it.
uint32_t Crc32c(absl::string_view data);
// As TFRecord stores it: rotated and offset, so that a CRC of data with CRCs in
// it is no trivial one.
uint32_t MaskedCrc32c(absl::string_view data);

}  // namespace vitrine
