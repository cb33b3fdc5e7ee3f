// Measures a model folder's tokenizer on one thread:
//
//   tokenizer_bench --model FOLDER --texts FILE.jsonl [--field title]
//                   [--max-tokens 512] [--rounds 5]
//
// FILE.jsonl has objects with the field, or plain strings, one a line;
// /dev/stdin does. Prints one JSON line about the fastest round, with the
// fields of tokenizer_peer.mjs.

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "model/load_tokenizer.h"
#include "model/unicode.h"
#include "nlohmann/json.hpp"

namespace vitrine {
namespace {

struct Options {
  std::string model;
  std::string texts;
  std::string field = "title";
  size_t max_tokens = 512;
  int rounds = 5;
};

// Exits with a message on a bad file: this is a tool for people.
std::vector<std::string> ReadTexts(const Options& options) {
  std::ifstream in(options.texts);
  if (!in) {
    std::cerr << options.texts << ": cannot read\n";
    std::exit(1);
  }
  std::vector<std::string> texts;
  for (std::string line; std::getline(in, line);) {
    auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object()) json = json.value(options.field, nlohmann::json());
    if (!json.is_string()) {
      std::cerr << options.texts << " line " << texts.size() + 1
                << ": no string in field " << options.field << "\n";
      std::exit(1);
    }
    texts.push_back(json.get<std::string>());
    if (FindInvalidUtf8(texts.back())) {
      std::cerr << options.texts << " line " << texts.size()
                << ": invalid UTF-8\n";
      std::exit(1);
    }
  }
  if (texts.empty()) {
    std::cerr << options.texts << ": no lines\n";
    std::exit(1);
  }
  return texts;
}

int Main(const Options& options) {
  const auto tokenizer = LoadTokenizer(options.model);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  const std::vector<std::string> texts = ReadTexts(options);
  size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();

  size_t tokens = 0, truncated = 0;
  double best_s = std::numeric_limits<double>::infinity();
  for (int round = 0; round < options.rounds; ++round) {
    tokens = truncated = 0;
    const auto start = std::chrono::steady_clock::now();
    for (const std::string& text : texts) {
      const Tokens out = (*tokenizer)->Tokenize(text, options.max_tokens);
      tokens += out.ids.size();
      truncated += out.truncated;
    }
    const std::chrono::duration<double> taken =
        std::chrono::steady_clock::now() - start;
    best_s = std::min(best_s, taken.count());
  }
  const nlohmann::ordered_json line = {
      {"tokenizer", (*tokenizer)->kind()},
      {"texts", texts.size()},
      {"tokens", tokens},
      {"truncated", truncated},
      {"seconds", best_s},
      {"texts_per_s", texts.size() / best_s},
      {"tokens_per_s", tokens / best_s},
      {"mb_per_s", bytes / best_s / 1e6},
  };
  std::cout << line.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace vitrine

int main(int argc, char** argv) {
  vitrine::Options options;
  CLI::App app("Measures a model folder's tokenizer on one thread.");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", options.model, "model folder")->required();
  app.add_option("--texts", options.texts, "JSON lines")->required();
  app.add_option("--field", options.field, "the objects' field to read");
  app.add_option("--max-tokens", options.max_tokens, "ids of a text");
  app.add_option("--rounds", options.rounds, "the fastest one counts")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  return vitrine::Main(options);
}
