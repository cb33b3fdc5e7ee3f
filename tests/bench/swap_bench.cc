// Swaps two versions to and fro under load: a vitrine-server in a process of
// its own, closed-loop callers of Rank, activations one after another by the
// admin's RPC. Prints one JSON line.
//
//   swap_bench
//   swap_bench --registry build/quickstart/registry --model shop --versions 1 2
//
// Without a registry it makes two versions with random weights.

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "client/admin_client.h"
#include "client/load_generator.h"
#include "nlohmann/json.hpp"
#include "tests/testing/tiny_model.h"

namespace vitrine {
namespace {

constexpr char kToken[] = "swap-bench-token-0123456789";

struct Options {
  std::string registry;
  std::string model = "bench";
  std::vector<int64_t> versions = {1, 2};
  int swaps = 1000;
  int callers = 8;
  int items = 20;
  int pause_ms = 0;
  int steady_seconds = 20;
  int layers = 4;
  int hidden = 256;
  std::string server_log = "/dev/null";
};

// A folder that goes with the process.
class TempFolder {
 public:
  TempFolder() {
    std::string path =
        (std::filesystem::temp_directory_path() / "swap_bench.XXXXXX").string();
    if (mkdtemp(path.data()) != nullptr) path_ = path;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

absl::Status MakeRegistry(const Options& options, const std::string& registry) {
  for (const int64_t version : options.versions) {
    testing::TinyModelOptions model;
    model.model_name = options.model;
    model.version = version;
    model.seed = static_cast<uint64_t>(version);
    model.hidden_size = options.hidden;
    model.num_layers = options.layers;
    model.num_heads = options.hidden / 32;
    model.intermediate_size = 4 * options.hidden;
    model.vocab_size = 12000;
    model.heads = testing::AllHeads();
    RETURN_IF_ERROR(testing::WriteTinyModel(
        absl::StrCat(registry, "/", options.model, "/", version), model));
  }
  return absl::OkStatus();
}

// vitrine-server beside this program.
class ServerProcess {
 public:
  ~ServerProcess() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }

  absl::Status Start(const Options& options, const std::string& registry,
                     const std::string& folder) {
    const std::string token = JoinPath(folder, "token");
    const std::string ports = JoinPath(folder, "ports");
    const std::string config = JoinPath(folder, "server.textproto");
    RETURN_IF_ERROR(WriteFile(token, absl::StrCat(kToken, "\n")));
    RETURN_IF_ERROR(WriteFile(
        config,
        absl::StrCat("registry: \"", registry, "\"\nmodels { name: \"",
                     options.model, "\" }\nlisten: \"127.0.0.1:0\"\n",
                     "metrics_listen: \"off\"\nport_file: \"", ports,
                     "\"\nadmin { listen: \"127.0.0.1:0\" token_file: \"",
                     token, "\" }\n")));
    const std::string program =
        (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
         "vitrine-server")
            .string();
    pid_ = fork();
    if (pid_ < 0) return absl::InternalError("fork failed");
    if (pid_ == 0) {
      (void)!freopen(options.server_log.c_str(), "w", stderr);
      (void)!freopen("/dev/null", "w", stdout);
      execl(program.c_str(), program.c_str(), "--config", config.c_str(),
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
    target = absl::StrCat("127.0.0.1:", lines[0]);
    admin = absl::StrCat("127.0.0.1:", lines[2]);
    return absl::OkStatus();
  }

  // MiB
  double ResidentMemory() const {
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

  std::string target, admin;

 private:
  pid_t pid_ = 0;
};

std::vector<AnyRequest> Requests(const Options& options) {
  const std::vector<std::string> words = {"red",  "sofa", "lamp", "oak",
                                          "desk", "rug",  "blue", "chair"};
  const absl::StatusOr<const google::protobuf::MethodDescriptor*> method =
      FindMethod("Rank");
  std::vector<AnyRequest> requests;
  for (int r = 0; r < 16; ++r) {
    auto request = std::make_unique<v1::RankRequest>();
    request->mutable_context()->set_query(
        absl::StrCat(words[r % 8], " ", words[(r / 2) % 8]));
    for (int i = 0; i < options.items; ++i) {
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

absl::StatusOr<LoadReport> Load(const Options& options,
                                const std::string& target,
                                absl::Duration duration,
                                const std::function<bool()>& stop) {
  LoadOptions load;
  load.client.target = target;
  // A second try would hide a failure.
  load.client.retry.max_attempts = 1;
  load.callers = options.callers;
  load.duration = duration;
  ASSIGN_OR_RETURN(const auto generator,
                   NewLoadGenerator(Requests(options), load));
  return generator->Run(stop, nullptr);
}

int64_t Failed(const LoadReport& report) {
  int64_t failed = report.item_errors;
  for (const auto& [code, count] : report.errors) failed += count;
  return failed;
}

double Ms(absl::Duration duration) {
  return absl::ToDoubleMilliseconds(duration);
}

absl::Status Bench(const Options& options) {
  const TempFolder temp;
  std::string registry = options.registry;
  if (registry.empty()) {
    registry = JoinPath(temp.path(), "registry");
    RETURN_IF_ERROR(MakeRegistry(options, registry));
  }
  ServerProcess server;
  RETURN_IF_ERROR(server.Start(options, registry, temp.path()));
  ClientOptions admin_options;
  admin_options.target = server.admin;
  ASSIGN_OR_RETURN(const auto admin,
                   AdminClient::Create(admin_options, kToken));

  fprintf(stderr, "steady for %d s\n", options.steady_seconds);
  ASSIGN_OR_RETURN(
      const LoadReport steady,
      Load(options, server.target, absl::Seconds(options.steady_seconds),
           [] { return false; }));

  std::atomic<bool> done{false};
  absl::StatusOr<LoadReport> swapping = absl::UnknownError("not run");
  std::thread load([&] {
    swapping = Load(options, server.target, absl::Hours(24),
                    [&done] { return done.load(); });
  });
  double memory_early = 0;
  absl::Status status;
  const absl::Time start = absl::Now();
  int swaps = 0;
  for (; swaps < options.swaps && status.ok(); ++swaps) {
    if (swaps == std::min(100, options.swaps / 2)) {
      memory_early = server.ResidentMemory();
    }
    v1::ActivateModelVersionRequest request;
    request.set_model(options.model);
    request.set_version(
        options.versions[(swaps + 1) % options.versions.size()]);
    const auto activated =
        admin->ActivateModelVersion(request, {.timeout = absl::Minutes(5)});
    status = activated.status();
    if (options.pause_ms > 0) {
      absl::SleepFor(absl::Milliseconds(options.pause_ms));
    }
    if (isatty(2) != 0 || swaps % 100 == 99) {
      fprintf(stderr, "%s%d swaps, %.1f MiB%s", isatty(2) != 0 ? "\r" : "",
              swaps + 1, server.ResidentMemory(),
              isatty(2) != 0 ? "\033[K" : "\n");
    }
  }
  if (isatty(2) != 0) fputc('\n', stderr);
  const absl::Duration took = absl::Now() - start;
  const double memory_end = server.ResidentMemory();
  done = true;
  load.join();
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(swapping.status());

  const double p99_steady = Ms(steady.latency.Quantile(0.99));
  const double p99_swapping = Ms(swapping->latency.Quantile(0.99));
  nlohmann::ordered_json out;
  out["swaps"] = swaps;
  out["seconds"] = absl::ToDoubleSeconds(took);
  out["requests"] =
      steady.ok + swapping->ok + Failed(steady) + Failed(*swapping);
  out["failed"] = Failed(steady) + Failed(*swapping);
  out["steady_p50_ms"] = Ms(steady.latency.Quantile(0.5));
  out["steady_p99_ms"] = p99_steady;
  out["steady_calls_per_second"] =
      steady.calls / absl::ToDoubleSeconds(steady.window);
  out["swapping_p50_ms"] = Ms(swapping->latency.Quantile(0.5));
  out["swapping_p99_ms"] = p99_swapping;
  out["swapping_calls_per_second"] =
      swapping->calls / absl::ToDoubleSeconds(swapping->window);
  out["p99_ratio"] = p99_swapping / p99_steady;
  out["memory_at_100_mib"] = memory_early;
  out["memory_at_end_mib"] = memory_end;
  out["memory_growth"] = memory_end / memory_early - 1;
  if (!swapping->first_error.ok()) {
    out["first_error"] = swapping->first_error.ToString();
  }
  printf("%s\n", out.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  vitrine::Options options;
  CLI::App app{"Swaps versions under load and prints one JSON line."};
  app.add_option("--registry", options.registry,
                 "A registry (default: one with random weights is made)");
  app.add_option("--model", options.model, "Its model")->capture_default_str();
  app.add_option("--versions", options.versions, "What to swap between")
      ->expected(2)
      ->capture_default_str();
  app.add_option("--swaps", options.swaps, "Activations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--callers", options.callers, "At once")
      ->capture_default_str();
  app.add_option("--items", options.items, "In a call")->capture_default_str();
  app.add_option("--pause-ms", options.pause_ms, "Between activations")
      ->capture_default_str();
  app.add_option("--steady-seconds", options.steady_seconds,
                 "Of load before the first activation")
      ->capture_default_str();
  app.add_option("--layers", options.layers, "Of the models made")
      ->capture_default_str();
  app.add_option("--hidden", options.hidden, "Their width")
      ->capture_default_str();
  app.add_option("--server-log", options.server_log, "Where its log goes");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = vitrine::Bench(options);
  if (status.ok()) return 0;
  fprintf(stderr, "swap_bench: %s\n", status.ToString().c_str());
  return 1;
}
