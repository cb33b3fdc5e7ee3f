// vitrine rank, score, interests, embed and classify.

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "client/command.h"
#include "client/input.h"
#include "client/table.h"

namespace vitrine {
namespace {

constexpr int kTextColumns = 60;
constexpr int kIdColumns = 24;

// Options that make one request. A command sets up those that it has.
struct RequestFlags {
  std::string query;
  std::vector<std::string> history;
  std::string items_file;
  std::string texts_file;
  std::vector<std::string> arguments;  // titles, or texts
  std::string requests_file;
  std::string head;
  int top_k = 0;
  float weight = -1;
  bool exclude_history = false;
  bool dry_run = false;

  bool MakeRequest() const {
    return !query.empty() || !history.empty() || !items_file.empty() ||
           !texts_file.empty() || !arguments.empty();
  }

  // Options that say how, and mean nothing without a request that says what.
  bool ChangeRequest() const {
    return !head.empty() || top_k != 0 || weight >= 0 || exclude_history;
  }
};

// The items of a request and those that --history may name by id.
struct Catalogue {
  std::vector<v1::Item> items;
  std::unordered_map<std::string, const v1::Item*> by_id;
};

absl::StatusOr<Catalogue> LoadCatalogue(const RequestFlags& flags) {
  Catalogue catalogue;
  if (flags.items_file.empty()) return catalogue;
  ASSIGN_OR_RETURN(catalogue.items, ReadItems(flags.items_file));
  for (const v1::Item& item : catalogue.items) {
    if (!item.id().empty()) catalogue.by_id.emplace(item.id(), &item);
  }
  return catalogue;
}

template <typename Request>
void AddHistory(const RequestFlags& flags, const Catalogue& catalogue,
                Request* request) {
  for (const std::string& event : flags.history) {
    v1::Item* const item = request->add_history()->mutable_item();
    const auto known = catalogue.by_id.find(event);
    if (known != catalogue.by_id.end()) {
      *item = *known->second;
    } else {
      item->set_title(event);
    }
  }
}

template <typename Request>
absl::StatusOr<Request> MakeScoring(const RequestFlags& flags) {
  ASSIGN_OR_RETURN(const Catalogue catalogue, LoadCatalogue(flags));
  Request request;
  request.mutable_context()->set_query(flags.query);
  AddHistory(flags, catalogue, request.mutable_context());
  if (flags.query.empty() && flags.history.empty()) {
    return absl::InvalidArgumentError("give --query or --history, or both");
  }
  for (const std::string& title : flags.arguments) {
    request.add_items()->set_title(title);
  }
  for (const v1::Item& item : catalogue.items) {
    bool seen = false;
    for (const std::string& event : flags.history) {
      seen = seen || (flags.exclude_history && event == item.id());
    }
    if (!seen) *request.add_items() = item;
  }
  if (request.items().empty()) {
    return absl::InvalidArgumentError(
        "nothing to score: give titles as arguments, or --items FILE");
  }
  if (flags.weight >= 0) request.set_personalization_weight(flags.weight);
  return request;
}

absl::StatusOr<v1::ScoreRequest> MakeScore(const RequestFlags& flags) {
  return MakeScoring<v1::ScoreRequest>(flags);
}

absl::StatusOr<v1::RankRequest> MakeRank(const RequestFlags& flags) {
  ASSIGN_OR_RETURN(v1::RankRequest request,
                   MakeScoring<v1::RankRequest>(flags));
  request.set_top_k(flags.top_k);
  return request;
}

absl::StatusOr<v1::PredictInterestsRequest> MakeInterests(
    const RequestFlags& flags) {
  ASSIGN_OR_RETURN(const Catalogue catalogue, LoadCatalogue(flags));
  v1::PredictInterestsRequest request;
  AddHistory(flags, catalogue, &request);
  for (const std::string& title : flags.arguments) {
    request.add_history()->mutable_item()->set_title(title);
  }
  if (request.history().empty()) {
    return absl::InvalidArgumentError("give --history, oldest first");
  }
  request.set_top_k(flags.top_k);
  return request;
}

template <typename Request>
absl::Status AddTexts(const RequestFlags& flags, Request* request) {
  for (const std::string& text : flags.arguments) request->add_texts(text);
  if (flags.texts_file.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                   ReadTexts(flags.texts_file));
  for (const std::string& text : texts) request->add_texts(text);
  return absl::OkStatus();
}

absl::StatusOr<v1::EmbedRequest> MakeEmbed(const RequestFlags& flags) {
  ASSIGN_OR_RETURN(const Catalogue catalogue, LoadCatalogue(flags));
  v1::EmbedRequest request;
  RETURN_IF_ERROR(AddTexts(flags, &request));
  for (const v1::Item& item : catalogue.items) *request.add_items() = item;
  return request;
}

absl::StatusOr<v1::ClassifyRequest> MakeClassify(const RequestFlags& flags) {
  v1::ClassifyRequest request;
  RETURN_IF_ERROR(AddTexts(flags, &request));
  if (request.texts().empty()) {
    return absl::InvalidArgumentError(
        "nothing to label: give texts as arguments, or --texts FILE");
  }
  request.set_head(flags.head);
  request.set_top_k(flags.top_k);
  return request;
}

std::string ErrorOf(const google::rpc::Status& error) {
  return absl::StrCat(
      "error: ",
      Printable(absl::StrCat(absl::StatusCodeToString(
                                 static_cast<absl::StatusCode>(error.code())),
                             " ", error.message()),
                kTextColumns));
}

std::string Note(bool truncated) { return truncated ? "cut" : ""; }

std::string Milliseconds(const google::protobuf::Duration& duration) {
  return absl::StrFormat("%.1f",
                         duration.seconds() * 1e3 + duration.nanos() * 1e-6);
}

template <typename Response>
void PrintFooter(const Response& response, absl::Duration elapsed) {
  const v1::Timings& timings = response.timings();
  absl::PrintF(
      "\nmodel %s version %s, %.1f ms (server %s: queue %s, tokenize %s, "
      "compute %s)\n",
      Printable(response.model().name()), Printable(response.model().version()),
      absl::ToDoubleMilliseconds(elapsed), Milliseconds(timings.total()),
      Milliseconds(timings.queue()), Milliseconds(timings.tokenize()),
      Milliseconds(timings.compute()));
}

// Score and Rank. `ranked`: the first column is the rank.
template <typename Request, typename Response>
void PrintScored(const Request& request, const Response& response,
                 bool ranked) {
  Table table;
  table.AddColumn(ranked ? "rank" : "item", Table::kRight);
  table.AddColumn("score", Table::kRight);
  table.AddColumn("relevance", Table::kRight);
  table.AddColumn("personal", Table::kRight);
  table.AddColumn("id");
  table.AddColumn("title");
  table.AddColumn("note");
  int rank = 0;
  for (const v1::ScoredItem& item : response.items()) {
    ++rank;
    std::vector<std::string> row;
    const bool both = item.has_relevance() && item.has_personalization();
    const auto number = [](bool set, float value) {
      return set ? absl::StrFormat("%.4f", value) : std::string();
    };
    row.push_back(absl::StrCat(ranked ? rank : item.index() + 1));
    row.push_back(number(!item.has_error(), item.score()));
    row.push_back(number(both, item.relevance()));
    row.push_back(number(both, item.personalization()));
    row.push_back(Printable(item.item_id(), kIdColumns));
    row.push_back(
        item.index() >= 0 && item.index() < request.items_size()
            ? Printable(request.items(item.index()).title(), kTextColumns)
            : "");
    row.push_back(item.has_error() ? ErrorOf(item.error())
                                   : Note(item.truncated()));
    table.AddRow(std::move(row));
  }
  absl::PrintF("%s", table.ToString());
}

void Print(const v1::ScoreRequest& request, const v1::ScoreResponse& response) {
  PrintScored(request, response, /*ranked=*/false);
}

void Print(const v1::RankRequest& request, const v1::RankResponse& response) {
  PrintScored(request, response, /*ranked=*/true);
}

void Print(const v1::PredictInterestsRequest&,
           const v1::PredictInterestsResponse& response) {
  Table table;
  table.AddColumn("probability", Table::kRight);
  table.AddColumn("category");
  for (const v1::Interest& interest : response.interests()) {
    table.AddRow({absl::StrFormat("%.4f", interest.probability()),
                  Printable(interest.category())});
  }
  absl::PrintF("%s", table.ToString());
}

void Print(const v1::EmbedRequest& request, const v1::EmbedResponse& response) {
  constexpr int kValuesShown = 6;
  Table table;
  table.AddColumn("text");
  table.AddColumn("width", Table::kRight);
  table.AddColumn("vector");
  table.AddColumn("note");
  for (int i = 0; i < response.embeddings_size(); ++i) {
    const v1::Embedding& embedding = response.embeddings(i);
    const int item = i - request.texts_size();
    std::string text;
    if (item < 0) {
      text = request.texts(i);
    } else if (item < request.items_size()) {
      text = request.items(item).title();
    }
    std::string values;
    for (int v = 0; v < embedding.values_size() && v < kValuesShown; ++v) {
      absl::StrAppendFormat(&values, "%s%.3f", v == 0 ? "" : " ",
                            embedding.values(v));
    }
    if (embedding.values_size() > kValuesShown) values += " …";
    table.AddRow({Printable(text, kTextColumns),
                  absl::StrCat(embedding.values_size()), values,
                  embedding.has_error() ? ErrorOf(embedding.error())
                                        : Note(embedding.truncated())});
  }
  absl::PrintF("%s", table.ToString());
}

void Print(const v1::ClassifyRequest& request,
           const v1::ClassifyResponse& response) {
  Table table;
  table.AddColumn("text");
  table.AddColumn("energy", Table::kRight);
  table.AddColumn("labels");
  table.AddColumn("note");
  for (int i = 0; i < response.results_size(); ++i) {
    const v1::Classification& result = response.results(i);
    std::vector<std::string> labels;
    for (const v1::LabelProbability& label : result.labels()) {
      labels.push_back(absl::StrFormat("%s %.4f", Printable(label.label()),
                                       label.probability()));
    }
    table.AddRow(
        {i < request.texts_size() ? Printable(request.texts(i), kTextColumns)
                                  : "",
         result.has_error() ? "" : absl::StrFormat("%.2f", result.energy()),
         absl::StrJoin(labels, ", "),
         result.has_error() ? ErrorOf(result.error())
                            : Note(result.truncated())});
  }
  absl::PrintF("%s", table.ToString());
}

template <typename Rows>
bool AnyError(const Rows& rows) {
  for (const auto& row : rows) {
    if (row.has_error()) return true;
  }
  return false;
}
bool HasItemErrors(const v1::ScoreResponse& r) { return AnyError(r.items()); }
bool HasItemErrors(const v1::RankResponse& r) { return AnyError(r.items()); }
bool HasItemErrors(const v1::PredictInterestsResponse&) { return false; }
bool HasItemErrors(const v1::EmbedResponse& r) {
  return AnyError(r.embeddings());
}
bool HasItemErrors(const v1::ClassifyResponse& r) {
  return AnyError(r.results());
}

// A failed call's line of --json output, so that lines match requests.
void PrintJsonError(const absl::Status& status) {
  google::rpc::Status error;
  error.set_code(static_cast<int>(status.code()));
  error.set_message(std::string(status.message()));
  absl::PrintF("{\"error\":%s}\n", ToJsonLine(error));
}

template <typename Request, typename Response>
class InferenceCommand {
 public:
  using Make = absl::StatusOr<Request> (*)(const RequestFlags&);
  using Method = absl::StatusOr<Response> (Client::*)(const Request&,
                                                      const CallOptions&) const;

  InferenceCommand(CLI::App* app, GlobalOptions& globals, Make make,
                   Method method, int* exit_code)
      : name_(app->get_name()),
        globals_(globals),
        make_(make),
        method_(method),
        exit_code_(exit_code) {
    app->add_option("--requests", flags.requests_file,
                    "Requests in JSON, one a line; \"-\": standard input, "
                    "which is also read where no request is given by options")
        ->type_name("FILE");
    app->add_flag("--dry-run", flags.dry_run,
                  "Print the request as JSON, as --requests reads it, and "
                  "send nothing");
  }

  void Run() { *exit_code_ = RunAll(); }

  RequestFlags flags;

 private:
  ExitCode RunAll() {
    absl::StatusOr<std::unique_ptr<Client>> client = NewClient(globals_);
    if (!client.ok()) return UsageError(client.status());
    if (flags.MakeRequest()) {
      if (!flags.requests_file.empty()) {
        return UsageError(absl::InvalidArgumentError(
            "--requests and a request given by options"));
      }
      absl::StatusOr<Request> request = make_(flags);
      if (!request.ok()) return UsageError(request.status());
      return RunOne(**client, *std::move(request));
    }
    if (flags.requests_file.empty() && isatty(STDIN_FILENO)) {
      return UsageError(absl::InvalidArgumentError(
          absl::StrCat("nothing to do; try vitrine ", name_, " --help")));
    }
    if (flags.ChangeRequest()) {
      return UsageError(absl::InvalidArgumentError(
          "--top-k, --weight, --head and --exclude-history go with a request "
          "given by options; requests read as JSON have fields for them"));
    }
    return RunLines(**client);
  }

  ExitCode RunLines(Client& client) {
    const auto reader = LineReader::Open(
        flags.requests_file.empty() ? "-" : flags.requests_file);
    if (!reader.ok()) return UsageError(reader.status());
    const google::protobuf::MethodDescriptor* method = *FindMethod(name_);
    ExitCode worst = kExitOk;
    int64_t lines = 0;
    std::string line;
    while ((*reader)->Next(&line)) {
      absl::StatusOr<AnyRequest> request = ParseRequest(line, method);
      if (!request.ok()) return UsageError((*reader)->At(request.status()));
      if (lines++ > 0 && !globals_.json && !flags.dry_run) absl::PrintF("\n");
      const ExitCode code =
          RunOne(client, std::move(static_cast<Request&>(*request->message)));
      std::fflush(stdout);
      if (code == kExitUnavailable) return code;  // so would the rest be
      if (worst == kExitOk || code == kExitCallFailed) worst = code;
    }
    if (lines == 0) {
      return UsageError(absl::InvalidArgumentError("no requests in the input"));
    }
    return worst;
  }

  ExitCode RunOne(Client& client, Request request) {
    if (!request.has_model() &&
        !(globals_.model.empty() && globals_.model_version.empty())) {
      request.mutable_model()->set_name(globals_.model);
      request.mutable_model()->set_version(globals_.model_version);
    }
    if (flags.dry_run) {
      absl::PrintF("%s\n", ToJsonLine(request, /*zeros=*/false));
      return kExitOk;
    }
    const absl::Time start = absl::Now();
    const absl::StatusOr<Response> response =
        (client.*method_)(request, CallOptions());
    const absl::Duration elapsed = absl::Now() - start;
    if (!response.ok()) {
      if (globals_.json) PrintJsonError(response.status());
      PrintError(name_, response.status());
      return ExitCodeOf(response.status());
    }
    if (globals_.json) {
      absl::PrintF("%s\n", ToJsonLine(*response));
    } else {
      Print(request, *response);
      PrintFooter(*response, elapsed);
    }
    return HasItemErrors(*response) ? kExitItemErrors : kExitOk;
  }

  ExitCode UsageError(const absl::Status& status) {
    PrintError(name_, status);
    return kExitUsage;
  }

  const std::string name_;
  const GlobalOptions& globals_;
  const Make make_;
  const Method method_;
  int* const exit_code_;
};

// The command lives as long as the callback that owns it.
template <typename Request, typename Response>
RequestFlags& AddCommand(CLI::App* app, GlobalOptions& globals,
                         absl::StatusOr<Request> (*make)(const RequestFlags&),
                         absl::StatusOr<Response> (Client::*method)(
                             const Request&, const CallOptions&) const,
                         int* exit_code) {
  auto command = std::make_shared<InferenceCommand<Request, Response>>(
      app, globals, make, method, exit_code);
  app->callback([command] { command->Run(); });
  return command->flags;
}

void AddHistoryOptions(CLI::App* app, RequestFlags& flags) {
  app->add_option("--history", flags.history,
                  "A product of the shopper's past, oldest first; repeat it. A "
                  "title, or the id of an item in --items")
      ->type_name("TITLE|ID")
      ->allow_extra_args(false);
}

void AddItemsOption(CLI::App* app, RequestFlags& flags, const char* help) {
  app->add_option("--items", flags.items_file, help)->type_name("FILE");
}

void AddScoringOptions(CLI::App* app, RequestFlags& flags) {
  app->add_option("titles", flags.arguments, "Items, by their titles");
  app->add_option("-q,--query", flags.query, "What the shopper typed");
  AddHistoryOptions(app, flags);
  AddItemsOption(app, flags,
                 "Items in JSON, one a line: {\"id\", \"title\", \"brand\", "
                 "\"description\", \"categories\", \"attributes\"}");
  app->add_option("--weight", flags.weight,
                  "With a query and a history: the history's share of the "
                  "score, 0 to 1 (default: the server's)")
      ->check(CLI::Range(0.0, 1.0));
  app->add_flag("--exclude-history", flags.exclude_history,
                "Leave out the items of --items that --history names");
}

void AddTopK(CLI::App* app, RequestFlags& flags, const char* help) {
  app->add_option("-k,--top-k", flags.top_k, help)
      ->check(CLI::NonNegativeNumber);
}

}  // namespace

void AddInferenceCommands(CLI::App& app, GlobalOptions& globals,
                          int* exit_code) {
  CLI::App* const rank = app.add_subcommand(
      "rank", "Order items for a query, a shopper's history, or both");
  RequestFlags& rank_flags =
      AddCommand(rank, globals, &MakeRank, &Client::Rank, exit_code);
  AddScoringOptions(rank, rank_flags);
  AddTopK(rank, rank_flags, "Only the best K (default: all)");
  rank->footer(R"(Examples:
  # Two titles for a query
  vitrine rank -q "red sofa" "Two-seat couch, crimson" "Oak coffee table"
  # The ten best of a catalogue for a query and a history
  vitrine rank -q "red sofa" --history B0012 --history "Floor lamp, brass" \
      --items items.jsonl --top-k 10
  # Requests in, answers out, a line each
  echo '{"context":{"query":"sofa"},"items":[{"id":"1","title":"Couch"}]}' |
      vitrine rank --json
  # Just the ids, best first
  vitrine rank -q sofa --items items.jsonl --json | jq -r '.items[].item_id')");

  CLI::App* const score = app.add_subcommand(
      "score", "Score items against a query, a history, or both, in order");
  RequestFlags& score_flags =
      AddCommand(score, globals, &MakeScore, &Client::Score, exit_code);
  AddScoringOptions(score, score_flags);
  score->footer(R"(Examples:
  vitrine score -q "red sofa" "Two-seat couch, crimson" "Oak coffee table"
  vitrine score -q "red sofa" --items items.jsonl --json
  vitrine score --requests requests.jsonl --json > answers.jsonl)");

  CLI::App* const interests = app.add_subcommand(
      "interests", "Predict the categories that a shopper is interested in");
  RequestFlags& interests_flags = AddCommand(
      interests, globals, &MakeInterests, &Client::PredictInterests, exit_code);
  interests->add_option("titles", interests_flags.arguments,
                        "More of the history, by titles");
  AddHistoryOptions(interests, interests_flags);
  AddItemsOption(interests, interests_flags,
                 "Items in JSON, one a line, where --history finds ids");
  AddTopK(interests, interests_flags, "Only the likeliest K (default: all)");
  interests->footer(R"(Examples:
  vitrine interests "Running shoes" "Yoga mat" "Water bottle, steel"
  vitrine interests --history B0012 --history B0044 --items items.jsonl -k 5)");

  CLI::App* const embed =
      app.add_subcommand("embed", "Turn texts or items into unit vectors");
  RequestFlags& embed_flags =
      AddCommand(embed, globals, &MakeEmbed, &Client::Embed, exit_code);
  embed->add_option("texts", embed_flags.arguments, "Texts");
  embed
      ->add_option("--texts", embed_flags.texts_file,
                   "Texts, one a line; \"-\": standard input")
      ->type_name("FILE");
  AddItemsOption(embed, embed_flags, "Items in JSON, one a line");
  embed->footer(R"(Examples:
  vitrine embed "red sofa" "crimson couch"
  vitrine embed --items items.jsonl --json |
      jq -c '.embeddings[] | [.item_id, .values]')");

  CLI::App* const classify =
      app.add_subcommand("classify", "Label texts with a classification head");
  RequestFlags& classify_flags = AddCommand(classify, globals, &MakeClassify,
                                            &Client::Classify, exit_code);
  classify->add_option("texts", classify_flags.arguments, "Texts");
  classify
      ->add_option("--texts", classify_flags.texts_file,
                   "Texts, one a line; \"-\": standard input")
      ->type_name("FILE");
  classify->add_option("--head", classify_flags.head,
                       "The head's name (default: the only one)");
  AddTopK(classify, classify_flags, "Only the likeliest K labels of each text");
  classify->footer(R"(Examples:
  vitrine classify "Great value, works as described" "Click here to win"
  vitrine classify --head spam --texts comments.txt --top-k 1 --json)");
}

}  // namespace vitrine
