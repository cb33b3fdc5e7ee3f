#include "store/model_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utime.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ModelRegistryTest : public ::testing::Test {
 protected:
  ModelRegistryTest() {
    char path[] = "/tmp/vitrine-registry-XXXXXX";
    root_ = mkdtemp(path);
  }
  ~ModelRegistryTest() override { std::filesystem::remove_all(root_); }

  ModelRegistry registry() const { return ModelRegistry(root_); }

  // Stages one file and publishes it.
  absl::StatusOr<int64_t> PublishOne(const std::string& model,
                                     const std::string& content = "weights") {
    const auto staging = registry().NewStagingFolder(model);
    if (!staging.ok()) return staging.status();
    if (const absl::Status written =
            WriteFile(JoinPath(*staging, "model.safetensors"), content);
        !written.ok()) {
      return written;
    }
    internal::Manifest manifest;
    manifest.set_seed(7);
    return registry().Publish(model, *staging, manifest);
  }

  std::string root_;
};

TEST_F(ModelRegistryTest, NumbersVersionsFromOne) {
  EXPECT_EQ(*PublishOne("shop"), 1);
  EXPECT_EQ(*PublishOne("shop"), 2);
  EXPECT_EQ(*PublishOne("other"), 1);
  EXPECT_THAT(*registry().ListVersions("shop"), ElementsAre(1, 2));
  EXPECT_THAT(*registry().ListModels(), ElementsAre("other", "shop"));
}

TEST_F(ModelRegistryTest, ManifestHoldsNumberAndDigests) {
  ASSERT_EQ(*PublishOne("shop", "abc"), 1);
  const auto manifest = registry().ReadManifest("shop", 1);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->model(), "shop");
  EXPECT_EQ(manifest->version(), 1);
  EXPECT_EQ(manifest->seed(), 7);
  EXPECT_GT(manifest->created().seconds(), 1600000000);
  ASSERT_EQ(manifest->files_size(), 1);
  EXPECT_EQ(manifest->files(0).name(), "model.safetensors");
  EXPECT_EQ(manifest->files(0).size_bytes(), 3);
  EXPECT_EQ(manifest->files(0).sha256(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(ModelRegistryTest, PublishedFolderIsReadableByOtherUsers) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  struct stat info;
  ASSERT_EQ(stat(registry().VersionFolder("shop", 1).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0755);
}

TEST_F(ModelRegistryTest, StagingFoldersAreNeverListed) {
  ASSERT_TRUE(registry().NewStagingFolder("shop").ok());
  EXPECT_THAT(*registry().ListVersions("shop"), IsEmpty());
  EXPECT_THAT(*registry().ListModels(), IsEmpty());
}

TEST_F(ModelRegistryTest, IgnoresWhatIsNoVersion) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  for (const char* name : {"02", "0", "-3", "4x", "99999999999999999999"}) {
    const std::string folder = JoinPath(root_, absl::StrCat("shop/", name));
    ASSERT_TRUE(MakeFolders(folder).ok());
    ASSERT_TRUE(WriteFile(JoinPath(folder, "manifest.textproto"), "").ok());
  }
  // A folder without a manifest: a copy that is still running.
  ASSERT_TRUE(MakeFolders(JoinPath(root_, "shop/7")).ok());
  ASSERT_TRUE(WriteFile(JoinPath(root_, "README"), "x").ok());
  EXPECT_THAT(*registry().ListVersions("shop"), ElementsAre(1));
  EXPECT_THAT(*registry().ListModels(), ElementsAre("shop"));
  // ... whose number is not taken over.
  EXPECT_EQ(*PublishOne("shop"), 8);
}

TEST_F(ModelRegistryTest, UnknownModelIsNotFound) {
  const auto versions = registry().ListVersions("nothing");
  EXPECT_EQ(versions.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(versions.status().message()), HasSubstr("nothing"));
  EXPECT_EQ(registry().ReadManifest("nothing", 1).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ModelRegistryTest, MissingRootIsNotFound) {
  EXPECT_EQ(ModelRegistry(root_ + "/absent").ListModels().status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ModelRegistryTest, RefusesNamesThatCouldLeaveTheFolder) {
  for (const std::string& name :
       {std::string(""), std::string(".."), std::string("."), std::string("/"),
        std::string("../shop"), std::string("a/b"), std::string("Shop"),
        std::string(".hidden"), std::string("-x"), std::string("a b"),
        std::string("a\0b", 3), std::string("\xc3\xa9"),
        std::string(64, 'a')}) {
    EXPECT_EQ(CheckModelName(name).code(), absl::StatusCode::kInvalidArgument)
        << name;
    EXPECT_EQ(registry().ListVersions(name).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(registry().NewStagingFolder(name).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(registry().ReadCurrent(name).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(registry().WriteCurrent(name, 1).code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(registry().RemoveStaleStaging(name).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(CheckModelName("a").ok());
  EXPECT_TRUE(CheckModelName("shop-2.en_us").ok());
  EXPECT_TRUE(CheckModelName(std::string(63, 'a')).ok());
}

TEST_F(ModelRegistryTest, PublishesOnlyItsOwnStagingFolders) {
  const std::string elsewhere = JoinPath(root_, "elsewhere");
  ASSERT_TRUE(MakeFolders(elsewhere).ok());
  ASSERT_TRUE(WriteFile(JoinPath(elsewhere, "f"), "x").ok());
  const std::string inner = JoinPath(root_, "shop/.staging-x/inner");
  ASSERT_TRUE(MakeFolders(inner).ok());
  const std::string other = *registry().NewStagingFolder("other");
  for (const std::string& folder : {elsewhere, inner, other}) {
    EXPECT_EQ(registry().Publish("shop", folder, {}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << folder;
  }
}

TEST_F(ModelRegistryTest, RefusesEmptyFoldersSubfoldersAndLinks) {
  const std::string staging = *registry().NewStagingFolder("shop");
  EXPECT_THAT(
      std::string(registry().Publish("shop", staging, {}).status().message()),
      HasSubstr("no files"));
  ASSERT_TRUE(WriteFile(JoinPath(staging, "config.json"), "{}").ok());
  ASSERT_EQ(symlink("/etc/passwd", JoinPath(staging, "vocab.txt").c_str()), 0);
  const absl::Status link = registry().Publish("shop", staging, {}).status();
  EXPECT_EQ(link.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(link.message()), HasSubstr("vocab.txt"));
  ASSERT_EQ(unlink(JoinPath(staging, "vocab.txt").c_str()), 0);
  ASSERT_TRUE(MakeFolders(JoinPath(staging, "folder")).ok());
  EXPECT_EQ(registry().Publish("shop", staging, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(JoinPath(staging, "folder"));
  EXPECT_EQ(*registry().Publish("shop", staging, {}), 1);
}

TEST_F(ModelRegistryTest, CurrentIsZeroUntilWritten) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  EXPECT_EQ(*registry().ReadCurrent("shop"), 0);
  ASSERT_TRUE(registry().WriteCurrent("shop", 1).ok());
  EXPECT_EQ(*registry().ReadCurrent("shop"), 1);
  ASSERT_EQ(*PublishOne("shop"), 2);
  ASSERT_TRUE(registry().WriteCurrent("shop", 2).ok());
  EXPECT_EQ(*registry().ReadCurrent("shop"), 2);
}

TEST_F(ModelRegistryTest, CurrentNamesOnlyVersionsThatExist) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  EXPECT_EQ(registry().WriteCurrent("shop", 9).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(*registry().ReadCurrent("shop"), 0);
}

TEST_F(ModelRegistryTest, CurrentThatHoldsNoNumberIsDataLoss) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  for (const std::string& text :
       {std::string(""), std::string("x"), std::string("-1"), std::string("0"),
        std::string("1 2"), std::string(1000, '1')}) {
    ASSERT_TRUE(WriteFile(JoinPath(root_, "shop/CURRENT"), text).ok());
    EXPECT_EQ(registry().ReadCurrent("shop").status().code(),
              absl::StatusCode::kDataLoss)
        << text;
  }
}

TEST_F(ModelRegistryTest, NumbersOfRemovedVersionsInServiceAreNotReused) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  ASSERT_EQ(*PublishOne("shop"), 2);
  ASSERT_TRUE(registry().WriteCurrent("shop", 2).ok());
  std::filesystem::remove_all(registry().VersionFolder("shop", 2));
  EXPECT_EQ(*PublishOne("shop"), 3);
}

TEST_F(ModelRegistryTest, PublishersAtOnceGetNumbersOfTheirOwn) {
  constexpr int kThreads = 6;
  constexpr int kEach = 5;
  std::vector<std::vector<int64_t>> got(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t, &got] {
      for (int i = 0; i < kEach; ++i) {
        const auto version =
            PublishOne("shop", absl::StrCat("thread ", t, " round ", i));
        got[t].push_back(version.ok() ? *version : -1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<int64_t> all;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kEach; ++i) {
      const int64_t version = got[t][i];
      all.push_back(version);
      // Each folder holds what its publisher wrote, and its own number.
      EXPECT_EQ(*ReadFile(registry().VersionFolder("shop", version) +
                          "/model.safetensors"),
                absl::StrCat("thread ", t, " round ", i));
      EXPECT_EQ(registry().ReadManifest("shop", version)->version(), version);
    }
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, *registry().ListVersions("shop"));
  EXPECT_EQ(all.size(), kThreads * kEach);
  EXPECT_EQ(all.back(), kThreads * kEach);
}

TEST_F(ModelRegistryTest, KillingAPublisherAnywhereLeavesWholeVersionsOnly) {
  const std::string content(1 << 18, 'w');
  ASSERT_EQ(*PublishOne("shop", content), 1);
  for (int round = 0; round < 25; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      while (true) {
        if (!PublishOne("shop", content).ok()) _exit(1);
      }
    }
    usleep(500 + round * 400);
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the publisher failed by itself";
  }
  const auto versions = registry().ListVersions("shop");
  ASSERT_TRUE(versions.ok());
  for (const int64_t version : *versions) {
    const auto manifest = registry().ReadManifest("shop", version);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    EXPECT_EQ(manifest->version(), version);
    ASSERT_EQ(manifest->files_size(), 1);
    EXPECT_EQ(*Sha256OfFile(registry().VersionFolder("shop", version) +
                            "/model.safetensors"),
              manifest->files(0).sha256());
  }
  // The leftovers do not stop the next one.
  EXPECT_EQ(*PublishOne("shop"), versions->back() + 1);
}

TEST_F(ModelRegistryTest, KillingAWriterOfCurrentLeavesOldOrNew) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  ASSERT_EQ(*PublishOne("shop"), 2);
  ASSERT_TRUE(registry().WriteCurrent("shop", 1).ok());
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t version = 1;; version = 3 - version) {
        if (!registry().WriteCurrent("shop", version).ok()) _exit(1);
      }
    }
    for (int i = 0; i < 50; ++i) {
      const auto current = registry().ReadCurrent("shop");
      ASSERT_TRUE(current.ok()) << current.status();
      EXPECT_THAT(*current, ::testing::AnyOf(1, 2));
    }
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
  }
  EXPECT_THAT(*registry().ReadCurrent("shop"), ::testing::AnyOf(1, 2));
}

TEST_F(ModelRegistryTest, RemovesOnlyStagingFoldersUntouchedForADay) {
  const std::string stale = *registry().NewStagingFolder("shop");
  const std::string fresh = *registry().NewStagingFolder("shop");
  ASSERT_EQ(*PublishOne("shop"), 1);
  ASSERT_TRUE(WriteFile(JoinPath(stale, "model.safetensors"), "x").ok());
  const std::string leftover = JoinPath(root_, "shop/CURRENT.tmp.1");
  ASSERT_TRUE(WriteFile(leftover, "1").ok());
  utimbuf old;
  old.actime = old.modtime = std::time(nullptr) - 25 * 3600;
  for (const std::string& path :
       {stale, leftover, registry().VersionFolder("shop", 1)}) {
    ASSERT_EQ(utime(path.c_str(), &old), 0);
  }
  ASSERT_TRUE(registry().RemoveStaleStaging("shop").ok());
  EXPECT_FALSE(PathExists(stale));
  EXPECT_FALSE(PathExists(leftover));
  EXPECT_TRUE(PathExists(fresh));
  EXPECT_THAT(*registry().ListVersions("shop"), ElementsAre(1));
}

// A full disk and a file-size limit fail alike, at write.
TEST_F(ModelRegistryTest, FailedWriteIsAnErrorAndPublishesNothing) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {64, 64};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    const auto staging = registry().NewStagingFolder("shop");
    if (!staging.ok() ||
        !WriteFile(JoinPath(*staging, "config.json"), "{}").ok()) {
      _exit(3);
    }
    internal::Manifest manifest;
    manifest.set_description(std::string(1000, 'x'));
    const auto version = registry().Publish("shop", *staging, manifest);
    if (version.ok()) _exit(4);
    const std::string message(version.status().message());
    _exit(message.find("manifest.textproto") == std::string::npos ? 5 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_THAT(*registry().ListVersions("shop"), IsEmpty());
}

TEST_F(ModelRegistryTest, UnwritableFolderIsAnErrorThatNamesIt) {
  // A file where the folder should be refuses even the superuser.
  ASSERT_TRUE(WriteFile(JoinPath(root_, "shop"), "").ok());
  const auto staging = registry().NewStagingFolder("shop");
  ASSERT_FALSE(staging.ok());
  EXPECT_THAT(std::string(staging.status().message()),
              HasSubstr(JoinPath(root_, "shop")));
  if (geteuid() == 0) return;
  ASSERT_EQ(chmod(root_.c_str(), 0500), 0);
  const auto other = registry().NewStagingFolder("other");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(root_.c_str(), 0700), 0);
}

TEST_F(ModelRegistryTest, BrokenManifestNamesItsFile) {
  ASSERT_EQ(*PublishOne("shop"), 1);
  const std::string path =
      registry().VersionFolder("shop", 1) + "/manifest.textproto";
  ASSERT_TRUE(WriteFile(path, "model: \"shop\"\n").ok());
  const auto manifest = registry().ReadManifest("shop", 1);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(manifest.status().message()), HasSubstr(path));
}

}  // namespace
}  // namespace vitrine
