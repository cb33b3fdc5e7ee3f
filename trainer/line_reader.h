#pragma once

// The lines of a text file, plain or gzip (by its content, not its name).
// For one thread.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace vitrine {

class LineReader {
 public:
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(
      const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its end (\n or \r\n); false at the file's end.
  // kDataLoss: a damaged or cut gzip file. kInvalidArgument: a line above
  // 64 MiB.
  absl::StatusOr<bool> Next(std::string* line);

  // "FILE:17", of the line last read.
  std::string where() const;

 private:
  LineReader(const std::string& path, void* file) : path_(path), file_(file) {}

  const std::string path_;
  void* const file_;  // gzFile
  int64_t number_ = 0;
};

}  // namespace vitrine
