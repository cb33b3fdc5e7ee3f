#include "tests/trainer/small_shop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "trainer/network.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

const char* const kKinds[] = {"sofa", "lamp",  "rug",   "chair", "desk",
                              "vase", "clock", "shelf", "bench", "mirror"};
const char* const kColors[] = {"red", "blue", "green", "white"};
constexpr int kKindCount = 10;
constexpr int kColorCount = 4;

std::string Id(int kind, int color) {
  return absl::StrCat(kKinds[kind], "-", kColors[color]);
}

std::string Vocabulary() {
  std::string out = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (const char* const word : kKinds) absl::StrAppend(&out, word, "\n");
  for (const char* const word : kColors) absl::StrAppend(&out, word, "\n");
  for (const char* const word : {"a", "buy", "fine", "home"}) {
    absl::StrAppend(&out, word, "\n");
  }
  return out;
}

std::string Items() {
  std::string out;
  for (int kind = 0; kind < kKindCount; ++kind) {
    for (int color = 0; color < kColorCount; ++color) {
      absl::StrAppend(&out, "{\"id\":\"", Id(kind, color), "\",\"title\":\"",
                      kColors[color], " ", kKinds[kind],
                      "\",\"categories\":[\"home\"]}\n");
    }
  }
  return out;
}

// The right kind and colour 3, the kind 1, the colour alone 0.
std::string Relevance() {
  std::string out;
  const auto row = [&out](const std::string& query, int kind, int color,
                          int grade) {
    absl::StrAppend(&out, "{\"query\":\"", query, "\",\"item_id\":\"",
                    Id(kind, color), "\",\"grade\":", grade, "}\n");
  };
  for (int kind = 0; kind < kKindCount; ++kind) {
    for (int color = 0; color < kColorCount; ++color) {
      for (const char* const start : {"", "a ", "buy "}) {
        const std::string query =
            absl::StrCat(start, kColors[color], " ", kKinds[kind]);
        for (int c = 0; c < kColorCount; ++c) {
          row(query, kind, c, c == color ? 3 : 1);
        }
        for (int k = 1; k <= 4; ++k) {
          row(query, (kind + k) % kKindCount, color, 0);
        }
      }
    }
  }
  return out;
}

}  // namespace

SmallShop::SmallShop() {
  EXPECT_TRUE(WriteFile(items(), Items()).ok());
  EXPECT_TRUE(WriteFile(relevance(), Relevance()).ok());
  std::string user_rows, interest_rows, text_rows;
  for (int user = 0; user < 200; ++user) {
    const int kind = user % kKindCount;
    const int first = user / kKindCount % kColorCount;
    std::string list;
    for (int i = 0; i < 3; ++i) {
      absl::StrAppend(&list, i > 0 ? "," : "", "\"",
                      Id(kind, (first + i) % kColorCount), "\"");
    }
    absl::StrAppend(&user_rows, "{\"user_id\":\"u", user, "\",\"items\":[",
                    list, "]}\n");
    absl::StrAppend(&interest_rows, "{\"user_id\":\"u", user, "\",\"items\":[",
                    list, "],\"categories\":[\"", kKinds[kind], "\"]}\n");
  }
  for (int i = 0; i < 240; ++i) {
    const int kind = i % kKindCount;
    absl::StrAppend(&text_rows, "{\"text\":\"", i % 3 == 0 ? "a " : "buy ",
                    kColors[i / kKindCount % kColorCount], " ", kKinds[kind],
                    i / 40 % 2 == 0 ? "" : " fine", i / 80 % 3 == 1 ? " a" : "",
                    "\",\"label\":\"", kKinds[kind], "\"}\n");
  }
  EXPECT_TRUE(WriteFile(users(), user_rows).ok());
  EXPECT_TRUE(WriteFile(interest(), interest_rows).ok());
  EXPECT_TRUE(WriteFile(texts(), text_rows).ok());

  EXPECT_TRUE(MakeFolders(encoder()).ok());
  EXPECT_TRUE(WriteFile(File("encoder/vocab.txt"), Vocabulary()).ok());
  NewVersion model;
  model.config.architectures = {"BertModel"};
  model.config.vocab_size = 23;
  model.config.hidden_size = 32;
  model.config.num_layers = 2;
  model.config.num_heads = 2;
  model.config.intermediate_size = 64;
  model.config.max_positions = 64;
  model.config.type_vocab_size = 4;
  model.encoder =
      Network::Random(model.config, 5)->SaveEncoder(TensorType::kF32);
  model.tokenizer_folder = encoder();
  const absl::Status written = WriteModelFolder(encoder(), model);
  EXPECT_TRUE(written.ok()) << written;
}

FineTuneOptions SmallShop::Options() const {
  FineTuneOptions options;
  options.from = encoder();
  options.registry = registry();
  options.model = "shop";
  options.items = items();
  options.learning_rate = 3e-3;
  options.epochs = 4;
  options.batch_size = 8;
  options.dropout = 0;
  options.validation_share = 0.2;
  options.pooling = internal::POOLING_MEAN;
  options.bf16 = false;
  options.threads = 2;
  return options;
}

std::vector<FitTask> SmallShop::AllTasks() const {
  return {Task(internal::HEAD_KIND_RELEVANCE),
          Task(internal::HEAD_KIND_RECOMMENDATION),
          Task(internal::HEAD_KIND_INTEREST),
          Task(internal::HEAD_KIND_CLASSIFICATION)};
}

FitTask SmallShop::Task(internal::HeadKind kind) const {
  FitTask task;
  task.kind = kind;
  task.data = kind == internal::HEAD_KIND_RELEVANCE        ? relevance()
              : kind == internal::HEAD_KIND_RECOMMENDATION ? users()
              : kind == internal::HEAD_KIND_INTEREST       ? interest()
                                                           : texts();
  return task;
}

absl::StatusOr<FineTuneReport> Fit(const FineTuneOptions& options,
                                   FineTuneListener* listener) {
  FineTuneListener silent;
  const std::atomic<bool> stop{false};
  return FineTune(options, listener != nullptr ? listener : &silent, stop);
}

double Value(const std::vector<MetricValue>& metrics, const std::string& name) {
  for (const MetricValue& metric : metrics) {
    if (metric.name == name) return metric.value;
  }
  ADD_FAILURE() << "no metric " << name;
  return 0;
}

std::vector<std::string> Names(const std::vector<Baseline>& baselines) {
  std::vector<std::string> names;
  for (const Baseline& baseline : baselines) names.push_back(baseline.name);
  return names;
}

}  // namespace vitrine
