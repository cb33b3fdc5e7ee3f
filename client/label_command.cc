// vitrine label: feedback from files into the server's label store.

#include <unistd.h>

#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "client/command.h"
#include "client/feedback_input.h"
#include "client/input.h"
#include "client/table.h"

namespace vitrine {
namespace {

constexpr char kName[] = "label import";
// Entries in a message, and their bytes, about. Each message is a commit of
// the server's.
constexpr int kBatch = 500;
constexpr size_t kBatchBytes = 1 << 20;
// No import should end for its length.
constexpr absl::Duration kImportTimeout = absl::Hours(24);

struct ImportFlags {
  std::string file;
  std::string items;
  std::string grades = "0:3";
  std::string head;
  std::string event = "purchase";
};

const std::map<std::string, v1::InteractionType>& Events() {
  static const auto* const events =
      new std::map<std::string, v1::InteractionType>{
          {"view", v1::INTERACTION_TYPE_VIEW},
          {"click", v1::INTERACTION_TYPE_CLICK},
          {"cart", v1::INTERACTION_TYPE_CART},
          {"purchase", v1::INTERACTION_TYPE_PURCHASE}};
  return *events;
}

absl::StatusOr<FeedbackInput> MakeInput(const ImportFlags& flags) {
  FeedbackInput input;
  input.head = flags.head;
  input.event = Events().at(flags.event);
  const std::vector<std::string> grades = absl::StrSplit(flags.grades, ':');
  if (grades.size() != 2 || !absl::SimpleAtod(grades[0], &input.min_grade) ||
      !absl::SimpleAtod(grades[1], &input.max_grade) ||
      !(input.min_grade < input.max_grade)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--grades: \"", flags.grades, "\" is not MIN:MAX"));
  }
  if (flags.items.empty()) return input;
  ASSIGN_OR_RETURN(std::vector<v1::Item> items, ReadItems(flags.items));
  for (v1::Item& item : items) {
    const std::string id = item.id();
    if (!input.items.emplace(id, std::move(item)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags.items, ": item \"", id, "\" is there twice"));
    }
  }
  return input;
}

class Progress {
 public:
  void Show(int64_t sent) {
    const absl::Time now = absl::Now();
    if (!isatty(STDERR_FILENO) || now - last_ < absl::Milliseconds(200)) return;
    last_ = now;
    absl::FPrintF(stderr, "\r%d sent, %.0f/s ", sent,
                  sent / absl::ToDoubleSeconds(now - start_));
    shown_ = true;
  }
  void Clear() {
    if (shown_) absl::FPrintF(stderr, "\r\033[K");
  }
  absl::Duration elapsed() const { return absl::Now() - start_; }

 private:
  const absl::Time start_ = absl::Now();
  absl::Time last_ = absl::InfinitePast();
  bool shown_ = false;
};

void Print(const GlobalOptions& globals,
           const v1::ImportFeedbackResponse& response, absl::Duration took) {
  if (globals.json) {
    absl::PrintF("%s\n", ToJsonLine(response));
    return;
  }
  const int64_t all =
      response.stored() + response.duplicates() + response.rejected();
  absl::PrintF("%d stored, %d there already, %d rejected, in %s (%.0f/s)\n",
               response.stored(), response.duplicates(), response.rejected(),
               absl::FormatDuration(absl::Trunc(took, absl::Milliseconds(1))),
               all / absl::ToDoubleSeconds(took));
  for (const v1::FeedbackResult& result : response.rejections()) {
    absl::FPrintF(stderr, "entry %d (%s): %s\n", result.index() + 1,
                  Printable(result.feedback_id()),
                  Printable(result.error().message()));
  }
  const int64_t more = response.rejected() - response.rejections_size();
  if (more > 0) absl::FPrintF(stderr, "and %d more\n", more);
}

ExitCode Import(const GlobalOptions& globals, const ImportFlags& flags) {
  const auto usage = [](const absl::Status& status) {
    PrintError(kName, status);
    return kExitUsage;
  };
  const absl::StatusOr<FeedbackInput> input = MakeInput(flags);
  if (!input.ok()) return usage(input.status());
  const absl::StatusOr<std::unique_ptr<LineReader>> reader =
      LineReader::Open(flags.file);
  if (!reader.ok()) return usage(reader.status());
  const absl::StatusOr<std::unique_ptr<Client>> client = NewClient(globals);
  if (!client.ok()) return usage(client.status());

  Progress progress;
  int64_t sent = 0;
  absl::Status bad_row;
  std::deque<v1::Feedback> waiting;  // of the last row; it may be many
  const auto next =
      [&](v1::ImportFeedbackRequest* request) -> absl::StatusOr<bool> {
    request->set_model(globals.model);
    std::string line;
    size_t bytes = 0;
    while (request->feedback_size() < kBatch && bytes < kBatchBytes) {
      if (!waiting.empty()) {
        bytes += waiting.front().ByteSizeLong();
        *request->add_feedback() = std::move(waiting.front());
        waiting.pop_front();
        continue;
      }
      if (!(*reader)->Next(&line)) break;
      absl::StatusOr<std::vector<v1::Feedback>> entries =
          ParseFeedback(line, *input);
      if (!entries.ok()) {
        bad_row = (*reader)->At(entries.status());
        return bad_row;
      }
      for (v1::Feedback& entry : *entries) waiting.push_back(std::move(entry));
    }
    sent += request->feedback_size();
    progress.Show(sent);
    return request->feedback_size() > 0;
  };
  const absl::StatusOr<v1::ImportFeedbackResponse> response =
      (*client)->ImportFeedback(next, {.timeout = kImportTimeout});
  progress.Clear();
  if (!bad_row.ok()) return usage(bad_row);
  if (!response.ok()) {
    PrintError(kName, response.status());
    return ExitCodeOf(response.status());
  }
  Print(globals, *response, progress.elapsed());
  return response->rejected() > 0 ? kExitItemErrors : kExitOk;
}

}  // namespace

void AddLabelCommand(CLI::App& app, GlobalOptions& globals, int* exit_code) {
  CLI::App* const label =
      app.add_subcommand("label", "Store labels and shoppers' events");
  label->require_subcommand(1);
  CLI::App* const load = label->add_subcommand(
      "import", "Send a file of rows to the server's label store");
  const auto flags = std::make_shared<ImportFlags>();
  load->add_option("file", flags->file, "JSON lines, or - for standard input")
      ->required()
      ->type_name("FILE");
  load->add_option("--items", flags->items,
                   "Products that rows name by id, JSON lines")
      ->type_name("FILE");
  load->add_option("--grades", flags->grades,
                   "The grades that mean 0 and 1, in rows with query and grade")
      ->type_name("MIN:MAX")
      ->capture_default_str();
  load->add_option("--head", flags->head,
                   "The classification head that rows with text and label "
                   "are for");
  std::vector<std::string> events;
  for (const auto& [name, type] : Events()) events.push_back(name);
  load->add_option("--event", flags->event,
                   "What the shopper did, in rows with user_id and items")
      ->check(CLI::IsMember(events))
      ->capture_default_str();
  load->callback(
      [&globals, exit_code, flags] { *exit_code = Import(globals, *flags); });
  load->footer(
      R"(A row is a vitrine.v1.Feedback in protobuf's JSON form, or one of these:
  {"query", "grade", "item_id" or the item's fields}
  {"user_id", "items": [id, ..], "categories": [..]}
  {"user_id", "items": [id, ..]}
  {"text", "label"}
Rows without "feedback_id" get one by their content: to send a file again
changes nothing, and is what to do when an import was cut off.

Exits with 4 when the server rejected entries; it says which and why.

Examples:
  vitrine label import judgements.jsonl --items items.jsonl --grades 0:3
  zcat events.jsonl.gz | vitrine label import -
  vitrine label import reviews.jsonl --head spam)");
}

}  // namespace vitrine
