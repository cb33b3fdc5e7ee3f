#include "trainer/training_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/textproto.h"
#include "store/database.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

// The version in service was made then.
const absl::Time kCreated = absl::FromUnixSeconds(1700000000);

class TrainingPolicyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto database = Database::Open({.url = "sqlite:" + folder_.File("db")});
    ASSERT_TRUE(database.ok()) << database.status();
    database_ = *std::move(database);
    labels_ = std::make_unique<LabelStore>(*database_);
    jobs_ = std::make_unique<JobStore>(*database_);
    policy_.set_model("shop");
    policy_.mutable_recipe()->set_epochs(7);
    PutVersion(3, /*label_watermark=*/0);
    ASSERT_TRUE(registry_.WriteCurrent("shop", 3).ok());
  }

  void PutVersion(int64_t version, int64_t label_watermark) {
    internal::Manifest manifest;
    manifest.set_model("shop");
    manifest.set_version(version);
    manifest.set_label_watermark(label_watermark);
    manifest.mutable_created()->set_seconds(absl::ToUnixSeconds(kCreated));
    const std::string folder = registry_.VersionFolder("shop", version);
    ASSERT_TRUE(MakeFolders(folder).ok());
    ASSERT_TRUE(WriteFile(JoinPath(folder, "manifest.textproto"),
                          PrintSealedTextProto(manifest))
                    .ok());
  }
  void AddLabels(int count, const std::string& model = "shop") {
    for (int i = 0; i < count; ++i) {
      v1::Feedback feedback;
      feedback.set_feedback_id(absl::StrCat("f", ++added_));
      feedback.mutable_text_label()->set_text("hello");
      const v1::Feedback* const one = &feedback;
      ASSERT_TRUE(labels_->Add(model, {&one, 1}, kCreated).ok());
    }
  }
  int64_t Ask(absl::Time now = kCreated) {
    const auto job = QueueByPolicy(policy_, registry_, *labels_, *jobs_, now);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(-1);
  }
  // Ends the oldest open job.
  void EndJob(v1::TrainingJobState state) {
    const auto job = jobs_->Claim({.worker = "host:1"});
    ASSERT_TRUE(job.ok() && job->has_value()) << job.status();
    v1::TrainingJob ended = **job;
    ended.set_state(state);
    ASSERT_TRUE(jobs_->Finish(ended, "host:1").ok());
  }

  TempFolder folder_;
  const ModelRegistry registry_{folder_.File("registry")};
  std::unique_ptr<Database> database_;
  std::unique_ptr<LabelStore> labels_;
  std::unique_ptr<JobStore> jobs_;
  internal::TrainingPolicy policy_;
  int added_ = 0;
};

TEST_F(TrainingPolicyTest, QueuesAJobOnceThereAreEnoughLabels) {
  policy_.set_min_new_labels(3);
  EXPECT_EQ(Ask(), 0);
  AddLabels(2);
  EXPECT_EQ(Ask(), 0);
  AddLabels(5, "another-model");
  EXPECT_EQ(Ask(), 0);
  AddLabels(1);
  const int64_t id = Ask();
  ASSERT_GT(id, 0);
  const auto job = jobs_->Get(id);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::TRAINING_JOB_STATE_QUEUED);
  EXPECT_EQ(job->model(), "shop");
  EXPECT_EQ(job->base_version(), 3);
  EXPECT_EQ(job->label_watermark(), *labels_->Watermark("shop"));
  EXPECT_EQ(job->recipe().epochs(), 7);
  EXPECT_EQ(job->created_by(), "policy");
}

TEST_F(TrainingPolicyTest, LabelsOfTheVersionInServiceAreNotNew) {
  policy_.set_min_new_labels(3);
  AddLabels(4);
  PutVersion(4, /*label_watermark=*/2);
  ASSERT_TRUE(registry_.WriteCurrent("shop", 4).ok());
  EXPECT_EQ(Ask(), 0);
  AddLabels(1);
  EXPECT_GT(Ask(), 0);
}

TEST_F(TrainingPolicyTest, WaitsForTheJobThatIsOpen) {
  policy_.set_min_new_labels(3);
  AddLabels(3);
  ASSERT_GT(Ask(), 0);
  AddLabels(3);
  EXPECT_EQ(Ask(), 0);
  ASSERT_TRUE(jobs_->Claim({.worker = "host:1"}).ok());
  EXPECT_EQ(Ask(), 0);
  EXPECT_EQ(jobs_->List("shop", 0, 10)->size(), 1);
}

TEST_F(TrainingPolicyTest, AJobOfAnotherModelIsNoHindrance) {
  policy_.set_min_new_labels(3);
  v1::TrainingJob other;
  other.set_model("another-model");
  ASSERT_TRUE(jobs_->Create(other).ok());
  AddLabels(3);
  EXPECT_GT(Ask(), 0);
}

TEST_F(TrainingPolicyTest, LabelsThatAJobHasSeenAreNotNewHoweverItEnded) {
  policy_.set_min_new_labels(3);
  for (const v1::TrainingJobState state :
       {v1::TRAINING_JOB_STATE_REJECTED, v1::TRAINING_JOB_STATE_FAILED,
        v1::TRAINING_JOB_STATE_CANCELLED, v1::TRAINING_JOB_STATE_SUCCEEDED}) {
    AddLabels(3);
    ASSERT_GT(Ask(), 0) << StateName(state);
    AddLabels(2);  // while it ran
    EndJob(state);
    EXPECT_EQ(Ask(), 0) << StateName(state);
    AddLabels(1);
    EXPECT_GT(Ask(), 0) << StateName(state);
    EndJob(state);
  }
}

TEST_F(TrainingPolicyTest, AfterAnIntervalFewerLabelsDo) {
  policy_.set_min_new_labels(100);
  policy_.mutable_max_interval()->set_seconds(60);
  const absl::Time later = kCreated + absl::Minutes(10);
  EXPECT_EQ(Ask(later), 0);  // no label at all
  AddLabels(1);
  EXPECT_EQ(Ask(kCreated + absl::Seconds(59)), 0);
  EXPECT_GT(Ask(kCreated + absl::Seconds(60)), 0);
}

TEST_F(TrainingPolicyTest, TheIntervalBeginsWithTheLastJob) {
  policy_.mutable_max_interval()->set_seconds(3600);
  AddLabels(1);
  ASSERT_GT(Ask(kCreated + absl::Hours(2)), 0);
  EndJob(v1::TRAINING_JOB_STATE_REJECTED);
  const absl::Time now = absl::Now();       // when the job was made
  EXPECT_EQ(Ask(now + absl::Hours(2)), 0);  // nothing new since
  AddLabels(1);
  EXPECT_EQ(Ask(now + absl::Minutes(50)), 0);
  EXPECT_GT(Ask(now + absl::Minutes(70)), 0);
}

TEST_F(TrainingPolicyTest, WaitsForAModelThatServes) {
  policy_.set_min_new_labels(1);
  AddLabels(1);
  std::filesystem::remove(folder_.File("registry/shop/CURRENT"));
  EXPECT_EQ(Ask(), 0);
  policy_.set_model("unknown");
  EXPECT_EQ(Ask(), 0);
  EXPECT_TRUE(jobs_->List("", 0, 10)->empty());
}

TEST_F(TrainingPolicyTest, DamageIsAnError) {
  policy_.set_min_new_labels(1);
  ASSERT_TRUE(WriteFile(folder_.File("registry/shop/CURRENT"), "what?").ok());
  EXPECT_TRUE(absl::IsDataLoss(
      QueueByPolicy(policy_, registry_, *labels_, *jobs_, kCreated).status()));
}

}  // namespace
}  // namespace vitrine
