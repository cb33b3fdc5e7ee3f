#include "trainer/training_state.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/other_device.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TrainingStateTest : public ::testing::Test {
 protected:
  std::vector<StateFile> Files(bool best_changed = true) {
    return {{"parameters", {"a"}, {TensorOf(&a_)}},
            {"best", {"a"}, {TensorOf(&best_)}, best_changed}};
  }
  static at::Tensor TensorOf(std::vector<float>* values) {
    return at::from_blob(values->data(),
                         {static_cast<int64_t>(values->size())});
  }
  internal::TrainingState AtStep(int64_t step) const {
    internal::TrainingState state;
    state.set_step(step);
    state.set_smoothed_loss(0.1 + 0.2);
    return state;
  }
  std::string Path(int number, const std::string& name) const {
    return absl::StrCat(folder_.path(), "/checkpoint-", number, "/", name);
  }
  // The error of a load, and that it changed nothing.
  std::string LoadError(const std::string& fingerprint = "run") {
    a_ = {7, 7};
    best_ = {8};
    internal::TrainingState state;
    const absl::Status status =
        TrainingStateStore(folder_.path(), fingerprint).Load(&state, Files());
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(a_, ElementsAre(7, 7));
    EXPECT_THAT(best_, ElementsAre(8));
    EXPECT_EQ(state.step(), 0);
    return status.ToString();
  }

  TempFolder folder_;
  std::vector<float> a_ = {1, 2}, best_ = {3};
};

TEST_F(TrainingStateTest, ReadsBackWhatItWroteToTheBit) {
  a_ = {0.1f, -1e-42f};
  ASSERT_TRUE(
      TrainingStateStore(folder_.path(), "run").Save(AtStep(5), Files()).ok());
  a_ = {0, 0};
  best_ = {0};
  internal::TrainingState state;
  const absl::Status loaded =
      TrainingStateStore(folder_.path(), "run").Load(&state, Files());
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_THAT(a_, ElementsAre(0.1f, -1e-42f));
  EXPECT_THAT(best_, ElementsAre(3));
  EXPECT_EQ(state.step(), 5);
  EXPECT_EQ(state.smoothed_loss(), 0.1 + 0.2);
}

TEST_F(TrainingStateTest, KeepsTheNewestAloneAndLinksWhatDidNotChange) {
  TrainingStateStore store(folder_.path(), "run");
  ASSERT_TRUE(store.Save(AtStep(1), Files()).ok());
  best_ = {99};  // is not written, for it is said not to have changed
  a_ = {5, 6};
  ASSERT_TRUE(MakeFolders(folder_.File(".checkpoint-cutoff")).ok());
  ASSERT_TRUE(store.Save(AtStep(2), Files(/*best_changed=*/false)).ok());
  EXPECT_THAT(*ListFolder(folder_.path()), ElementsAre("checkpoint-2"));
  internal::TrainingState state;
  ASSERT_TRUE(
      TrainingStateStore(folder_.path(), "run").Load(&state, Files()).ok());
  EXPECT_EQ(state.step(), 2);
  EXPECT_THAT(a_, ElementsAre(5, 6));
  EXPECT_THAT(best_, ElementsAre(3));
}

TEST_F(TrainingStateTest, AFileThatTheCheckpointLacksIsLeftAsItIs) {
  ASSERT_TRUE(TrainingStateStore(folder_.path(), "run")
                  .Save(AtStep(1), {Files()[0]})
                  .ok());
  best_ = {42};
  internal::TrainingState state;
  ASSERT_TRUE(
      TrainingStateStore(folder_.path(), "run").Load(&state, Files()).ok());
  EXPECT_THAT(best_, ElementsAre(42));
}

TEST_F(TrainingStateTest, RefusesWhatDoesNotFitAndSaysWhy) {
  EXPECT_THAT(LoadError(), HasSubstr("NOT_FOUND"));
  TrainingStateStore store(folder_.path(), "run");
  ASSERT_TRUE(store.Save(AtStep(1), Files()).ok());
  EXPECT_THAT(LoadError("another"), HasSubstr("of another run"));

  const std::string state = *ReadFile(Path(1, "state.textproto"));
  std::string changed = state;
  changed.replace(changed.find("step: 1"), 7, "step: 2");
  ASSERT_TRUE(WriteFile(Path(1, "state.textproto"), changed).ok());
  EXPECT_THAT(LoadError(), HasSubstr("SHA-256"));
  ASSERT_TRUE(
      WriteFile(Path(1, "state.textproto"), state.substr(0, state.size() / 2))
          .ok());
  EXPECT_THAT(LoadError(), HasSubstr("state.textproto"));
  ASSERT_TRUE(WriteFile(Path(1, "state.textproto"), state).ok());

  const std::string tensors = *ReadFile(Path(1, "best.safetensors"));
  ASSERT_TRUE(WriteFile(Path(1, "best.safetensors"),
                        tensors.substr(0, tensors.size() - 1))
                  .ok());
  EXPECT_THAT(LoadError(), HasSubstr("best.safetensors"));
  std::filesystem::remove(Path(1, "best.safetensors"));
  EXPECT_THAT(LoadError(), HasSubstr("DATA_LOSS"));
  ASSERT_TRUE(WriteFile(Path(1, "best.safetensors"), tensors).ok());

  a_ = {1, 2, 3};
  internal::TrainingState out;
  EXPECT_THAT(
      TrainingStateStore(folder_.path(), "run").Load(&out, Files()).ToString(),
      HasSubstr("no tensor a of 3 floats"));
}

TEST_F(TrainingStateTest, TheOneBeforeIsUsedWhereTheNewestIsDamaged) {
  TrainingStateStore store(folder_.path(), "run");
  ASSERT_TRUE(store.Save(AtStep(1), Files()).ok());
  // As after a crash between the new one's rename and the old one's removal.
  std::filesystem::copy(folder_.File("checkpoint-1"),
                        folder_.File("checkpoint-10"));
  ASSERT_TRUE(WriteFile(Path(10, "state.textproto"), "step: 3\n").ok());
  internal::TrainingState state;
  ASSERT_TRUE(store.Load(&state, Files()).ok());
  EXPECT_EQ(state.step(), 1);
  ASSERT_TRUE(store.Save(AtStep(2), Files()).ok());
  EXPECT_THAT(*ListFolder(folder_.path()), ElementsAre("checkpoint-11"));
}

TEST_F(TrainingStateTest, KeepsTensorsOfAnotherDevice) {
  const at::Tensor there =
      TensorOf(&a_).to(ToTorchDevice(testing::OtherDevice()));
  const std::vector<StateFile> files = {{"parameters", {"a"}, {there}}};
  TrainingStateStore store(folder_.path(), "run");
  ASSERT_TRUE(store.Save(AtStep(1), files).ok());
  there.detach().zero_();
  internal::TrainingState state;
  ASSERT_TRUE(store.Load(&state, files).ok());
  EXPECT_TRUE(at::equal(there.cpu(), TensorOf(&a_)));
}

TEST_F(TrainingStateTest, AFailedSaveLeavesTheOldOne) {
  TrainingStateStore store(folder_.path(), "run");
  ASSERT_TRUE(store.Save(AtStep(1), Files()).ok());
  std::vector<StateFile> files = Files();
  files[1].name = "no/such/folder";
  EXPECT_FALSE(store.Save(AtStep(2), files).ok());
  EXPECT_THAT(*ListFolder(folder_.path()), ElementsAre("checkpoint-1"));
}

TEST_F(TrainingStateTest, RemovesOnlyItsOwn) {
  const std::string folder = folder_.File("states");
  TrainingStateStore store(folder, "run");
  ASSERT_TRUE(store.Save(AtStep(1), Files()).ok());
  ASSERT_TRUE(WriteFile(folder + "/checkpoint-notes", "mine").ok());
  ASSERT_TRUE(RemoveTrainingStates(folder).ok());
  EXPECT_THAT(*ListFolder(folder), ElementsAre("checkpoint-notes"));
  std::filesystem::remove(folder + "/checkpoint-notes");
  ASSERT_TRUE(RemoveTrainingStates(folder).ok());
  EXPECT_FALSE(PathExists(folder));
  EXPECT_TRUE(RemoveTrainingStates(folder).ok());
}

}  // namespace
}  // namespace vitrine
