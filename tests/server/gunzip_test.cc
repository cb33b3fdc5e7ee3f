#include "server/gunzip.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <string>

namespace vitrine {
namespace {

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8,
                         Z_DEFAULT_STRATEGY),
            Z_OK);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in =
      const_cast<Bytef*>(reinterpret_cast<const Bytef*>(text.data()));
  stream.avail_in = text.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Noise(size_t size) {
  std::string out(size, '\0');
  uint32_t state = 1;
  for (char& c : out)
    c = static_cast<char>((state = state * 1664525 + 1) >> 24);
  return out;
}

TEST(GunzipTest, InflatesWhatFits) {
  for (const size_t size : {0, 1, 1000, 65535, 65536, 65537, 300000}) {
    const std::string text = Noise(size);
    const std::string bytes = Gzip(text);
    EXPECT_TRUE(IsGzip(bytes));
    EXPECT_EQ(*Gunzip(bytes, 1 << 20), text) << size;
    EXPECT_EQ(*Gunzip(bytes, size), text) << size;
    if (size > 0) {
      EXPECT_TRUE(absl::IsResourceExhausted(Gunzip(bytes, size - 1).status()));
    }
  }
}

TEST(GunzipTest, StopsAtTheLimitHoweverMuchThereIs) {
  const std::string bomb = Gzip(std::string(100 << 20, 'a'));
  EXPECT_LT(bomb.size(), 200000);
  EXPECT_TRUE(absl::IsResourceExhausted(Gunzip(bomb, 100000).status()));
}

TEST(GunzipTest, RefusesDamagedData) {
  const std::string bytes = Gzip(Noise(1000));
  for (size_t size = 0; size < bytes.size(); size += 7) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        Gunzip(bytes.substr(0, size), 1 << 20).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Gunzip(bytes + "x", 1 << 20).status()));
  std::string flipped = bytes;
  flipped[500] ^= 1;
  EXPECT_TRUE(absl::IsInvalidArgument(Gunzip(flipped, 1 << 20).status()));
  EXPECT_FALSE(IsGzip("\x1f"));
  EXPECT_FALSE(IsGzip("\x0a\x8b"));
}

}  // namespace
}  // namespace vitrine
