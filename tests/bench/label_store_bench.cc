// How many labels a second LabelStore takes:
//
//   label_store_bench --url sqlite:/data/bench.db --labels 200000 --batch 1000
//
// Prints one JSON line. Every batch is committed to disk before the next.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "store/database.h"
#include "store/label_store.h"

namespace vitrine {
namespace {

constexpr char kModel[] = "bench";

// About what a shop sends: a query, a product with a title, a grade.
v1::Feedback MakeLabel(const std::string& run, int64_t i) {
  v1::Feedback feedback;
  feedback.set_feedback_id(absl::StrCat(run, "-", i));
  v1::RelevanceJudgement& relevance = *feedback.mutable_relevance();
  relevance.set_query(absl::StrCat("grey corner sofa with storage ", i % 997));
  relevance.mutable_item()->set_id(absl::StrCat("sku-", i % 50021));
  relevance.mutable_item()->set_title(absl::StrCat(
      "Corner sofa Malm with a bed and a box, light grey fabric, oak feet, "
      "left or right, 240 x 160 cm, number ",
      i));
  relevance.set_grade(static_cast<float>(i % 5) / 4);
  return feedback;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "label_store_bench: %s\n", status.ToString().c_str());
  return 1;
}

int Run(const std::string& url, int64_t count, int64_t batch) {
  const auto database = Database::Open({.url = url});
  if (!database.ok()) return Fail(database.status());
  LabelStore store(**database);
  const std::string run = absl::StrCat(absl::ToUnixMicros(absl::Now()));

  absl::Duration busy;
  std::vector<double> batch_ms;
  std::vector<v1::Feedback> labels;
  for (int64_t begin = 0; begin < count; begin += batch) {
    labels.clear();
    for (int64_t i = begin; i < std::min(begin + batch, count); ++i) {
      labels.push_back(MakeLabel(run, i));
    }
    std::vector<const v1::Feedback*> pointers;
    for (const v1::Feedback& label : labels) pointers.push_back(&label);
    const absl::Time start = absl::Now();
    const auto added = store.Add(kModel, pointers, start);
    if (!added.ok()) return Fail(added.status());
    const absl::Duration took = absl::Now() - start;
    busy += took;
    batch_ms.push_back(absl::ToDoubleMilliseconds(took));
  }

  const auto watermark = store.Watermark(kModel);
  if (!watermark.ok()) return Fail(watermark.status());
  const absl::Time start = absl::Now();
  int64_t rows = 0;
  const absl::Status read =
      store.Read(kModel, 0, *watermark, [&rows](const StoredLabel&) {
        ++rows;
        return absl::OkStatus();
      });
  if (!read.ok()) return Fail(read);
  const absl::Duration reading = absl::Now() - start;

  std::sort(batch_ms.begin(), batch_ms.end());
  nlohmann::ordered_json line;
  line["database"] = (*database)->Describe();
  line["labels"] = count;
  line["batch"] = batch;
  line["labels_per_second"] =
      static_cast<int64_t>(count / absl::ToDoubleSeconds(busy));
  line["batch_p50_ms"] = batch_ms[batch_ms.size() / 2];
  line["batch_p99_ms"] = batch_ms[batch_ms.size() * 99 / 100];
  line["read_rows"] = rows;
  line["read_rows_per_second"] =
      static_cast<int64_t>(rows / absl::ToDoubleSeconds(reading));
  std::printf("%s\n", line.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  CLI::App app("Adds labels to a database and prints how fast it was.");
  std::string url;
  int64_t labels = 100000;
  int64_t batch = 1000;
  app.add_option("--url", url, "The database")->required();
  app.add_option("--labels", labels, "How many")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--batch", batch, "In a transaction")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  return vitrine::Run(url, labels, batch);
}
