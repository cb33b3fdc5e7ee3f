#include "server/gunzip.h"

#include <zlib.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

constexpr size_t kFirstBytes = 64 << 10;
constexpr int kGzipOnly = 16 + MAX_WBITS;  // as inflateInit2 takes it

}  // namespace

bool IsGzip(absl::string_view bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b';
}

absl::StatusOr<std::string> Gunzip(absl::string_view bytes, size_t max_bytes) {
  z_stream stream = {};
  if (inflateInit2(&stream, kGzipOnly) != Z_OK) {
    return absl::InternalError("inflateInit2 failed");
  }
  stream.next_in =
      const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  std::string out;
  int result = Z_OK;
  while (result == Z_OK) {
    // One byte more than allowed tells too long from just fitting.
    const size_t size =
        std::min(std::max(kFirstBytes, 2 * out.size()), max_bytes + 1);
    const size_t have = out.size();
    if (have == size) break;
    out.resize(size);
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + have);
    stream.avail_out = static_cast<uInt>(size - have);
    result = inflate(&stream, Z_NO_FLUSH);
    out.resize(size - stream.avail_out);
    if (result == Z_OK && stream.avail_out > 0) break;  // the input is cut
  }
  const bool whole = result == Z_STREAM_END && stream.avail_in == 0;
  inflateEnd(&stream);
  if (out.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the message has more than ", max_bytes,
                     " bytes (limits.max_message_bytes)"));
  }
  if (!whole) {
    return absl::InvalidArgumentError(
        "malformed message: the gzip data is damaged");
  }
  return out;
}

}  // namespace vitrine
