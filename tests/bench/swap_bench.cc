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
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "client/admin_client.h"
#include "nlohmann/json.hpp"
#include "tests/bench/bench_server.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

struct Options {
  std::string registry;
  std::vector<int64_t> versions = {1, 2};
  int swaps = 1000;
  int pause_ms = 0;
  int steady_seconds = 20;
  BenchModel model;
  BenchLoad load;
  std::string server_log = "/dev/null";
};

double Ms(absl::Duration duration) {
  return absl::ToDoubleMilliseconds(duration);
}

absl::Status Bench(const Options& options) {
  const TempFolder temp;
  std::string registry = options.registry;
  if (registry.empty()) {
    registry = JoinPath(temp.path(), "registry");
    RETURN_IF_ERROR(MakeRegistry(registry, options.model, options.versions));
  }
  BenchServer server;
  RETURN_IF_ERROR(server.Start(registry, options.model.name, temp.path(),
                               options.server_log));
  ClientOptions admin_options;
  admin_options.target = server.admin();
  ASSIGN_OR_RETURN(const auto admin,
                   AdminClient::Create(admin_options, BenchServer::token()));

  fprintf(stderr, "steady for %d s\n", options.steady_seconds);
  ASSIGN_OR_RETURN(const LoadReport steady,
                   RunLoad(server.target(), options.load,
                           absl::Seconds(options.steady_seconds)));

  std::atomic<bool> done{false};
  absl::StatusOr<LoadReport> swapping = absl::UnknownError("not run");
  std::thread load([&] {
    swapping = RunLoad(server.target(), options.load, absl::Hours(24),
                       [&done] { return done.load(); });
  });
  double memory_early = 0;
  absl::Status status;
  const absl::Time start = absl::Now();
  int swaps = 0;
  for (; swaps < options.swaps && status.ok(); ++swaps) {
    if (swaps == std::min(100, options.swaps / 2)) {
      memory_early = server.ResidentMiB();
    }
    v1::ActivateModelVersionRequest request;
    request.set_model(options.model.name);
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
              swaps + 1, server.ResidentMiB(),
              isatty(2) != 0 ? "\033[K" : "\n");
    }
  }
  if (isatty(2) != 0) fputc('\n', stderr);
  const absl::Duration took = absl::Now() - start;
  const double memory_end = server.ResidentMiB();
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
  app.add_option("--model", options.model.name, "Its model")
      ->capture_default_str();
  app.add_option("--versions", options.versions, "What to swap between")
      ->expected(2)
      ->capture_default_str();
  app.add_option("--swaps", options.swaps, "Activations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--callers", options.load.callers, "At once")
      ->capture_default_str();
  app.add_option("--items", options.load.items, "In a call")
      ->capture_default_str();
  app.add_option("--pause-ms", options.pause_ms, "Between activations")
      ->capture_default_str();
  app.add_option("--steady-seconds", options.steady_seconds,
                 "Of load before the first activation")
      ->capture_default_str();
  app.add_option("--layers", options.model.layers, "Of the models made")
      ->capture_default_str();
  app.add_option("--hidden", options.model.hidden, "Their width")
      ->capture_default_str();
  app.add_option("--server-log", options.server_log, "Where its log goes");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = vitrine::Bench(options);
  if (status.ok()) return 0;
  fprintf(stderr, "swap_bench: %s\n", status.ToString().c_str());
  return 1;
}
