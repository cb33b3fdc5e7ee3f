// Times an engine on real token sequences: sorted by length and in batches of
// --batch sequences or --batch-tokens tokens, or one at a time with --single.
// Prints one JSON line.
//
//   engine_bench --model FOLDER --ids IDS.jsonl --engine torch --dtype bf16

#include <stdio.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/openmp.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

struct Options {
  std::string model, ids, engine = "torch", device = "auto", dtype = "fp32";
  std::string logits;
  int batch = 32;
  int batch_tokens = 0;  // 0: by `batch`
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int rounds = 3;
  int warmup_rounds = 0;
  bool single = false;
};

absl::StatusOr<std::vector<Encoding>> ReadSequences(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::istringstream lines(text);
  std::vector<Encoding> out;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    try {
      const nlohmann::json row = nlohmann::json::parse(line);
      Encoding encoding;
      row.at("ids").get_to(encoding.ids);
      if (row.contains("type_ids")) {
        row.at("type_ids").get_to(encoding.segment_ids);
      }
      encoding.segment_ids.resize(encoding.ids.size());
      out.push_back(std::move(encoding));
    } catch (const std::exception& e) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", e.what()));
    }
  }
  if (out.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no sequences"));
  }
  return out;
}

// The engine with one head: the checkpoint's own, the first of the manifest,
// or a plain embedding where there is neither.
absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const Options& options) {
  internal::Manifest manifest;
  const std::string manifest_path =
      JoinPath(options.model, "manifest.textproto");
  if (PathExists(manifest_path)) {
    RETURN_IF_ERROR(ReadSealedTextProto(manifest_path, &manifest));
  }
  std::vector<internal::Head> heads(manifest.heads().begin(),
                                    manifest.heads().end());
  ASSIGN_OR_RETURN(Checkpoint checkpoint, LoadCheckpoint(options.model, heads));
  if (heads.empty()) {
    ASSIGN_OR_RETURN(const std::vector<ImportedHead> imported,
                     HeadsOfHuggingFaceFolder(options.model));
    AddHeads(imported, &checkpoint);
    for (const ImportedHead& head : imported) heads.push_back(head.head);
  }
  if (heads.empty()) {
    heads.emplace_back();
    heads[0].set_name("embedding");
    heads[0].set_kind(internal::HEAD_KIND_RECOMMENDATION);
    heads[0].set_pooling(internal::POOLING_MEAN);
  }
  heads.resize(1);
  EngineOptions wanted;
  wanted.kind = options.engine == "onednn" ? internal::ENGINE_KIND_ONEDNN
                                           : internal::ENGINE_KIND_TORCH;
  wanted.device = options.device == "cpu"    ? internal::DEVICE_CPU
                  : options.device == "cuda" ? internal::DEVICE_CUDA
                                             : internal::DEVICE_AUTO;
  wanted.dtype = options.dtype == "auto"   ? internal::DTYPE_AUTO
                 : options.dtype == "fp32" ? internal::DTYPE_FP32
                 : options.dtype == "bf16" ? internal::DTYPE_BF16
                 : options.dtype == "fp16" ? internal::DTYPE_FP16
                                           : internal::DTYPE_INT8;
  if (manifest.has_quantization()) {
    wanted.quantization = &manifest.quantization();
  }
  wanted.inner_threads = options.threads;
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                   NewEngine(checkpoint, heads, wanted));
  // A figure under another's name is worse than none.
  if (engine->name() != options.engine ||
      (options.dtype != "auto" && engine->dtype() != options.dtype)) {
    return absl::FailedPreconditionError(
        absl::StrCat("no ", options.engine, " engine in ", options.dtype,
                     " here: got ", engine->name(), " in ", engine->dtype()));
  }
  return engine;
}

// A line of /proc/self/status in MiB, such as VmRSS; 0 where there is none.
double StatusMib(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != field + ":") continue;
    double kib = 0;
    status >> kib;
    return kib / 1024;
  }
  return 0;
}

double Rounded(double value, int digits) {
  const double scale = std::pow(10, digits);
  return std::round(value * scale) / scale;
}

absl::Status WriteLogits(const std::string& path,
                         const std::vector<std::vector<float>>& logits) {
  std::string text;
  for (const std::vector<float>& row : logits) {
    absl::StrAppend(&text, nlohmann::json{{"logits", row}}.dump(), "\n");
  }
  return WriteFile(path, text);
}

absl::Status Bench(const Options& options) {
  ASSIGN_OR_RETURN(const std::vector<Encoding> sequences,
                   ReadSequences(options.ids));
  const double start_mib = StatusMib("VmRSS");
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, LoadEngine(options));

  const double loaded_mib = StatusMib("VmRSS");

  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  if (!options.single) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return sequences[a].ids.size() < sequences[b].ids.size();
    });
  }
  const auto full = [&options](const Batch& batch, const Encoding& next) {
    if (options.single) return true;
    if (options.batch_tokens == 0) return batch.sequences() >= options.batch;
    return batch.tokens() + static_cast<int64_t>(next.ids.size()) >
           options.batch_tokens;
  };
  std::vector<Batch> batches;
  int64_t tokens = 0;
  for (const size_t i : order) {
    if (batches.empty() || full(batches.back(), sequences[i])) {
      batches.emplace_back();
    }
    batches.back().Add(sequences[i], 1);
    tokens += static_cast<int64_t>(sequences[i].ids.size());
  }

  for (size_t i = 0; i < std::min<size_t>(3, batches.size()); ++i) {
    RETURN_IF_ERROR(engine->Run(batches[i]).status());
  }
  for (int round = 0; round < options.warmup_rounds; ++round) {
    for (const Batch& batch : batches) {
      RETURN_IF_ERROR(engine->Run(batch).status());
    }
  }
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  std::vector<double> rounds, each_ms;
  std::vector<std::vector<float>> logits(sequences.size());
  for (int round = 0; round < options.rounds; ++round) {
    const Clock::time_point start = Clock::now();
    auto next = order.begin();
    for (const Batch& batch : batches) {
      const Clock::time_point call = Clock::now();
      ASSIGN_OR_RETURN(const Outputs outputs, engine->Run(batch));
      each_ms.push_back(seconds_since(call) * 1e3);
      if (round > 0) continue;
      for (int s = 0; s < batch.sequences(); ++s) {
        const absl::Span<const float> row = outputs.Of(s);
        logits[*next++].assign(row.begin(), row.end());
      }
    }
    rounds.push_back(seconds_since(start));
  }
  if (!options.logits.empty()) {
    RETURN_IF_ERROR(WriteLogits(options.logits, logits));
  }

  std::sort(rounds.begin(), rounds.end());
  std::sort(each_ms.begin(), each_ms.end());
  const double seconds = rounds[rounds.size() / 2];
  const auto quantile = [&each_ms](double p) {
    return each_ms[std::min(each_ms.size() - 1,
                            static_cast<size_t>(p * each_ms.size()))];
  };
  nlohmann::ordered_json out;
  out["engine"] = absl::StrCat(engine->name(), " ", engine->dtype());
  out["device"] = engine->device();
  out["model"] = options.model;
  out["sequences"] = sequences.size();
  out["tokens"] = tokens;
  if (options.single || options.batch_tokens == 0) {
    out["batch"] = options.single ? 1 : options.batch;
  } else {
    out["batch_tokens"] = options.batch_tokens;
  }
  out["threads"] = options.threads;
  out["seconds"] = Rounded(seconds, 4);
  out["sequences_per_s"] = Rounded(sequences.size() / seconds, 1);
  out["tokens_per_s"] = std::llround(tokens / seconds);
  out["p50_ms"] = Rounded(quantile(0.5), 3);
  out["p99_ms"] = Rounded(quantile(0.99), 3);
  out["start_mib"] = Rounded(start_mib, 1);
  out["loaded_mib"] = Rounded(loaded_mib, 1);
  out["peak_mib"] = Rounded(StatusMib("VmHWM"), 1);
  std::cout << out.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  vitrine::LimitOpenMpSpinning(argv);
  vitrine::Options options;
  CLI::App app(
      "Times an engine on token sequences and prints one JSON line. A line of "
      "IDS.jsonl is {\"ids\": [...], \"type_ids\": [...]}.",
      "engine_bench");
  app.add_option("--model", options.model, "Model folder")->required();
  app.add_option("--ids", options.ids, "IDS.jsonl")->required();
  app.add_option("--engine", options.engine, "Engine")
      ->check(CLI::IsMember({"torch", "onednn"}))
      ->capture_default_str();
  app.add_option("--device", options.device, "CUDA where there is any: auto")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", options.dtype, "Arithmetic of the encoder")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16", "int8"}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "Sequences in a batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--batch-tokens", options.batch_tokens,
                 "Instead: as many sequences as have so many tokens")
      ->check(CLI::PositiveNumber);
  app.add_flag("--single", options.single,
               "One sequence a call, in file order: latency");
  app.add_option("--threads", options.threads, "Threads inside a batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "Times over the whole file")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--warmup-rounds", options.warmup_rounds,
                 "Times over the whole file before")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--logits", options.logits,
                 "Write the head's raw outputs, a line per sequence in file "
                 "order");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = vitrine::Bench(options); !status.ok()) {
    std::cerr << "engine_bench: " << status << std::endl;
    return 1;
  }
  return 0;
}
