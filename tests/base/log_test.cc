#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace vitrine {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override {
    SetLogLevel(LogLevel::kInfo);
    SetLogFormat(LogFormat::kText);
  }
};

TEST_F(LogTest, WritesOneLineOfKeysAndValues) {
  ::testing::internal::CaptureStderr();
  Log(LogLevel::kInfo, "model_loaded",
      {{"model", "shop"}, {"version", 12}, {"seconds", 0.5}, {"ok", true}});
  EXPECT_THAT(
      ::testing::internal::GetCapturedStderr(),
      EndsWith(
          " INFO model_loaded model=shop version=12 seconds=0.5 ok=true\n"));
}

TEST_F(LogTest, QuotesWhatWouldBreakALine) {
  ::testing::internal::CaptureStderr();
  Log(LogLevel::kError, "bad", {{"path", "a b\n\"c\"\xff"}, {"empty", ""}});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              EndsWith(R"(ERROR bad path="a b\u000a\"c\"\u00ff" empty="")"
                       "\n"));
}

TEST_F(LogTest, WritesJsonWhenAsked) {
  SetLogFormat(LogFormat::kJson);
  ::testing::internal::CaptureStderr();
  Log(LogLevel::kWarning, "full", {{"tokens", 7}, {"why", "queue"}});
  const std::string line = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, StartsWith(R"({"time":")"));
  EXPECT_THAT(line, HasSubstr(R"("level":"WARNING","event":"full",)"
                              R"("tokens":7,"why":"queue"})"));
}

TEST_F(LogTest, LeavesOutWhatIsBelowTheLevel) {
  SetLogLevel(LogLevel::kError);
  ::testing::internal::CaptureStderr();
  Log(LogLevel::kWarning, "quiet");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace vitrine
