// What a bulk import does to those who are served meanwhile: a vitrine-server
// in a process of its own, closed-loop callers of Rank, and ImportFeedback into
// its SQLite store at a steady rate, in turns with and without. Prints one JSON
// line.
//
//   import_bench
//   import_bench --rate 50000 --rounds 5

#include <signal.h>
#include <stdio.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "client/client.h"
#include "nlohmann/json.hpp"
#include "tests/bench/bench_server.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

struct Options {
  int rate = 20000;
  int batch = 500;
  int rounds = 3;
  int seconds = 10;
  BenchModel model;
  BenchLoad load;
  std::string server_log = "/dev/null";
};

// About what a shop sends: a query, a product with a title, a grade.
v1::ImportFeedbackRequest MakeBatch(const Options& options) {
  v1::ImportFeedbackRequest batch;
  batch.set_model(options.model.name);
  for (int i = 0; i < options.batch; ++i) {
    v1::RelevanceJudgement& judgement =
        *batch.add_feedback()->mutable_relevance();
    judgement.set_query(absl::StrCat("grey corner sofa with storage ", i));
    judgement.mutable_item()->set_id(absl::StrCat("sku-", i));
    judgement.mutable_item()->set_title(absl::StrCat(
        "Corner sofa Malm with a bed and a box, light grey fabric, oak feet, "
        "left or right, 240 x 160 cm, number ",
        i));
    judgement.set_grade(static_cast<float>(i % 5) / 4);
  }
  return batch;
}

// One import, a batch at a time at the rate asked for, until `stop`. Entries
// are new in every `round`.
absl::StatusOr<v1::ImportFeedbackResponse> Import(
    const Options& options, const Client& client, int round,
    const std::atomic<bool>& stop) {
  const v1::ImportFeedbackRequest batch = MakeBatch(options);
  const absl::Time start = absl::Now();
  int64_t sent = 0;
  return client.ImportFeedback(
      [&](v1::ImportFeedbackRequest* request) -> absl::StatusOr<bool> {
        absl::SleepFor(start +
                       absl::Seconds(static_cast<double>(sent) / options.rate) -
                       absl::Now());
        if (stop) return false;
        *request = batch;
        for (v1::Feedback& entry : *request->mutable_feedback()) {
          entry.set_feedback_id(absl::StrCat("r", round, "-", sent++));
        }
        return true;
      },
      {.timeout = absl::Hours(1)});
}

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status Bench(const Options& options) {
  const TempFolder temp;
  const std::string registry = temp.File("registry");
  RETURN_IF_ERROR(MakeRegistry(registry, options.model, {1}));
  BenchServer server;
  RETURN_IF_ERROR(server.Start(
      registry, options.model.name, temp.path(), options.server_log,
      absl::StrCat("store { url: \"sqlite:", temp.File("store.db"), "\" }\n")));
  ClientOptions client_options;
  client_options.target = server.target();
  ASSIGN_OR_RETURN(const auto client, Client::Create(client_options));

  std::vector<double> without, with, without_calls, with_calls, labels;
  int64_t requests = 0, failed = 0;
  const auto rank = [&](std::vector<double>* p99,
                        std::vector<double>* calls) -> absl::Status {
    ASSIGN_OR_RETURN(
        const LoadReport report,
        RunLoad(server.target(), options.load, absl::Seconds(options.seconds)));
    p99->push_back(absl::ToDoubleMilliseconds(report.latency.Quantile(0.99)));
    calls->push_back(report.calls / absl::ToDoubleSeconds(report.window));
    requests += report.ok;
    failed += Failed(report);
    return absl::OkStatus();
  };
  for (int round = 0; round < options.rounds; ++round) {
    RETURN_IF_ERROR(rank(&without, &without_calls));
    std::atomic<bool> stop{false};
    absl::StatusOr<v1::ImportFeedbackResponse> imported =
        absl::UnknownError("not run");
    absl::Duration took;
    std::thread importer([&] {
      const absl::Time start = absl::Now();
      imported = Import(options, *client, round, stop);
      took = absl::Now() - start;
    });
    const absl::Status ranked = rank(&with, &with_calls);
    stop = true;
    importer.join();
    RETURN_IF_ERROR(ranked);
    RETURN_IF_ERROR(imported.status());
    failed += imported->rejected() + imported->duplicates();
    labels.push_back(static_cast<double>(imported->stored()) /
                     absl::ToDoubleSeconds(took));
    fprintf(stderr,
            "round %d: p99 %.1f ms, %.1f ms beside %.0f labels a second\n",
            round + 1, without.back(), with.back(), labels.back());
  }
  nlohmann::ordered_json out;
  out["rounds"] = options.rounds;
  out["requests"] = requests + failed;
  out["failed"] = failed;
  out["labels_per_second"] = MedianOf(labels);
  out["p99_ms_without"] = MedianOf(without);
  out["p99_ms_with"] = MedianOf(with);
  out["p99_ratio"] = MedianOf(with) / MedianOf(without);
  out["calls_per_second_without"] = MedianOf(without_calls);
  out["calls_per_second_with"] = MedianOf(with_calls);
  printf("%s\n", out.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  vitrine::Options options;
  CLI::App app{"Ranks beside a bulk import and prints one JSON line."};
  app.add_option("--rate", options.rate, "Labels a second")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--batch", options.batch, "Labels in a message")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "Without and with, each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Of a half round")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--callers", options.load.callers, "At once")
      ->capture_default_str();
  app.add_option("--items", options.load.items, "In a call")
      ->capture_default_str();
  app.add_option("--layers", options.model.layers, "Of the model made")
      ->capture_default_str();
  app.add_option("--hidden", options.model.hidden, "Its width")
      ->capture_default_str();
  app.add_option("--server-log", options.server_log, "Where its log goes");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = vitrine::Bench(options);
  if (status.ok()) return 0;
  fprintf(stderr, "import_bench: %s\n", status.ToString().c_str());
  return 1;
}
