// vitrine bench.

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "client/command.h"
#include "client/input.h"
#include "client/load_generator.h"

namespace vitrine {
namespace {

constexpr char kName[] = "bench";

struct BenchFlags {
  LoadOptions load;
  std::string arrivals = "poisson";
  std::string warmup = "1s";
  std::string duration = "10s";
  bool retry = false;
  std::string requests_file;
  std::string method;
  std::string queries_file;
  std::string items_file;
  int items_per_call = 10;
};

volatile std::sig_atomic_t interrupted = 0;

// The first interrupt ends the run; a second one the process.
void OnInterrupt(int) {
  interrupted = 1;
  std::signal(SIGINT, SIG_DFL);
}

absl::StatusOr<std::vector<AnyRequest>> ReadRequests(const BenchFlags& flags) {
  const google::protobuf::MethodDescriptor* method = nullptr;
  if (!flags.method.empty()) {
    ASSIGN_OR_RETURN(method, FindMethod(flags.method));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<LineReader> reader,
                   LineReader::Open(flags.requests_file));
  std::vector<AnyRequest> requests;
  std::string line;
  while (reader->Next(&line)) {
    absl::StatusOr<AnyRequest> request = ParseRequest(line, method);
    if (!request.ok()) return reader->At(request.status());
    requests.push_back(*std::move(request));
  }
  if (requests.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.requests_file, ": empty"));
  }
  return requests;
}

// As many requests as show every query and every item once at least: request
// n has query n and the next items_per_call items, both from the start again
// where they end.
template <typename Request>
std::vector<AnyRequest> MakeRequests(
    const google::protobuf::MethodDescriptor* method,
    const std::vector<std::string>& queries, const std::vector<v1::Item>& items,
    size_t per_call) {
  const size_t calls =
      std::max(queries.size(), (items.size() + per_call - 1) / per_call);
  std::vector<AnyRequest> requests(calls);
  for (size_t n = 0; n < calls; ++n) {
    auto request = std::make_unique<Request>();
    if constexpr (!std::is_same_v<Request, v1::EmbedRequest>) {
      request->mutable_context()->set_query(queries[n % queries.size()]);
    }
    for (size_t i = 0; i < per_call; ++i) {
      *request->add_items() = items[(n * per_call + i) % items.size()];
    }
    requests[n].method = method;
    requests[n].message = std::move(request);
  }
  return requests;
}

absl::StatusOr<std::vector<AnyRequest>> SynthesizeRequests(
    const BenchFlags& flags) {
  ASSIGN_OR_RETURN(const google::protobuf::MethodDescriptor* const method,
                   FindMethod(flags.method.empty() ? "Rank" : flags.method));
  if (flags.items_file.empty()) {
    return absl::InvalidArgumentError(
        "give --requests FILE, or --items FILE with --queries FILE");
  }
  ASSIGN_OR_RETURN(const std::vector<v1::Item> items,
                   ReadItems(flags.items_file));
  const size_t per_call = flags.items_per_call;
  // The server runs equal items of a call once: repeated ones would count as
  // work that nobody does.
  if (per_call > items.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--items-per-call ", per_call, " > the ", items.size(),
                     " items of ", flags.items_file));
  }
  if (method->name() == "Embed") {
    return MakeRequests<v1::EmbedRequest>(method, {""}, items, per_call);
  }
  if (method->name() != "Rank" && method->name() != "Score") {
    return absl::InvalidArgumentError(absl::StrCat(
        "requests for ", method->name(), " come from --requests FILE only"));
  }
  if (flags.queries_file.empty()) {
    return absl::InvalidArgumentError("give --queries FILE with --items");
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> queries,
                   ReadQueries(flags.queries_file));
  return method->name() == "Rank"
             ? MakeRequests<v1::RankRequest>(method, queries, items, per_call)
             : MakeRequests<v1::ScoreRequest>(method, queries, items, per_call);
}

// --model and --model-version, where a request names none.
void SetModel(const GlobalOptions& globals, AnyRequest* request) {
  if (globals.model.empty() && globals.model_version.empty()) return;
  google::protobuf::Message& message = *request->message;
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const google::protobuf::FieldDescriptor* const field =
      message.GetDescriptor()->FindFieldByName("model");
  if (reflection.HasField(message, field)) return;
  v1::ModelSpec spec;
  spec.set_name(globals.model);
  spec.set_version(globals.model_version);
  reflection.MutableMessage(&message, field)->CopyFrom(spec);
}

absl::Status ResolveLoad(const GlobalOptions& globals, BenchFlags* flags) {
  LoadOptions& load = flags->load;
  ASSIGN_OR_RETURN(load.client, ResolveClientOptions(globals));
  if (!flags->retry) load.client.retry.max_attempts = 1;
  load.poisson = flags->arrivals == "poisson";
  const absl::StatusOr<absl::Duration> duration = ParseTimeout(flags->duration);
  if (!duration.ok()) return Annotate(duration.status(), "--duration");
  load.duration = *duration;
  load.warmup = absl::ZeroDuration();
  if (flags->warmup != "0" && flags->warmup != "0s") {
    const absl::StatusOr<absl::Duration> warmup = ParseTimeout(flags->warmup);
    if (!warmup.ok()) return Annotate(warmup.status(), "--warmup");
    load.warmup = *warmup;
  }
  return absl::OkStatus();
}

void PrintProgress(const LoadProgress& progress) {
  absl::FPrintF(stderr,
                "\r%5.0f s  %d ok  %d errors  %.1f calls/s  p50 %.1f ms  "
                "p99 %.1f ms\033[K",
                absl::ToDoubleSeconds(progress.elapsed), progress.ok,
                progress.errors, progress.calls_per_second,
                absl::ToDoubleMilliseconds(progress.p50),
                absl::ToDoubleMilliseconds(progress.p99));
  std::fflush(stderr);
}

using Quantiles = std::vector<std::pair<const char*, double>>;

// Milliseconds by name, in the order in which they are printed.
Quantiles QuantilesOf(const Histogram& histogram) {
  const auto ms = [](absl::Duration d) {
    return absl::ToDoubleMilliseconds(d);
  };
  return {{"mean", ms(histogram.mean())},
          {"p50", ms(histogram.Quantile(0.5))},
          {"p90", ms(histogram.Quantile(0.9))},
          {"p99", ms(histogram.Quantile(0.99))},
          {"p99.9", ms(histogram.Quantile(0.999))},
          {"max", ms(histogram.max())}};
}

Quantiles ServerMeans(const LoadReport& report) {
  const auto ms = [](absl::Duration d) {
    return absl::ToDoubleMilliseconds(d);
  };
  return {{"queue", ms(report.server_queue)},
          {"tokenize", ms(report.server_tokenize)},
          {"compute", ms(report.server_compute)},
          {"total", ms(report.server_total)}};
}

std::string MethodsOf(const std::vector<AnyRequest>& requests) {
  std::map<std::string, int> methods;
  for (const AnyRequest& request : requests) ++methods[request.method->name()];
  return absl::StrJoin(methods, "+", [](std::string* out, const auto& method) {
    out->append(method.first);
  });
}

void PrintJson(const LoadOptions& load, const std::string& methods,
               const LoadReport& report) {
  using json = nlohmann::ordered_json;
  const double seconds = absl::ToDoubleSeconds(report.window);
  const auto round = [](double value) { return std::round(value * 1e4) / 1e4; };
  const auto object = [&](const Quantiles& values) {
    json out = json::object();
    for (const auto& [name, value] : values) out[name] = round(value);
    return out;
  };
  json errors = json::object();
  int64_t failed = 0;
  for (const auto& [code, count] : report.errors) {
    errors[absl::StatusCodeToString(code)] = count;
    failed += count;
  }
  json line;
  line["target"] = load.client.target;
  line["method"] = methods;
  line["model"] = report.model_name;
  line["model_version"] = report.model_version;
  line["loop"] = load.rate > 0 ? "open" : "closed";
  if (load.rate > 0) {
    line["rate"] = load.rate;
    line["arrivals"] = load.poisson ? "poisson" : "uniform";
    line["not_started"] = report.not_started;
    line["start_lag_p99_ms"] =
        round(absl::ToDoubleMilliseconds(report.start_lag.Quantile(0.99)));
  } else {
    line["callers"] = load.callers;
  }
  line["connections"] = load.connections;
  line["seconds"] = round(seconds);
  line["ok"] = report.ok;
  line["failed"] = failed;
  line["errors"] = errors;
  line["item_errors"] = report.item_errors;
  line["calls_per_s"] = round(seconds > 0 ? report.calls / seconds : 0);
  line["items_per_s"] = round(seconds > 0 ? report.items / seconds : 0);
  line["latency_ms"] = object(QuantilesOf(report.latency));
  line["server_ms"] = object(ServerMeans(report));
  line["client_cores"] = round(report.client_cores);
  absl::PrintF("%s\n",
               line.dump(-1, ' ', false, json::error_handler_t::replace));
}

void PrintTable(const LoadOptions& load, const std::string& methods,
                const LoadReport& report) {
  const double seconds = absl::ToDoubleSeconds(report.window);
  const auto join = [](const Quantiles& values) {
    return absl::StrJoin(values, "  ", [](std::string* out, const auto& v) {
      absl::StrAppendFormat(out, "%s %.2f", v.first, v.second);
    });
  };
  absl::PrintF("target      %s, model %s version %s\n", load.client.target,
               report.model_name, report.model_version);
  if (load.rate > 0) {
    absl::PrintF("load        %s, open loop, %g calls/s (%s), %.1f s\n",
                 methods, load.rate, load.poisson ? "poisson" : "uniform",
                 seconds);
  } else {
    absl::PrintF("load        %s, closed loop, %d callers, %.1f s\n", methods,
                 load.callers, seconds);
  }
  absl::PrintF("calls       %d ok", report.ok);
  for (const auto& [code, count] : report.errors) {
    absl::PrintF(", %d %s", count, absl::StatusCodeToString(code));
  }
  if (report.not_started > 0) {
    absl::PrintF(", %d not started (--max-outstanding)", report.not_started);
  }
  if (report.item_errors > 0) {
    absl::PrintF("; %d items with errors", report.item_errors);
  }
  absl::PrintF("\nthroughput  %.1f calls/s, %.1f items/s\n",
               seconds > 0 ? report.calls / seconds : 0,
               seconds > 0 ? report.items / seconds : 0);
  absl::PrintF("latency ms  %s\n", join(QuantilesOf(report.latency)));
  absl::PrintF("server ms   %s\n", join(ServerMeans(report)));
  if (load.rate > 0) {
    absl::PrintF("start lag   p99 %.2f ms (time from due to sent)\n",
                 absl::ToDoubleMilliseconds(report.start_lag.Quantile(0.99)));
  }
  absl::PrintF("client      %.2f cores\n", report.client_cores);
}

ExitCode RunBench(const GlobalOptions& globals, BenchFlags flags) {
  absl::Status status = ResolveLoad(globals, &flags);
  absl::StatusOr<std::vector<AnyRequest>> requests =
      status.ok() ? flags.requests_file.empty() ? SynthesizeRequests(flags)
                                                : ReadRequests(flags)
                  : status;
  if (!requests.ok()) {
    PrintError(kName, requests.status());
    return kExitUsage;
  }
  for (AnyRequest& request : *requests) SetModel(globals, &request);
  const auto generator = NewLoadGenerator(*requests, flags.load);
  if (!generator.ok()) {
    PrintError(kName, generator.status());
    return kExitUsage;
  }
  const std::string methods = MethodsOf(*requests);
  requests->clear();
  std::signal(SIGINT, OnInterrupt);
  const bool terminal = isatty(STDERR_FILENO);
  const absl::StatusOr<LoadReport> report =
      (*generator)
          ->Run([] { return interrupted != 0; },
                terminal ? PrintProgress
                         : std::function<void(const LoadProgress&)>());
  std::signal(SIGINT, SIG_DFL);
  if (terminal) absl::FPrintF(stderr, "\r\033[K");
  if (!report.ok()) {
    PrintError(kName, report.status());
    return ExitCodeOf(report.status());
  }
  if (globals.json) {
    PrintJson(flags.load, methods, *report);
  } else {
    PrintTable(flags.load, methods, *report);
  }
  if (!report->first_error.ok()) PrintError(kName, report->first_error);
  if (report->ok == 0) {
    return report->first_error.ok() ? kExitCallFailed
                                    : ExitCodeOf(report->first_error);
  }
  return report->item_errors > 0 ? kExitItemErrors : kExitOk;
}

}  // namespace

void AddBenchCommand(CLI::App& app, GlobalOptions& globals, int* exit_code) {
  CLI::App* const bench = app.add_subcommand(
      kName, "Put load on a server; print throughput and latency");
  auto flags = std::make_shared<BenchFlags>();
  LoadOptions& load = flags->load;
  const char* const group = "Load";
  bench
      ->add_option("-c,--callers", load.callers,
                   "Closed loop: so many callers, each with one call at a time")
      ->capture_default_str()
      ->group(group);
  bench
      ->add_option("--rate", load.rate,
                   "Open loop: calls a second, started whatever the server "
                   "does; latency counts from when a call was due")
      ->type_name("R")
      ->group(group);
  bench->add_option("--arrivals", flags->arrivals, "Of the open loop")
      ->check(CLI::IsMember({"poisson", "uniform"}))
      ->capture_default_str()
      ->group(group);
  bench
      ->add_option("--max-outstanding", load.max_outstanding,
                   "Open loop: more calls wait here; their clock runs")
      ->capture_default_str()
      ->group(group);
  bench->add_option("--seed", load.seed, "Of the Poisson arrivals")
      ->capture_default_str()
      ->group(group);
  bench->add_option("--connections", load.connections, "Connections")
      ->capture_default_str()
      ->group(group);
  bench
      ->add_option("--warmup", flags->warmup,
                   "Time before measuring begins; 0: none")
      ->capture_default_str()
      ->group(group);
  bench->add_option("--duration", flags->duration, "Time measured")
      ->capture_default_str()
      ->group(group);
  bench
      ->add_option("--requests-total", load.max_calls,
                   "Measure so many calls, in place of --duration")
      ->group(group);
  bench
      ->add_flag("--retry", flags->retry,
                 "Try refused calls again, as the other commands do")
      ->group(group);
  const char* const input = "Requests";
  bench
      ->add_option("--requests", flags->requests_file,
                   "Requests in JSON, one a line, with \"method\", or all for "
                   "--method; sent in turn")
      ->type_name("FILE")
      ->group(input);
  bench
      ->add_option("--method", flags->method,
                   "Rank (default), Score, PredictInterests, Embed, Classify")
      ->group(input);
  bench
      ->add_option("--queries", flags->queries_file,
                   "Queries, one a line, plain or JSON with \"query\"")
      ->type_name("FILE")
      ->group(input);
  bench->add_option("--items", flags->items_file, "Items in JSON, one a line")
      ->type_name("FILE")
      ->group(input);
  bench
      ->add_option("--items-per-call", flags->items_per_call,
                   "With --items: each call takes the next so many")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(input);
  bench->callback(
      [flags, &globals, exit_code] { *exit_code = RunBench(globals, *flags); });
  bench->footer(
      R"(Latencies are of answered calls; --timeout bounds each. Calls and items per
second count what was answered in the measured time. An interrupt (^C) prints
what there is. Exits with 0 when any call was answered, whatever the others did,
and with 4 when items had errors of their own.

Examples:
  # 8 callers, 100 items a call, for 30 seconds
  vitrine bench -c 8 --queries queries.txt --items items.jsonl \
      --items-per-call 100 --duration 30s
  # 50 calls a second, Poisson arrivals
  vitrine bench --rate 50 --requests requests.jsonl
  # Make such requests
  vitrine rank -q sofa --items items.jsonl --dry-run > requests.jsonl
  vitrine bench --method rank --requests requests.jsonl --json)");
}

}  // namespace vitrine
