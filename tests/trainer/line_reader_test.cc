#include "trainer/line_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <string>
#include <vector>

#include "base/file.h"
#include "base/status_macros.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LineReaderTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& content) {
    const std::string path = folder_.File("rows.jsonl");
    EXPECT_TRUE(WriteFile(path, content).ok());
    return path;
  }

  std::string WriteGzip(const std::string& content) {
    const std::string path = folder_.File("rows.jsonl.gz");
    const gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
    gzclose(file);
    return path;
  }

  static absl::StatusOr<std::vector<std::string>> Lines(
      const std::string& path) {
    ASSIGN_OR_RETURN(const auto reader, LineReader::Open(path));
    std::vector<std::string> lines;
    std::string line;
    while (true) {
      ASSIGN_OR_RETURN(const bool more, reader->Next(&line));
      if (!more) return lines;
      lines.push_back(line);
    }
  }

  TempFolder folder_;
};

TEST_F(LineReaderTest, ReadsLinesWithoutTheirEnds) {
  EXPECT_THAT(*Lines(Write("a\nbc\r\n\nlast")),
              ElementsAre("a", "bc", "", "last"));
  EXPECT_THAT(*Lines(Write("a\n")), ElementsAre("a"));
  EXPECT_THAT(*Lines(Write("")), IsEmpty());
}

TEST_F(LineReaderTest, ReadsGzipByItsContent) {
  const std::string path = WriteGzip("one\ntwo\n");
  EXPECT_THAT(*Lines(path), ElementsAre("one", "two"));
  const std::string renamed = folder_.File("plain.txt");
  ASSERT_TRUE(WriteFile(renamed, *ReadFile(path)).ok());
  EXPECT_THAT(*Lines(renamed), ElementsAre("one", "two"));
}

TEST_F(LineReaderTest, KeepsNullBytesAndLongLines) {
  const std::string nulls("a\0b\0", 4);
  const std::string large(100000, 'x');
  EXPECT_THAT(*Lines(Write(nulls + "\n" + large + "\n")),
              ElementsAre(nulls, large));
}

TEST_F(LineReaderTest, DropsAByteOrderMark) {
  EXPECT_THAT(*Lines(Write("\xEF\xBB\xBF{}\n\xEF\xBB\xBF")),
              ElementsAre("{}", "\xEF\xBB\xBF"));
}

TEST_F(LineReaderTest, CutOrDamagedGzipIsDataLoss) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += std::to_string(i * 7919) + "\n";
  const std::string whole = *ReadFile(WriteGzip(text));
  for (const double share : {0.2, 0.5, 0.9, 0.999}) {
    const auto size = static_cast<size_t>(share * whole.size());
    const auto lines = Lines(Write(whole.substr(0, size)));
    EXPECT_EQ(lines.status().code(), absl::StatusCode::kDataLoss) << share;
  }
  std::string damaged = whole;
  damaged[whole.size() / 2] ^= 0x55;
  const auto lines = Lines(Write(damaged));
  EXPECT_EQ(lines.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lines.status().message()), HasSubstr("rows.jsonl:"));
}

TEST_F(LineReaderTest, MissingFilesAndFoldersAreNamed) {
  const auto missing = LineReader::Open(folder_.File("absent"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("absent"));
  EXPECT_EQ(LineReader::Open(folder_.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(LineReaderTest, SaysWhereItIs) {
  const auto reader = *LineReader::Open(Write("a\nb\n"));
  std::string line;
  ASSERT_TRUE(*reader->Next(&line));
  ASSERT_TRUE(*reader->Next(&line));
  EXPECT_EQ(reader->where(), folder_.File("rows.jsonl") + ":2");
}

}  // namespace
}  // namespace vitrine
