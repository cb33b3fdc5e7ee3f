#include "base/textproto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/file.h"
#include "tests/testing/temp_folder.h"
#include "vitrine/internal/config.pb.h"

namespace vitrine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TextProto, PrintsWhatItParses) {
  internal::ServerConfig config;
  ASSERT_TRUE(ParseTextProto(R"(registry: "é" engine { dtype: DTYPE_BF16 })",
                             "test", &config)
                  .ok());
  EXPECT_EQ(config.engine().dtype(), internal::DTYPE_BF16);
  const std::string printed = PrintTextProto(config);
  EXPECT_THAT(printed, HasSubstr("\"é\""));
  internal::ServerConfig again;
  ASSERT_TRUE(ParseTextProto(printed, "test", &again).ok());
  EXPECT_EQ(again.registry(), "é");
}

TEST(TextProto, NamesFileLineAndColumnOfAnUnknownField) {
  internal::ServerConfig config;
  const absl::Status status = ParseTextProto(
      "registry: \"r\"\nregistrie: \"r\"\n", "c.textproto", &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("c.textproto:2:"), HasSubstr("registrie")));
}

TEST(TextProto, RefusesAFieldGivenTwiceAndAValueOutOfRange) {
  internal::ServerConfig config;
  EXPECT_FALSE(
      ParseTextProto("registry: 'a' registry: 'b'", "t", &config).ok());
  EXPECT_FALSE(ParseTextProto("pool_threads: 99999999999", "t", &config).ok());
}

TEST(TextProto, NamesAFileThatIsNotThere) {
  const TempFolder folder;
  internal::ServerConfig config;
  EXPECT_THAT(
      std::string(ReadTextProto(folder.File("none"), &config).message()),
      HasSubstr(folder.File("none")));
}

TEST(TextProto, NoticesEveryCutAndEveryChangedByteOfASealedFile) {
  const TempFolder folder;
  const std::string path = folder.File("sealed");
  internal::ServerConfig config;
  config.set_registry("r");
  config.set_listen("127.0.0.1:0");
  config.set_pool_threads(12);
  const std::string whole = PrintSealedTextProto(config);
  const auto read = [&path](const std::string& text) {
    EXPECT_TRUE(WriteFile(path, text).ok());
    internal::ServerConfig out;
    return ReadSealedTextProto(path, &out);
  };
  EXPECT_EQ(read(whole), absl::OkStatus());
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = read(whole.substr(0, size));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path), HasSubstr("cut off")));
    std::string changed = whole;
    changed[size] ^= 1;
    EXPECT_EQ(read(changed).code(), absl::StatusCode::kDataLoss) << size;
  }
  EXPECT_EQ(read(whole + "x").code(), absl::StatusCode::kDataLoss);
  // An error in what is sealed is one of the text's.
  internal::ServerConfig other;
  ASSERT_TRUE(WriteFile(path, whole).ok());
  google::protobuf::Message* wrong = other.mutable_engine();
  EXPECT_EQ(ReadSealedTextProto(path, wrong).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace vitrine
