#include "trainer/tensorboard_writer.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli's, reflected
constexpr uint32_t kMaskDelta = 0xa282ead8;

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    }
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

template <typename Integer>
std::string LittleEndian(Integer value) {
  std::string bytes(sizeof(value), '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(value & 0xff);
    value >>= 8;
  }
  return bytes;
}

absl::Status WriteError(const std::string& path, int error) {
  const std::string message =
      absl::StrCat("write ", path, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT
             ? absl::ResourceExhaustedError(message)
             : absl::InternalError(message);
}

}  // namespace

uint32_t Crc32c(absl::string_view data) {
  uint32_t crc = 0xffffffff;
  for (const char c : data) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  }
  return ~crc;
}

uint32_t MaskedCrc32c(absl::string_view data) {
  const uint32_t crc = Crc32c(data);
  return ((crc >> 15) | (crc << 17)) + kMaskDelta;
}

absl::StatusOr<std::unique_ptr<TensorBoardWriter>> TensorBoardWriter::Create(
    const std::string& folder, int64_t first_step) {
  RETURN_IF_ERROR(MakeFolders(folder));
  static std::atomic<int> files{0};
  char host[256] = "";
  (void)gethostname(host, sizeof(host) - 1);
  // TensorBoard reads a folder's files in the order of their names.
  const std::string path =
      JoinPath(folder, absl::StrCat("events.out.tfevents.",
                                    absl::ToUnixSeconds(absl::Now()), ".", host,
                                    ".", getpid(), ".", files++));
  std::FILE* const file = std::fopen(path.c_str(), "wbx");
  if (file == nullptr) return WriteError(path, errno);
  std::unique_ptr<TensorBoardWriter> writer(new TensorBoardWriter(path, file));
  internal::TensorBoardEvent version;
  version.set_file_version("brain.Event:2");
  RETURN_IF_ERROR(writer->Append(std::move(version)));
  if (first_step > 0) {
    internal::TensorBoardEvent start;
    start.set_step(first_step + 1);
    start.mutable_session_log()->set_status(
        internal::TensorBoardSessionLog::START);
    RETURN_IF_ERROR(writer->Append(std::move(start)));
  }
  return writer;
}

TensorBoardWriter::~TensorBoardWriter() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status TensorBoardWriter::Write(int64_t step,
                                      const std::vector<Scalar>& scalars) {
  internal::TensorBoardEvent event;
  event.set_step(step);
  for (const auto& [tag, scalar] : scalars) {
    internal::TensorBoardSummary::Value& value =
        *event.mutable_summary()->add_value();
    value.set_tag(tag);
    value.set_simple_value(static_cast<float>(scalar));
  }
  return Append(std::move(event));
}

absl::Status TensorBoardWriter::Append(internal::TensorBoardEvent event) {
  if (file_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": an earlier write failed"));
  }
  event.set_wall_time(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  const std::string data = event.SerializeAsString();
  const std::string length = LittleEndian(uint64_t{data.size()});
  const std::string record =
      absl::StrCat(length, LittleEndian(MaskedCrc32c(length)), data,
                   LittleEndian(MaskedCrc32c(data)));
  // Flushed, so that somebody who looks on sees it.
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() ||
      std::fflush(file_) != 0) {
    const int error = errno;
    std::fclose(file_);
    file_ = nullptr;
    return WriteError(path_, error);
  }
  return absl::OkStatus();
}

}  // namespace vitrine
