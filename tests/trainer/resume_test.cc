// A run that is cut off and begun again gives the bytes of one that is not.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "store/model_registry.h"
#include "tests/testing/other_device.h"
#include "tests/trainer/small_shop.h"
#include "trainer/fine_tune.h"
#include "trainer/training_state.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kRelevance = internal::HEAD_KIND_RELEVANCE;
constexpr auto kRecommendation = internal::HEAD_KIND_RECOMMENDATION;
constexpr auto kClassification = internal::HEAD_KIND_CLASSIFICATION;

// Cuts a run off: by the flag, which leaves a last checkpoint, or by throwing,
// which ends it as a kill does, with what is on disk already.
class Cutter : public FineTuneListener {
 public:
  void OnStart(const FineTuneReport& report) override {
    resumed_step = report.resumed_step;
    warnings = report.warnings;
  }
  void OnStep(const StepProgress&) override {
    ++steps;
    if (steps == stop_after) stop = true;
    if (steps == crash_after) throw std::runtime_error("cut off");
  }
  void OnEpoch(int, double, bool,
               const std::vector<std::vector<MetricValue>>&) override {
    if (steps == crash_at_epoch_end_after) throw std::runtime_error("cut off");
  }
  std::atomic<bool> stop{false};
  int steps = 0, stop_after = -1, crash_after = -1,
      crash_at_epoch_end_after = -1;
  int64_t resumed_step = -1;
  std::vector<std::string> warnings;
};

class ResumeTest : public ::testing::Test {
 protected:
  FineTuneOptions Options() const {
    FineTuneOptions options = shop_.Options();
    options.tasks = {shop_.Task(kClassification)};
    options.dropout = 0.1;
    options.epochs = 2;
    return options;
  }
  FineTuneOptions WithCheckpoints(FineTuneOptions options) const {
    options.checkpoint_folder = folder();
    options.checkpoint_steps = 3;
    return options;
  }
  std::string folder() const { return shop_.File("checkpoints"); }

  // The weights' bytes of the version that `options` make in one go.
  std::string Unbroken(const FineTuneOptions& options) {
    Cutter listener;
    const auto report = FineTune(options, &listener, listener.stop);
    EXPECT_TRUE(report.ok()) << report.status();
    unbroken_ = *report;
    return Bytes(*report);
  }
  static std::string Bytes(const FineTuneReport& report) {
    return *ReadFile(report.folder + "/heads.safetensors") +
           *ReadFile(report.folder + "/model.safetensors");
  }
  void ExpectSameAsUnbroken(const FineTuneReport& report) const {
    EXPECT_TRUE(Bytes(report) == Bytes(unbroken_)) << "other bits";
    EXPECT_EQ(report.epochs, unbroken_.epochs);
    EXPECT_EQ(report.best_epoch, unbroken_.best_epoch);
    EXPECT_EQ(report.steps, unbroken_.steps);
    for (size_t h = 0; h < report.heads.size(); ++h) {
      ASSERT_EQ(report.heads[h].after.size(), unbroken_.heads[h].after.size());
      for (size_t i = 0; i < report.heads[h].after.size(); ++i) {
        EXPECT_EQ(report.heads[h].after[i].name,
                  unbroken_.heads[h].after[i].name);
        EXPECT_EQ(report.heads[h].after[i].value,
                  unbroken_.heads[h].after[i].value);
      }
    }
  }
  // Cuts the run off by `cutter`, begins it again, and compares with the
  // unbroken one. Returns the step that it went on from.
  int64_t CutAndResume(const FineTuneOptions& options, Cutter* cutter) {
    const auto cut = FineTune(options, cutter, cutter->stop);
    EXPECT_FALSE(cut.ok());
    Cutter again;
    const auto report = FineTune(options, &again, again.stop);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return -1;
    ExpectSameAsUnbroken(*report);
    EXPECT_THAT(again.warnings, IsEmpty());
    EXPECT_EQ(again.resumed_step, report->resumed_step);
    EXPECT_EQ(again.steps + again.resumed_step, report->steps);
    EXPECT_TRUE(RemoveTrainingStates(folder()).ok());
    return report->resumed_step;
  }

  SmallShop shop_;
  FineTuneReport unbroken_;
};

TEST_F(ResumeTest, AStoppedRunGoesOnWhereItStood) {
  Unbroken(Options());
  const FineTuneOptions options = WithCheckpoints(Options());
  for (const int step : {1, 4, 30}) {
    Cutter cutter;
    cutter.stop_after = step;
    EXPECT_EQ(CutAndResume(options, &cutter), step);
  }
}

TEST_F(ResumeTest, AKilledRunGoesOnFromItsLastCheckpoint) {
  Unbroken(Options());
  const FineTuneOptions options = WithCheckpoints(Options());
  const int64_t epoch = unbroken_.steps / 2;
  Cutter early, later, before_evaluation, at_epoch_end, last_step, last_epoch;
  early.crash_after = 2;
  EXPECT_EQ(CutAndResume(options, &early), 0);
  later.crash_after = 8;
  EXPECT_EQ(CutAndResume(options, &later), 6);
  before_evaluation.crash_at_epoch_end_after = epoch;
  EXPECT_EQ(CutAndResume(options, &before_evaluation), epoch / 3 * 3);
  at_epoch_end.crash_after = epoch + 1;
  EXPECT_EQ(CutAndResume(options, &at_epoch_end),
            (epoch + 1) % 3 == 0 ? epoch + 1 : epoch);
  last_step.crash_after = 2 * epoch;
  EXPECT_EQ(CutAndResume(options, &last_step), 2 * epoch / 3 * 3);
  last_epoch.crash_at_epoch_end_after = 2 * epoch;
  EXPECT_EQ(CutAndResume(options, &last_epoch), 2 * epoch / 3 * 3);
}

TEST_F(ResumeTest, ARunCutOffAgainAndAgainStillEndsTheSame) {
  Unbroken(Options());
  const FineTuneOptions options = WithCheckpoints(Options());
  int cuts = 0;
  while (true) {
    Cutter cutter;
    if (cuts % 2 == 0) cutter.crash_after = 10;
    if (cuts % 2 == 1) cutter.stop_after = 7;
    const auto report = FineTune(options, &cutter, cutter.stop);
    if (report.ok()) {
      ExpectSameAsUnbroken(*report);
      break;
    }
    ASSERT_LT(++cuts, 20);
  }
  EXPECT_GT(cuts, 3);
}

TEST_F(ResumeTest, AfterTheLastEpochOnlyPublishingIsLeft) {
  Unbroken(Options());
  FineTuneOptions options = WithCheckpoints(Options());
  Cutter cutter;
  ASSERT_TRUE(FineTune(options, &cutter, cutter.stop).ok());
  // As when it was killed before its folder was removed.
  Cutter again;
  const auto report = FineTune(options, &again, again.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(again.steps, 0);
  EXPECT_EQ(report->resumed_step, unbroken_.steps);
  ExpectSameAsUnbroken(*report);
}

TEST_F(ResumeTest, SeveralHeadsAndPatience) {
  FineTuneOptions options = Options();
  options.tasks = {shop_.Task(kClassification), shop_.Task(kRecommendation),
                   shop_.Task(kRelevance)};
  options.tasks[2].weight = 0.5;
  options.threads = 3;
  options.epochs = 6;
  options.patience = 1;
  options.learning_rate = 0.02;  // so that an epoch is without gain
  Unbroken(options);
  ASSERT_LT(unbroken_.epochs, 6);
  ASSERT_LT(unbroken_.best_epoch, unbroken_.epochs);
  // In the epoch without gain: the best weights come from the checkpoint.
  const int64_t epoch = unbroken_.steps / unbroken_.epochs;
  options = WithCheckpoints(options);
  Cutter cutter;
  cutter.crash_after = static_cast<int>(unbroken_.steps - epoch / 2);
  EXPECT_GT(CutAndResume(options, &cutter), epoch * unbroken_.best_epoch);
}

TEST_F(ResumeTest, SgdAndFrozenEncoder) {
  FineTuneOptions options = Options();
  options.sgd = true;
  options.freeze = 1;
  Unbroken(options);
  Cutter cutter;
  cutter.stop_after = 13;
  EXPECT_EQ(CutAndResume(WithCheckpoints(options), &cutter), 13);
}

TEST_F(ResumeTest, Bf16) {
  FineTuneOptions options = Options();
  options.bf16 = true;
  Unbroken(options);
  Cutter cutter;
  cutter.stop_after = 13;
  EXPECT_EQ(CutAndResume(WithCheckpoints(options), &cutter), 13);
}

TEST_F(ResumeTest, OnAnotherDevice) {
  FineTuneOptions options = Options();
  options.tasks = {shop_.Task(kClassification), shop_.Task(kRecommendation)};
  options.device = testing::OtherDevice();
  options.dropout = 0;
  options.bf16 = false;
  Unbroken(options);
  Cutter cutter;
  cutter.stop_after = unbroken_.steps / 2 + 1;
  EXPECT_EQ(CutAndResume(WithCheckpoints(options), &cutter), cutter.stop_after);
}

TEST_F(ResumeTest, OtherOptionsOrDataBeginAgain) {
  const FineTuneOptions options = WithCheckpoints(Options());
  Cutter cutter;
  cutter.stop_after = 5;
  ASSERT_FALSE(FineTune(options, &cutter, cutter.stop).ok());
  FineTuneOptions other = options;
  for (int i = 0; i < 5; ++i) {
    other = options;
    if (i == 0) other.seed = 2;
    if (i == 1) other.learning_rate *= 1 + 1e-9;
    if (i == 2) other.threads = 3;
    if (i == 3) other.tasks[0].weight = 2;
    if (i == 4) {
      other.tasks[0].data = shop_.File("other.jsonl");
      ASSERT_TRUE(WriteFile(other.tasks[0].data,
                            *ReadFile(shop_.texts()) +
                                "{\"text\":\"red sofa\",\"label\":\"sofa\"}\n")
                      .ok());
    }
    // A copy, for the run puts checkpoints of its own in their place.
    other.checkpoint_folder = shop_.File(absl::StrCat("copy", i));
    std::filesystem::copy(folder(), other.checkpoint_folder,
                          std::filesystem::copy_options::recursive);
    Cutter listener;
    listener.crash_after = 1;
    EXPECT_FALSE(FineTune(other, &listener, listener.stop).ok());
    EXPECT_EQ(listener.resumed_step, 0) << i;
    EXPECT_THAT(listener.warnings, ElementsAre(HasSubstr("of another run")));
  }
  // The one that it is of still uses it.
  Cutter same;
  EXPECT_TRUE(FineTune(options, &same, same.stop).ok());
  EXPECT_EQ(same.resumed_step, 5);
}

TEST_F(ResumeTest, ADamagedCheckpointBeginsAgainWithTheSameResult) {
  Unbroken(Options());
  const FineTuneOptions options = WithCheckpoints(Options());
  Cutter cutter;
  cutter.stop_after = 5;
  ASSERT_FALSE(FineTune(options, &cutter, cutter.stop).ok());
  const auto names = ListFolder(folder());
  ASSERT_EQ(names->size(), 1);
  const std::string file =
      folder() + "/" + names->front() + "/moments1.safetensors";
  std::string bytes = *ReadFile(file);
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_TRUE(WriteFile(file, bytes).ok());
  Cutter again;
  const auto report = FineTune(options, &again, again.stop);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->resumed_step, 0);
  EXPECT_THAT(report->warnings, ElementsAre(HasSubstr("moments1.safetensors")));
  ExpectSameAsUnbroken(*report);
}

TEST_F(ResumeTest, CheckpointsThatCannotBeWrittenDoNotEndTheRun) {
  Unbroken(Options());
  const FineTuneOptions options = WithCheckpoints(Options());
  // A file takes the folder's place once training has begun.
  class Breaker : public FineTuneListener {
   public:
    explicit Breaker(std::string folder) : folder_(std::move(folder)) {}
    void OnStart(const FineTuneReport&) override {
      std::filesystem::remove_all(folder_);
      EXPECT_TRUE(WriteFile(folder_, "in the way").ok());
    }

   private:
    const std::string folder_;
  } breaker(folder());
  const std::atomic<bool> stop{false};
  const auto report = FineTune(options, &breaker, stop);
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectSameAsUnbroken(*report);
  // At the start it is an error.
  EXPECT_FALSE(FineTune(options, &breaker, stop).ok());
}

}  // namespace
}  // namespace vitrine
