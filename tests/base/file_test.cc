#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

TEST(File, WritesAndReadsBackAnyBytes) {
  const TempFolder folder;
  const std::string data("a\0b\xff\n", 5);
  ASSERT_TRUE(WriteFile(folder.File("x"), data).ok());
  EXPECT_EQ(ReadFile(folder.File("x")).value(), data);
}

TEST(File, NamesThePathOfAFileThatIsNotThere) {
  const TempFolder folder;
  const auto read = ReadFile(folder.File("none"));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(read.status()), HasSubstr(folder.File("none")));
  EXPECT_EQ(MappedFile::Open(folder.File("none")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Sha256OfFile(folder.File("none")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ListFolder(folder.File("none")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(File, RefusesAFileLargerThanAllowed) {
  const TempFolder folder;
  ASSERT_TRUE(WriteFile(folder.File("x"), std::string(11, 'x')).ok());
  EXPECT_EQ(ReadFile(folder.File("x"), 11)->size(), 11u);
  const auto read = ReadFile(folder.File("x"), 10);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(read.status()), HasSubstr("11 bytes > 10"));
  // A device has no size to look at first; the bound holds all the same.
  EXPECT_EQ(ReadFile("/dev/zero", 1 << 20).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(File, ReplacesAtomicallyAndLeavesNoTemporaryBehind) {
  const TempFolder folder;
  ASSERT_TRUE(WriteFileAtomically(folder.File("x"), "old").ok());
  ASSERT_TRUE(WriteFileAtomically(folder.File("x"), "new").ok());
  EXPECT_EQ(ReadFile(folder.File("x")).value(), "new");
  EXPECT_THAT(ListFolder(folder.path()).value(), ElementsAre("x"));
}

TEST(File, KeepsTheOldFileWhenTheDiskIsFull) {
  const TempFolder folder;
  ASSERT_TRUE(WriteFileAtomically(folder.File("x"), "old").ok());
  // A limit on file size stands in for a full disk: the write fails halfway.
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
    const auto status =
        WriteFileAtomically(folder.File("x"), std::string(1 << 20, 'n'));
    _exit(status.ok() ? 1 : 0);
  }
  int result = 0;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_EQ(WEXITSTATUS(result), 0) << "the write should have failed";
  EXPECT_EQ(ReadFile(folder.File("x")).value(), "old");
  EXPECT_THAT(ListFolder(folder.path()).value(), ElementsAre("x"));
}

TEST(File, AReaderNeverSeesAHalfWrittenFileWhileWritersAreKilled) {
  const TempFolder folder;
  const std::string a(1 << 18, 'a'), b(1 << 18, 'b');
  ASSERT_TRUE(WriteFileAtomically(folder.File("x"), a).ok());
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      while (true) {
        (void)WriteFileAtomically(folder.File("x"), b);
        (void)WriteFileAtomically(folder.File("x"), a);
      }
    }
    usleep(500 + 777 * round % 5000);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const std::string seen = ReadFile(folder.File("x")).value();
    EXPECT_TRUE(seen == a || seen == b) << "round " << round;
  }
}

TEST(File, Sha256IsThePublishedOne) {
  // FIPS 180-2, appendix B.
  EXPECT_EQ(Sha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const TempFolder folder;
  const std::string million(1000000, 'a');
  ASSERT_TRUE(WriteFile(folder.File("x"), million).ok());
  EXPECT_EQ(Sha256OfFile(folder.File("x")).value(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(File, MapsFilesEmptyOnesToo) {
  const TempFolder folder;
  ASSERT_TRUE(WriteFile(folder.File("x"), "mapped").ok());
  ASSERT_TRUE(WriteFile(folder.File("empty"), "").ok());
  EXPECT_EQ((*MappedFile::Open(folder.File("x")))->data(), "mapped");
  EXPECT_EQ((*MappedFile::Open(folder.File("empty")))->data(), "");
  EXPECT_EQ(MappedFile::Open(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(File, JoinsPaths) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
}

}  // namespace
}  // namespace vitrine
