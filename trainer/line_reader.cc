#include "trainer/line_reader.h"

#include <sys/stat.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr unsigned kBufferBytes = 1 << 18;

}  // namespace

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(
    const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a folder, not a file"));
  }
  errno = 0;
  const gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    const int error = errno == 0 ? ENOMEM : errno;
    return absl::Status(
        absl::ErrnoToStatusCode(error),
        absl::StrCat("open ", path, ": ", std::strerror(error)));
  }
  gzbuffer(file, kBufferBytes);
  return std::unique_ptr<LineReader>(new LineReader(path, file));
}

LineReader::~LineReader() { gzclose(static_cast<gzFile>(file_)); }

std::string LineReader::where() const {
  return absl::StrCat(path_, ":", number_);
}

absl::StatusOr<bool> LineReader::Next(std::string* line) {
  const auto file = static_cast<gzFile>(file_);
  line->clear();
  char chunk[1 << 14];
  ++number_;
  // gzgets stops at a null byte's end too: lengths come from gztell.
  while (true) {
    const z_off_t before = gztell(file);
    if (gzgets(file, chunk, sizeof(chunk)) == nullptr) {
      int error = Z_OK;
      const char* const message = gzerror(file, &error);
      if (error != Z_OK && error != Z_STREAM_END) {
        return absl::DataLossError(absl::StrCat(
            where(),
            ": gzip: ", error == Z_ERRNO ? std::strerror(errno) : message));
      }
      if (line->empty()) {
        --number_;
        return false;
      }
      break;
    }
    line->append(chunk, gztell(file) - before);
    if (line->size() > kMaxLineBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          where(), ": a line of more than ", kMaxLineBytes, " bytes"));
    }
    if (line->back() == '\n') break;
  }
  if (!line->empty() && line->back() == '\n') line->pop_back();
  if (!line->empty() && line->back() == '\r') line->pop_back();
  // A byte order mark, which some editors write, is no part of the text.
  if (number_ == 1 && line->compare(0, 3, "\xEF\xBB\xBF") == 0) {
    line->erase(0, 3);
  }
  return true;
}

}  // namespace vitrine
