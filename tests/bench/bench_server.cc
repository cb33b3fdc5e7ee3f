#include "tests/bench/bench_server.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

constexpr char kToken[] = "bench-token-0123456789";

std::vector<AnyRequest> Requests(int items) {
  const std::vector<std::string> words = {"red",  "sofa", "lamp", "oak",
                                          "desk", "rug",  "blue", "chair"};
  const absl::StatusOr<const google::protobuf::MethodDescriptor*> method =
      FindMethod("Rank");
  std::vector<AnyRequest> requests;
  for (int r = 0; r < 16; ++r) {
    auto request = std::make_unique<v1::RankRequest>();
    request->mutable_context()->set_query(
        absl::StrCat(words[r % 8], " ", words[(r / 2) % 8]));
    for (int i = 0; i < items; ++i) {
      v1::Item& item = *request->add_items();
      item.set_id(absl::StrCat("item", i));
      for (int w = 0; w < 3 + (r + i) % 9; ++w) {
        absl::StrAppend(item.mutable_title(), words[(r * 7 + i * 3 + w) % 8],
                        " ");
      }
    }
    requests.push_back({*method, std::move(request)});
  }
  return requests;
}

}  // namespace

absl::Status MakeRegistry(const std::string& registry, const BenchModel& bench,
                          const std::vector<int64_t>& versions) {
  for (const int64_t version : versions) {
    testing::TinyModelOptions model;
    model.model_name = bench.name;
    model.version = version;
    model.seed = static_cast<uint64_t>(version);
    model.hidden_size = bench.hidden;
    model.num_layers = bench.layers;
    model.num_heads = bench.hidden / 32;
    model.intermediate_size = 4 * bench.hidden;
    model.vocab_size = 12000;
    model.heads = testing::AllHeads();
    RETURN_IF_ERROR(testing::WriteTinyModel(
        absl::StrCat(registry, "/", bench.name, "/", version), model));
  }
  return absl::OkStatus();
}

BenchServer::~BenchServer() {
  if (pid_ <= 0) return;
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

absl::Status BenchServer::Start(const std::string& registry,
                                const std::string& model,
                                const std::string& folder,
                                const std::string& log,
                                const std::string& config) {
  const std::string token = JoinPath(folder, "token");
  const std::string ports = JoinPath(folder, "ports");
  const std::string config_file = JoinPath(folder, "server.textproto");
  RETURN_IF_ERROR(WriteFile(token, absl::StrCat(kToken, "\n")));
  RETURN_IF_ERROR(WriteFile(
      config_file,
      absl::StrCat("registry: \"", registry, "\"\nmodels { name: \"", model,
                   "\" }\nlisten: \"127.0.0.1:0\"\n",
                   "metrics_listen: \"off\"\nport_file: \"", ports,
                   "\"\nadmin { listen: \"127.0.0.1:0\" token_file: \"", token,
                   "\" }\n", config)));
  const std::string program =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
       "vitrine-server")
          .string();
  pid_ = fork();
  if (pid_ < 0) return absl::InternalError("fork failed");
  if (pid_ == 0) {
    (void)!freopen(log.c_str(), "w", stderr);
    (void)!freopen("/dev/null", "w", stdout);
    execl(program.c_str(), program.c_str(), "--config", config_file.c_str(),
          nullptr);
    _exit(127);
  }
  for (int i = 0; i < 600 && !PathExists(ports); ++i) {
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = 0;
      return absl::InternalError(
          absl::StrCat(program, " ended; see --server-log"));
    }
    absl::SleepFor(absl::Milliseconds(100));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(ports));
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.size() < 3) return absl::InternalError("no ports: " + text);
  target_ = absl::StrCat("127.0.0.1:", lines[0]);
  admin_ = absl::StrCat("127.0.0.1:", lines[2]);
  return absl::OkStatus();
}

const char* BenchServer::token() { return kToken; }

double BenchServer::ResidentMiB() const {
  std::ifstream status(absl::StrCat("/proc/", pid_, "/status"));
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind("VmRSS:", 0) == 0) {
      const std::vector<std::string> parts =
          absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
      double kib = 0;
      if (parts.size() > 1 && absl::SimpleAtod(parts[1], &kib)) {
        return kib / 1024;
      }
    }
  }
  return 0;
}

absl::StatusOr<LoadReport> RunLoad(const std::string& target,
                                   const BenchLoad& bench,
                                   absl::Duration duration,
                                   const std::function<bool()>& stop) {
  LoadOptions load;
  load.client.target = target;
  // A second try would hide a failure.
  load.client.retry.max_attempts = 1;
  load.callers = bench.callers;
  load.duration = duration;
  ASSIGN_OR_RETURN(const auto generator,
                   NewLoadGenerator(Requests(bench.items), load));
  return generator->Run(stop, nullptr);
}

int64_t Failed(const LoadReport& report) {
  int64_t failed = report.item_errors;
  for (const auto& [code, count] : report.errors) failed += count;
  return failed;
}

}  // namespace vitrine
