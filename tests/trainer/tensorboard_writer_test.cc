#include "trainer/tensorboard_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/temp_folder.h"
#include "tests/trainer/small_shop.h"
#include "trainer/fine_tune.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Bit by bit, by the definition: an implementation that shares nothing with
// the writer's.
uint32_t SlowCrc32c(const std::string& data) {
  uint32_t crc = 0;
  crc = ~crc;
  for (const unsigned char byte : data) {
    for (int bit = 0; bit < 8; ++bit) {
      const bool out = ((crc ^ (byte >> bit)) & 1) != 0;
      crc >>= 1;
      if (out) crc ^= 0x82f63b78;
    }
  }
  return ~crc;
}

uint32_t Masked(uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8;
}

uint64_t Integer(const std::string& bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

// The records of a file by the published format; `*whole` is whether it ends
// with one. Fails the test on a wrong checksum.
std::vector<internal::TensorBoardEvent> ReadEvents(const std::string& path,
                                                   bool* whole) {
  const std::string text = *ReadFile(path);
  std::vector<internal::TensorBoardEvent> events;
  size_t at = 0;
  *whole = false;
  while (at + 12 <= text.size()) {
    const std::string length_bytes = text.substr(at, 8);
    EXPECT_EQ(Integer(text.substr(at + 8, 4)),
              Masked(SlowCrc32c(length_bytes)));
    const uint64_t length = Integer(length_bytes);
    if (at + 12 + length + 4 > text.size()) return events;
    const std::string data = text.substr(at + 12, length);
    EXPECT_EQ(Integer(text.substr(at + 12 + length, 4)),
              Masked(SlowCrc32c(data)));
    EXPECT_TRUE(events.emplace_back().ParseFromString(data));
    at += 12 + length + 4;
  }
  *whole = at == text.size();
  return events;
}

TEST(TensorBoardWriterTest, ChecksumsAreThoseOfTheStandard) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("vitrine"), SlowCrc32c("vitrine"));
}

TEST(TensorBoardWriterTest, WritesRecordsThatTheFormatReadsBack) {
  TempFolder folder;
  auto writer = TensorBoardWriter::Create(folder.File("a/b"), 0);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Write(1, {{"loss", 0.5}, {"rate", 1e-3}}).ok());
  ASSERT_TRUE(
      (*writer)->Write(7, {{"validation/relevance/ndcg@10", 0.75}}).ok());
  EXPECT_THAT((*writer)->path(), HasSubstr("/events.out.tfevents."));

  bool whole = false;
  const auto events = ReadEvents((*writer)->path(), &whole);
  EXPECT_TRUE(whole);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_GT(events[0].wall_time(), 1.6e9);
  EXPECT_EQ(events[1].step(), 1);
  ASSERT_EQ(events[1].summary().value_size(), 2);
  EXPECT_EQ(events[1].summary().value(0).tag(), "loss");
  EXPECT_EQ(events[1].summary().value(0).simple_value(), 0.5f);
  EXPECT_EQ(events[1].summary().value(1).tag(), "rate");
  EXPECT_EQ(events[1].summary().value(1).simple_value(), 1e-3f);
  EXPECT_EQ(events[2].step(), 7);
  EXPECT_EQ(events[2].summary().value(0).tag(), "validation/relevance/ndcg@10");
  EXPECT_FALSE(events[1].has_session_log());
}

TEST(TensorBoardWriterTest, BytesAreThoseOfTensorFlow) {
  // tf.compat.v1.Event(wall_time=1.0, step=2, summary={tag "a": 1.0}), field by
  // field as protobuf's wire format has it.
  internal::TensorBoardEvent event;
  event.set_wall_time(1);
  event.set_step(2);
  auto& value = *event.mutable_summary()->add_value();
  value.set_tag("a");
  value.set_simple_value(1);
  const std::string expected(
      "\x09\0\0\0\0\0\0\xf0\x3f"  // 1: double 1
      "\x10\x02"                  // 2: 2
      "\x2a\x0a\x0a\x08\x0a\x01"
      "a"
      "\x15\0\0\x80\x3f",  // 5: {1: {"a", 1}}
      9 + 2 + 12);
  EXPECT_EQ(event.SerializeAsString(), expected);
}

TEST(TensorBoardWriterTest, ARunThatGoesOnSaysFromWhere) {
  TempFolder folder;
  auto first = TensorBoardWriter::Create(folder.path(), 0);
  auto second = TensorBoardWriter::Create(folder.path(), 40);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_LT((*first)->path(), (*second)->path());
  bool whole = false;
  const auto events = ReadEvents((*second)->path(), &whole);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].step(), 41);
  EXPECT_EQ(events[1].session_log().status(),
            internal::TensorBoardSessionLog::START);
}

TEST(TensorBoardWriterTest, ARecordThatIsCutShows) {
  TempFolder folder;
  auto writer = TensorBoardWriter::Create(folder.path(), 0);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE((*writer)->Write(1, {{"loss", 0.5}}).ok());
  const std::string path = (*writer)->path();
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 3);
  bool whole = true;
  EXPECT_EQ(ReadEvents(path, &whole).size(), 1u);
  EXPECT_FALSE(whole);
}

TEST(TensorBoardWriterTest, SaysWhatItCannotWrite) {
  TempFolder folder;
  ASSERT_TRUE(WriteFile(folder.File("file"), "x").ok());
  const auto writer = TensorBoardWriter::Create(folder.File("file"), 0);
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(std::string(writer.status().message()),
              HasSubstr(folder.File("file")));
}

// A limit on the size of files stands in for a full disk.
TEST(TensorBoardWriterTest, NothingFollowsWhatAFullDiskCut) {
  TempFolder folder;
  const auto writer = TensorBoardWriter::Create(folder.path(), 0);
  ASSERT_TRUE(writer.ok());
  const std::string path = (*writer)->path();
  const auto size = std::filesystem::file_size(path);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  rlimit limit = old_limit;
  limit.rlim_cur = size + 5;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status full = (*writer)->Write(1, {{"loss", 0.5}});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(full.ok());
  EXPECT_THAT(std::string(full.message()), HasSubstr(path));
  EXPECT_EQ((*writer)->Write(2, {{"loss", 0.5}}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_LE(std::filesystem::file_size(path), size + 5);
  bool whole;
  EXPECT_EQ(ReadEvents(path, &whole).size(), 1u);
}

// Remembers what the run says of itself; cuts it off as a kill does.
class Witness : public FineTuneListener {
 public:
  explicit Witness(int cut_after = -1) : cut_after_(cut_after) {}
  void OnStep(const StepProgress&) override {
    if (++steps_ == cut_after_) throw std::runtime_error("cut off");
  }
  void OnEpoch(int, double loss, bool,
               const std::vector<std::vector<MetricValue>>& metrics) override {
    losses.push_back(loss);
    values.push_back(metrics[0]);
  }
  std::vector<double> losses;  // by epoch
  std::vector<std::vector<MetricValue>> values;

 private:
  const int cut_after_;
  int steps_ = 0;
};

TEST(TensorBoardRunTest, ShowsTheRunAlsoWhereItWasCutOff) {
  SmallShop shop;
  FineTuneOptions options = shop.Options();
  options.tasks = {shop.Task(internal::HEAD_KIND_CLASSIFICATION)};
  options.epochs = 2;
  options.tensorboard_folder = shop.File("curves");
  options.checkpoint_folder = shop.File("checkpoints");
  options.checkpoint_steps = 10;
  const std::atomic<bool> stop{false};
  Witness first(/*cut_after=*/35), second;
  ASSERT_FALSE(FineTune(options, &first, stop).ok());
  const auto report = FineTune(options, &second, stop);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->resumed_step, 30);
  const int64_t epoch_steps = report->steps / 2;
  ASSERT_GT(35, epoch_steps);
  ASSERT_LT(30, report->steps);

  const auto names = ListFolder(options.tensorboard_folder);
  ASSERT_EQ(names->size(), 2u);
  // As TensorBoard puts files together: where the second begins, what the
  // first has from there on is void.
  std::map<int64_t, std::map<std::string, float>> points;
  for (const std::string& name : *names) {
    bool whole;
    for (const auto& event :
         ReadEvents(JoinPath(options.tensorboard_folder, name), &whole)) {
      if (event.has_session_log()) {
        EXPECT_EQ(event.step(), 31);
        points.erase(points.lower_bound(event.step()), points.end());
      }
      for (const auto& value : event.summary().value()) {
        EXPECT_TRUE(points[event.step()]
                        .emplace(value.tag(), value.simple_value())
                        .second)
            << event.step() << " " << value.tag();
      }
    }
    EXPECT_TRUE(whole) << name;
  }
  int trained = 0;
  for (auto& [step, values] : points) {
    if (!values.contains("training/loss")) continue;
    ++trained;
    EXPECT_GT(values.at("training/loss"), 0) << step;
    EXPECT_GT(values.at("training/gradient_norm"), 0) << step;
    EXPECT_NEAR(
        values.at("training/learning_rate"),
        options.learning_rate * RateFactor(options.schedule, options.warmup,
                                           step - 1, report->steps),
        1e-6 * options.learning_rate)
        << step;
  }
  EXPECT_GT(trained, 2);
  const auto expect_epoch = [&](int64_t step, double loss,
                                const std::vector<MetricValue>& metrics) {
    EXPECT_FLOAT_EQ(points[step].at("epoch/loss"), loss);
    ASSERT_FALSE(metrics.empty());
    for (const MetricValue& metric : metrics) {
      EXPECT_FLOAT_EQ(
          points[step].at(absl::StrCat("validation/classifier/", metric.name)),
          metric.value);
    }
  };
  expect_epoch(epoch_steps, first.losses.at(0), first.values.at(0));
  expect_epoch(report->steps, second.losses.back(), second.values.back());
}

}  // namespace
}  // namespace vitrine
