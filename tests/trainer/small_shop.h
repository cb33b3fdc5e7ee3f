#pragma once

// A shop of 40 products and a tiny encoder for it, as files: enough to learn
// something in a second.

#include <string>
#include <vector>

#include "tests/testing/temp_folder.h"
#include "trainer/fine_tune.h"

namespace vitrine {

class SmallShop {
 public:
  SmallShop();

  std::string items() const { return folder_.File("items.jsonl"); }
  // Queries such as "red sofa" against ten products each.
  std::string relevance() const { return folder_.File("relevance.jsonl"); }
  // Users who like one kind of product and go through its colours in order.
  std::string users() const { return folder_.File("users.jsonl"); }
  // The same users, with the kind that they like.
  std::string interest() const { return folder_.File("interest.jsonl"); }
  // Titles and their kind.
  std::string texts() const { return folder_.File("texts.jsonl"); }
  // A Hugging Face folder: 2 layers of 32, four segments.
  std::string encoder() const { return folder_.File("encoder"); }
  std::string registry() const { return folder_.File("registry"); }
  std::string File(const std::string& name) const { return folder_.File(name); }

  // Starts from the encoder, writes model "shop"; no tasks, few epochs.
  FineTuneOptions Options() const;
  FitTask Task(internal::HeadKind kind) const;
  // Relevance, recommendation, interest, classification.
  std::vector<FitTask> AllTasks() const;

 private:
  TempFolder folder_;
};

// FineTune(), told to nobody where there is no listener, and never stopped.
absl::StatusOr<FineTuneReport> Fit(const FineTuneOptions& options,
                                   FineTuneListener* listener = nullptr);

std::vector<std::string> Names(const std::vector<Baseline>& baselines);

// The metric of that name; fails the test where there is none.
double Value(const std::vector<MetricValue>& metrics, const std::string& name);

}  // namespace vitrine
