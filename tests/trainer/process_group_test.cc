#include "trainer/process_group.h"

#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "model/safetensors.h"
#include "tests/testing/other_device.h"
#include "tests/testing/tiny_model.h"
#include "tests/trainer/small_shop.h"

namespace vitrine {
namespace {

using ::testing::HasSubstr;

// A port that was free a moment ago.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(fd);
  return ntohs(address.sin_port);
}

void SetEnvironment(const char* rank, const char* size, const char* address,
                    const char* port) {
  const std::pair<const char*, const char*> variables[] = {
      {"RANK", rank},
      {"WORLD_SIZE", size},
      {"MASTER_ADDR", address},
      {"MASTER_PORT", port}};
  for (const auto& [name, value] : variables) {
    if (value == nullptr) {
      unsetenv(name);
    } else {
      setenv(name, value, 1);
    }
  }
}

TEST(ProcessesOfEnvironmentTest, AreAllFourOrNone) {
  const auto error = [] {
    return std::string(ProcessesOfEnvironment().status().message());
  };
  SetEnvironment(nullptr, nullptr, nullptr, nullptr);
  EXPECT_EQ(ProcessesOfEnvironment()->size, 1);
  SetEnvironment("1", "3", "host", "29500");
  const auto options = ProcessesOfEnvironment();
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->rank, 1);
  EXPECT_EQ(options->size, 3);
  EXPECT_EQ(options->address, "host");
  EXPECT_EQ(options->port, 29500);
  SetEnvironment("1", "3", nullptr, nullptr);
  EXPECT_THAT(error(), HasSubstr("RANK, WORLD_SIZE in the environment without "
                                 "MASTER_ADDR, MASTER_PORT"));
  SetEnvironment("3", "3", "host", "29500");
  EXPECT_THAT(error(), HasSubstr("RANK 3: no whole number from 0 to 2"));
  SetEnvironment("0", "two", "host", "29500");
  EXPECT_THAT(error(), HasSubstr("WORLD_SIZE two: no whole number"));
  SetEnvironment("0", "2", "host", "70000");
  EXPECT_THAT(error(), HasSubstr("MASTER_PORT 70000"));
  SetEnvironment(nullptr, nullptr, nullptr, nullptr);
}

TEST(ProcessGroupTest, AddsUpCopiesAndShares) {
  constexpr int kSize = 3;
  const int port = FreePort();
  std::vector<std::vector<float>> sums(kSize);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kSize; ++rank) {
    threads.emplace_back([&, rank] {
      const auto group =
          ProcessGroup::Join({rank, kSize, "127.0.0.1", port, 60});
      ASSERT_TRUE(group.ok()) << group.status();
      std::vector<float> values(1000);
      for (int i = 0; i < 1000; ++i) values[i] = 0.1f * (rank + 1) + i;
      ASSERT_TRUE((*group)->Sum(at::from_blob(values.data(), {1000})).ok());
      sums[rank] = values;
      const at::Tensor there =
          at::full({5}, rank + 1.0f).to(ToTorchDevice(testing::OtherDevice()));
      ASSERT_TRUE((*group)->Sum(there).ok());
      EXPECT_TRUE(at::equal(there.cpu(), at::full({5}, 6.0f)));
      double exact[] = {4294967295.0 * (rank == 1), 1};
      ASSERT_TRUE((*group)->Sum(absl::MakeSpan(exact)).ok());
      EXPECT_EQ(exact[0], 4294967295.0);
      EXPECT_EQ(exact[1], 3);
      const at::Tensor copied = at::full({2}, 7.0f * rank);
      ASSERT_TRUE((*group)->Copy(copied).ok());
      EXPECT_EQ(copied[1].item<float>(), 0);
      EXPECT_EQ(*(*group)->Share("name", absl::StrCat("of ", rank)), "of 0");
      double last = 0;  // process 0 waits for the others
      ASSERT_TRUE((*group)->Sum(absl::MakeSpan(&last, 1)).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 1000; ++i) EXPECT_NEAR(sums[0][i], 0.6 + 3 * i, 1e-3);
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TEST(ProcessGroupTest, WhoLeavesIsNamedWithItsReason) {
  const int port = FreePort();
  std::thread other([port] {
    const auto group = ProcessGroup::Join({1, 2, "127.0.0.1", port, 60});
    ASSERT_TRUE(group.ok()) << group.status();
    (*group)->Leave(absl::NotFoundError("no texts here"));
  });
  const auto group = ProcessGroup::Join({0, 2, "127.0.0.1", port, 60});
  ASSERT_TRUE(group.ok()) << group.status();
  double value = 1;
  const absl::Status status = (*group)->Sum(absl::MakeSpan(&value, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("process 1 ended: no texts here"));
  other.join();
}

TEST(ProcessGroupTest, WhoDoesNotComeIsNamed) {
  const auto group = ProcessGroup::Join({0, 2, "127.0.0.1", FreePort(), 1});
  EXPECT_EQ(group.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(group.status().message()),
              HasSubstr("process 1 of 2 has not come to 127.0.0.1:"));
}

// Whole runs, as torchrun starts them.
class PretrainProcessesTest : public ::testing::Test {
 protected:
  ~PretrainProcessesTest() override {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
  }
  std::string Arguments(const std::string& out) const {
    return absl::StrCat(
        "pretrain --text ", shop_.texts(), " --fields text --tokenizer ",
        shop_.encoder(),
        " --layers 1 --hidden 32 --heads 2 --max-positions 64 --max-tokens 32 "
        "--batch-tokens 512 --share-tokens 64 --learning-rate 1e-3 "
        "--held-out-share 0.3 --bf16 off --out ",
        shop_.File(out));
  }
  pid_t Start(const std::string& arguments, const std::string& log, int rank,
              int size, int port) {
    const pid_t child = fork();
    if (child == 0) {
      if (size > 1) {
        SetEnvironment(absl::StrCat(rank).c_str(), absl::StrCat(size).c_str(),
                       "127.0.0.1", absl::StrCat(port).c_str());
      }
      const std::string command =
          absl::StrCat("exec ", VITRINE_BIN_DIR, "/vitrine-trainer ", arguments,
                       " > ", shop_.File(log), " 2>&1");
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    children_.push_back(child);
    return child;
  }
  // Its exit status; -1: by a signal.
  int Wait(pid_t child) {
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    children_.erase(std::find(children_.begin(), children_.end(), child));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  // All processes of a run, to their end.
  void Run(const std::string& arguments, int size) {
    const int port = FreePort();
    std::vector<pid_t> started;
    for (int rank = 0; rank < size; ++rank) {
      started.push_back(
          Start(arguments, absl::StrCat("log", rank), rank, size, port));
    }
    for (int rank = 0; rank < size; ++rank) {
      EXPECT_EQ(Wait(started[rank]), 0)
          << *ReadFile(shop_.File(absl::StrCat("log", rank)));
    }
  }
  bool WaitForText(const std::string& log, const std::string& text) const {
    for (int i = 0; i < 1200; ++i) {
      const auto content = ReadFile(shop_.File(log));
      if (content.ok() && absl::StrContains(*content, text)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }
  void ExpectNear(const std::string& a, const std::string& b,
                  double tolerance) const {
    const auto one = OpenSharded(shop_.File(a)),
               two = OpenSharded(shop_.File(b));
    ASSERT_TRUE(one.ok() && two.ok());
    for (const auto& [name, view] : (*one)->tensors()) {
      // A key's bias moves all of a query's weights alike: its gradient is
      // rounding alone, of which Adam makes steps.
      if (absl::EndsWith(name, "key.bias")) continue;
      const std::vector<float> x = *ToFloats(view),
                               y = *ToFloats(*(*two)->Find(name));
      double most = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        most = std::max<double>(most, std::abs(x[i] - y[i]));
      }
      EXPECT_LT(most, tolerance) << name;
    }
  }

  // Some weight is another by more than what ExpectNear allows.
  void ExpectMoved(const std::string& a, const std::string& from) const {
    const auto one = OpenSharded(shop_.File(a)), two = OpenSharded(from);
    ASSERT_TRUE(one.ok() && two.ok());
    const std::string name = "encoder.layer.0.intermediate.dense.weight";
    const TensorView* const now = (*one)->Find(name);
    const TensorView* const before = (*two)->Find(name);
    ASSERT_TRUE(now != nullptr && before != nullptr);
    const std::vector<float> x = *ToFloats(*now), y = *ToFloats(*before);
    double most = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      most = std::max<double>(most, std::abs(x[i] - y[i]));
    }
    EXPECT_GT(most, 1e-3);
  }

  SmallShop shop_;
  std::vector<pid_t> children_;
};

// The same steps of the same examples, added up in another order: 1e-4 of
// weights that have moved by 1e-2.
TEST_F(PretrainProcessesTest, TwoOfOneWorkerAreAsOneOfTwo) {
  const std::string more = " --epochs 2 --dropout 0";
  Run(Arguments("one") + more + " --threads 2", 1);
  Run(Arguments("two") + more + " --threads 1", 2);
  ExpectNear("one", "two", 1e-4);
  EXPECT_THAT(*ReadFile(shop_.File("log0")), HasSubstr("perplexity"));
  EXPECT_EQ(*ReadFile(shop_.File("log1")), "");
  const std::string matching =
      absl::StrCat(" --stage matching --from ", shop_.encoder(),
                   " --negatives 3 --epochs 0.5 --dropout 0");
  std::string arguments = absl::StrCat(
      "pretrain --text ", shop_.texts(),
      " --fields text --max-tokens 32 --batch-tokens 512 --share-tokens 64 "
      "--learning-rate 1e-3 --bf16 off",
      matching);
  Run(absl::StrCat(arguments, " --threads 2 --out ", shop_.File("match1")), 1);
  Run(absl::StrCat(arguments, " --threads 1 --out ", shop_.File("match2")), 2);
  ExpectNear("match1", "match2", 1e-4);

  // Each half finds its other half among those of all processes. Random weights
  // as small as the shop's give vectors so much alike that Adam makes steps of
  // rounding.
  testing::TinyModelOptions spread;
  spread.labels = 0;
  ASSERT_TRUE(testing::WriteTinyModel(shop_.File("spread"), spread).ok());
  std::string rows;
  for (const char* const kind : {"sofa", "lamp", "rug", "chair", "desk"}) {
    for (const char* const color : {"red", "blue", "green", "white"}) {
      absl::StrAppend(&rows, "{\"title\":\"", color, " ", kind,
                      "\",\"description\":\"a ", kind, " in ", color, "\"}\n");
    }
  }
  ASSERT_TRUE(WriteFile(shop_.File("pairs.jsonl"), rows).ok());
  arguments = absl::StrCat(
      "pretrain --stage contrastive --from ", shop_.File("spread"), " --text ",
      shop_.File("pairs.jsonl"),
      " --fields title,description --max-tokens 32 --batch-tokens 256 "
      "--held-out-share 0 --epochs 5 --learning-rate 1e-3 --bf16 off "
      "--dropout 0");
  Run(absl::StrCat(arguments, " --threads 2 --out ", shop_.File("pairs1")), 1);
  Run(absl::StrCat(arguments, " --threads 1 --out ", shop_.File("pairs2")), 2);
  ExpectNear("pairs1", "pairs2", 1e-4);
  ExpectMoved("pairs1", shop_.File("spread"));
}

TEST_F(PretrainProcessesTest, AKilledOneIsNamedAndAllGoOnToTheSameBits) {
  const std::string more = " --epochs 12 --dropout 0.1 --threads 1";
  Run(Arguments("unbroken") + more, 2);
  const std::string arguments = Arguments("resumed") + more + " --checkpoint " +
                                shop_.File("state") +
                                " --checkpoint-seconds 0.05";
  const int port = FreePort();
  const pid_t first = Start(arguments, "log0", 0, 2, port);
  const pid_t second = Start(arguments, "log1", 1, 2, port);
  for (int i = 0; i < 1200 && !PathExists(shop_.File("state/checkpoint-3")) &&
                  !PathExists(shop_.File("state/checkpoint-4"));
       ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(second, SIGKILL);
  EXPECT_EQ(Wait(second), -1);
  const int status = Wait(first);
  const std::string log = *ReadFile(shop_.File("log0"));
  if (status == 0) GTEST_SKIP() << "it was done before: " << log;
  EXPECT_THAT(log, HasSubstr("process 1 is gone"));
  EXPECT_FALSE(PathExists(shop_.File("resumed")));

  Run(arguments, 2);
  EXPECT_THAT(*ReadFile(shop_.File("log0")),
              HasSubstr("goes on from the checkpoint of step"));
  EXPECT_TRUE(*ReadFile(shop_.File("unbroken/model.safetensors")) ==
              *ReadFile(shop_.File("resumed/model.safetensors")))
      << "other bits";
}

TEST_F(PretrainProcessesTest, OtherOptionsAreRefused) {
  const int port = FreePort();
  const pid_t first =
      Start(Arguments("a") + " --threads 1 --seed 1", "log0", 0, 2, port);
  const pid_t second =
      Start(Arguments("a") + " --threads 1 --seed 2", "log1", 1, 2, port);
  EXPECT_EQ(Wait(second), 1);
  EXPECT_EQ(Wait(first), 1);
  EXPECT_THAT(*ReadFile(shop_.File("log1")),
              HasSubstr("process 1 has not what process 0 has"));
  EXPECT_THAT(*ReadFile(shop_.File("log0")),
              HasSubstr("process 1 ended: process 1 has not what"));
}

}  // namespace
}  // namespace vitrine
