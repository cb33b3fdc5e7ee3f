#include "trainer/label_dataset.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "trainer/dataset.h"

namespace vitrine {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMaxWeight = 5;
constexpr double kMaxSumOfWeights = 10;
constexpr double kPropensityPower = 0.5;

// How much an event says for the item; negative: nothing.
double GradeOf(v1::InteractionType type) {
  switch (type) {
    case v1::INTERACTION_TYPE_PURCHASE:
      return 1;
    case v1::INTERACTION_TYPE_CART:
      return 0.9;
    case v1::INTERACTION_TYPE_CLICK:
      return 0.7;
    case v1::INTERACTION_TYPE_VIEW:
      return 0.5;
    default:
      return -1;
  }
}
constexpr double kClickGrade = 0.7;

double WeightOf(int position) {
  if (position <= 0) return 1;
  return std::min(kMaxWeight, std::pow(position, kPropensityPower));
}

// A row in the making, of whatever kind.
struct Row {
  int64_t number = 0;  // of the newest label in it
  std::string key;     // by which it is held out
  Json json;
};

// One shown item of an impression.
struct Shown {
  int position = 0;
  double grade = -1;  // of the strongest event; negative: skipped
  int64_t number = 0;
};

// What is known of a query and an item.
struct Pair {
  int64_t number = 0;
  bool judged = false;
  double weighted_grade = 0;  // the grade itself where judged
  double weight = 0;
};

class Collector {
 public:
  absl::Status Add(const StoredLabel& label) {
    const v1::Feedback& feedback = label.feedback;
    switch (feedback.kind_case()) {
      case v1::Feedback::kRelevance: {
        const v1::RelevanceJudgement& judgement = feedback.relevance();
        Pair& pair = pairs_[{judgement.query(), IdOf(judgement.item())}];
        pair = {label.number, true, judgement.grade(), 1};
        return absl::OkStatus();
      }
      case v1::Feedback::kInteraction:
        AddEvent(label, feedback.interaction());
        return absl::OkStatus();
      case v1::Feedback::kInterest:
        AddInterest(label, feedback.interest());
        return absl::OkStatus();
      case v1::Feedback::kTextLabel: {
        const v1::TextLabel& text = feedback.text_label();
        texts_[text.head()][text.text()] = {label.number, text.label()};
        return absl::OkStatus();
      }
      default:
        return absl::InternalError(
            absl::StrCat("label ", label.number, " says nothing"));
    }
  }

  // Of one task, in a fixed order.
  std::vector<Row> Rows(const FitTask& task) const {
    switch (task.kind) {
      case internal::HEAD_KIND_RELEVANCE:
        return RelevanceRows();
      case internal::HEAD_KIND_RECOMMENDATION:
        return HistoryRows();
      case internal::HEAD_KIND_INTEREST:
        return interests_;
      default:
        return TextRows(task.head);
    }
  }

  std::vector<Json> Items() const {
    std::vector<Json> out;
    for (const auto& [id, item] : items_) out.push_back(ItemJson(id, item));
    return out;
  }

 private:
  struct Event {
    absl::Time time;
    int64_t number = 0;
    std::string item;
  };

  // The item's id; one without gets one by its content.
  std::string IdOf(const v1::Item& item) {
    std::string id = item.id();
    if (id.empty()) {
      std::string content;
      for (const std::string* const part :
           {&item.title(), &item.brand(), &item.description()}) {
        absl::StrAppend(&content, *part, "\n");
      }
      id = absl::StrCat("text-", Sha256(content).substr(0, 16));
    }
    items_[id] = item;
    return id;
  }

  void AddEvent(const StoredLabel& label, const v1::InteractionEvent& event) {
    const std::string item = IdOf(event.item());
    const double grade = GradeOf(event.type());
    if (grade >= 0) {
      absl::Time time = label.received;
      if (label.feedback.has_time()) {
        const google::protobuf::Timestamp& at = label.feedback.time();
        time =
            absl::FromUnixSeconds(at.seconds()) + absl::Nanoseconds(at.nanos());
      }
      events_[event.user_id()].push_back({time, label.number, item});
    }
    if (event.query().empty()) return;
    if (event.impression_id().empty()) {
      if (grade < 0) return;
      AddEvidence(event.query(), item, grade, WeightOf(event.position()),
                  label.number);
      return;
    }
    Shown& shown = impressions_[{event.query(), event.impression_id()}][item];
    if (event.position() > 0) shown.position = event.position();
    shown.grade = std::max(shown.grade, grade);
    shown.number = std::max(shown.number, label.number);
  }

  void AddInterest(const StoredLabel& label,
                   const v1::InterestLabel& interest) {
    Row& row = interests_.emplace_back();
    row.number = label.number;
    Json items = Json::array();
    for (const v1::Interaction& event : interest.history()) {
      if (event.type() == v1::INTERACTION_TYPE_SKIP) continue;
      items.push_back(IdOf(event.item()));
    }
    if (items.empty()) {
      interests_.pop_back();
      return;
    }
    // Labels of one shopper, at different times, begin alike.
    row.key = !interest.user_id().empty() ? interest.user_id()
                                          : items[0].get<std::string>();
    row.json["user_id"] = row.key;
    row.json["items"] = std::move(items);
    row.json["categories"] = std::vector<std::string>(
        interest.categories().begin(), interest.categories().end());
  }

  static void Merge(double grade, double weight, int64_t number, Pair* pair) {
    if (pair->judged) return;
    pair->number = std::max(pair->number, number);
    pair->weighted_grade += weight * grade;
    pair->weight += weight;
  }
  void AddEvidence(const std::string& query, const std::string& item,
                   double grade, double weight, int64_t number) {
    loose_.push_back({{query, item}, grade, weight, number});
  }

  std::vector<Row> RelevanceRows() const {
    std::map<std::pair<std::string, std::string>, Pair> pairs = pairs_;
    for (const Loose& loose : loose_) {
      Merge(loose.grade, loose.weight, loose.number, &pairs[loose.pair]);
    }
    for (const auto& [list, shown] : impressions_) {
      AddImpression(list.first, shown, &pairs);
    }
    std::vector<Row> rows;
    for (const auto& [names, pair] : pairs) {
      Row& row = rows.emplace_back();
      row.number = pair.number;
      row.key = SameTextKey(names.first);
      row.json["query"] = names.first;
      row.json["item_id"] = names.second;
      row.json["grade"] = pair.weighted_grade / pair.weight;
      if (!pair.judged) {
        row.json["weight"] = std::min(pair.weight, kMaxSumOfWeights);
      }
    }
    return rows;
  }

  static void AddImpression(
      const std::string& query, const std::map<std::string, Shown>& shown,
      std::map<std::pair<std::string, std::string>, Pair>* pairs) {
    int lowest = 0;  // position of a click or more
    for (const auto& [item, one] : shown) {
      if (one.grade >= kClickGrade) lowest = std::max(lowest, one.position);
    }
    for (const auto& [item, one] : shown) {
      if (one.grade >= 0) {
        Merge(one.grade, WeightOf(one.position), one.number,
              &(*pairs)[{query, item}]);
      } else if (one.position > 0 && one.position < lowest) {
        Merge(0, 1, one.number, &(*pairs)[{query, item}]);
      }
    }
  }

  std::vector<Row> HistoryRows() const {
    std::vector<Row> rows;
    for (const auto& [user, events] : events_) {
      std::vector<Event> sorted = events;
      std::stable_sort(
          sorted.begin(), sorted.end(),
          [](const Event& a, const Event& b) { return a.time < b.time; });
      Json items = Json::array();
      int64_t number = 0;
      for (const Event& event : sorted) {
        number = std::max(number, event.number);
        if (!items.empty() && items.back() == event.item) continue;
        items.push_back(event.item);
      }
      if (items.size() < 2) continue;
      Row& row = rows.emplace_back();
      row.number = number;
      row.key = user;
      row.json["user_id"] = user;
      row.json["items"] = std::move(items);
    }
    return rows;
  }

  std::vector<Row> TextRows(const std::string& head) const {
    std::vector<Row> rows;
    const auto texts = texts_.find(head);
    if (texts == texts_.end()) return rows;
    for (const auto& [text, label] : texts->second) {
      Row& row = rows.emplace_back();
      row.number = label.first;
      row.key = SameTextKey(text);
      row.json["text"] = text;
      row.json["label"] = label.second;
    }
    return rows;
  }

  static Json ItemJson(const std::string& id, const v1::Item& item) {
    Json json;
    json["id"] = id;
    json["title"] = item.title();
    if (!item.brand().empty()) json["brand"] = item.brand();
    if (!item.description().empty()) json["description"] = item.description();
    if (!item.categories().empty()) {
      json["categories"] = std::vector<std::string>(item.categories().begin(),
                                                    item.categories().end());
    }
    if (!item.attributes().empty()) {
      // Sorted: a map's order is any.
      json["attributes"] = std::map<std::string, std::string>(
          item.attributes().begin(), item.attributes().end());
    }
    return json;
  }

  struct Loose {
    std::pair<std::string, std::string> pair;
    double grade, weight;
    int64_t number;
  };

  // Ordered: files are to be the same in every run.
  std::map<std::string, v1::Item> items_;
  std::map<std::pair<std::string, std::string>, Pair> pairs_;  // judged
  std::vector<Loose> loose_;  // events without an impression
  // By query and impression, then by item.
  std::map<std::pair<std::string, std::string>, std::map<std::string, Shown>>
      impressions_;
  std::map<std::string, std::vector<Event>> events_;  // by user
  std::vector<Row> interests_;
  // By head, then by text: number and label.
  std::map<std::string, std::map<std::string, std::pair<int64_t, std::string>>>
      texts_;
};

// Leaves of the old rows that are trained on the replay share. `rows[t]` are
// those of task t.
void Replay(const LabelDatasetOptions& options,
            std::vector<std::vector<Row>>* rows) {
  const auto is_old = [&options](const Row& row) {
    return row.number <= options.base_watermark &&
           !IsHeldOut(row.key, options.validation_share);
  };
  int64_t fresh = 0, old = 0;
  for (const std::vector<Row>& task : *rows) {
    for (const Row& row : task) {
      if (is_old(row)) {
        ++old;
      } else if (row.number > options.base_watermark &&
                 !IsHeldOut(row.key, options.validation_share)) {
        ++fresh;
      }
    }
  }
  if (options.replay_share >= 1 || old == 0) return;
  const double wanted =
      fresh * options.replay_share / (1 - options.replay_share);
  const double share = std::min(1.0, wanted / static_cast<double>(old));
  for (size_t t = 0; t < rows->size(); ++t) {
    std::vector<Row>& task = (*rows)[t];
    // By hash, and not at random, so that the next run with a few labels more
    // replays nearly the same rows.
    std::vector<std::pair<std::string, size_t>> order;
    for (size_t i = 0; i < task.size(); ++i) {
      if (!is_old(task[i])) continue;
      order.emplace_back(
          Sha256(absl::StrCat(options.seed, "\n", task[i].json.dump())), i);
    }
    std::sort(order.begin(), order.end());
    std::set<size_t> dropped;
    const auto keep = static_cast<size_t>(std::lround(share * order.size()));
    for (size_t i = keep; i < order.size(); ++i)
      dropped.insert(order[i].second);
    std::vector<Row> kept;
    for (size_t i = 0; i < task.size(); ++i) {
      if (dropped.count(i) == 0) kept.push_back(std::move(task[i]));
    }
    task = std::move(kept);
  }
}

// Why there is nothing to train on, where there is `any` label or none.
absl::Status Nothing(const std::string& whose, bool any,
                     const LabelDatasetOptions& options) {
  if (!any) {
    return absl::FailedPreconditionError(absl::StrCat(
        whose, "there are no labels, up to number ", options.watermark));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      whose, "there is nothing to train on: all labels are held out (share ",
      options.validation_share, ") or no newer than the base version, number ",
      options.base_watermark, ", and the replay share ", options.replay_share,
      " leaves them out"));
}

absl::Status WriteRows(const std::string& path, const std::vector<Json>& rows) {
  std::string text;
  for (const Json& row : rows) absl::StrAppend(&text, row.dump(), "\n");
  return WriteFile(path, text);
}

}  // namespace

absl::StatusOr<LabelDataset> WriteLabelDataset(
    LabelStore& store, const LabelDatasetOptions& options,
    const std::string& folder) {
  Collector collector;
  RETURN_IF_ERROR(store.Read(
      options.model, /*after=*/0, options.watermark,
      [&collector](const StoredLabel& label) { return collector.Add(label); }));

  std::vector<std::vector<Row>> all, rows;
  std::vector<bool> labelled;  // each task
  for (const FitTask& task : options.tasks) {
    all.push_back(collector.Rows(task));
    labelled.push_back(!all.back().empty());
  }
  Replay(options, &all);
  LabelDataset dataset;
  for (size_t t = 0; t < all.size(); ++t) {
    const FitTask& task = options.tasks[t];
    const bool trains =
        std::any_of(all[t].begin(), all[t].end(), [&options](const Row& row) {
          return !IsHeldOut(row.key, options.validation_share);
        });
    if (!trains && options.skip_empty) continue;
    if (!trains) {
      return Nothing(absl::StrCat("head ", HeadName(task), ": "), labelled[t],
                     options);
    }
    dataset.tasks.push_back(task);
    rows.push_back(std::move(all[t]));
  }
  if (dataset.tasks.empty()) {
    const bool any = std::count(labelled.begin(), labelled.end(), true) > 0;
    return Nothing("", any, options);
  }

  const std::vector<Json> items = collector.Items();
  if (!items.empty()) {
    dataset.items = JoinPath(folder, "items.jsonl");
    RETURN_IF_ERROR(WriteRows(dataset.items, items));
  }
  for (size_t t = 0; t < rows.size(); ++t) {
    FitTask& task = dataset.tasks[t];
    task.data = JoinPath(folder, absl::StrCat(HeadName(task), ".jsonl"));
    task.grades = {0, 1};
    std::vector<Json> lines;
    for (const Row& row : rows[t]) {
      ++(IsHeldOut(row.key, options.validation_share) ? dataset.validation_rows
                                                      : dataset.training_rows);
      lines.push_back(row.json);
    }
    RETURN_IF_ERROR(WriteRows(task.data, lines));
  }
  return dataset;
}

}  // namespace vitrine
