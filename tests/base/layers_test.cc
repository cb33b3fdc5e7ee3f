// Reads the includes of the whole tree and fails on an arrow that
// ARCHITECTURE.md does not have.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace vitrine {
namespace {

namespace fs = std::filesystem;

// Which directories each directory may include; "vitrine" and "google" are
// the generated protos.
const std::map<std::string, std::set<std::string>>& Allowed() {
  static const auto& allowed =
      *new std::map<std::string, std::set<std::string>>{
          {"base", {"base"}},
          {"model", {"model", "base", "vitrine"}},
          {"store", {"store", "base", "vitrine"}},
          {"trainer", {"trainer", "model", "store", "base", "vitrine"}},
          {"server", {"server", "model", "store", "base", "vitrine", "google"}},
          {"client", {"client", "base", "vitrine", "google"}},
      };
  return allowed;
}

// `vitrine tokenize` works on a model folder without a server.
bool IsTokenizeCommand(const std::string& file, const std::string& include) {
  return file != "client/client.h" && file != "client/client.cc" &&
         (include == "model/featurizer.h" || include == "model/tokenizer.h" ||
          include == "model/load_tokenizer.h" ||
          include == "model/model_config.h" || include == "model/unicode.h");
}

struct Include {
  std::string file;     // "server/rpc.cc"
  std::string include;  // "base/file.h" or "ATen/ATen.h"
};

std::vector<Include> AllIncludes() {
  static const std::regex pattern(R"(^\s*#\s*include\s*["<]([^">]+)[">])");
  const fs::path root = VITRINE_SOURCE_DIR;
  std::vector<Include> found;
  for (const auto& [directory, unused] : Allowed()) {
    for (const auto& entry :
         fs::recursive_directory_iterator(root / directory)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      const std::string file = fs::relative(entry.path(), root).string();
      std::ifstream in(entry.path());
      std::string line;
      while (std::getline(in, line)) {
        std::smatch match;
        if (std::regex_search(line, match, pattern)) {
          found.push_back({file, match[1]});
        }
      }
    }
  }
  return found;
}

std::string TopFolder(const std::string& path) {
  const size_t slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

TEST(Layers, ArrowsGoOneWay) {
  const std::vector<Include> includes = AllIncludes();
  ASSERT_GT(includes.size(), 50u);
  for (const Include& i : includes) {
    const std::string to = TopFolder(i.include);
    const bool ours = Allowed().contains(to) || to == "vitrine" ||
                      to == "tests" || i.include.starts_with("google/rpc/");
    if (!ours || IsTokenizeCommand(i.file, i.include)) continue;
    EXPECT_TRUE(Allowed().at(TopFolder(i.file)).contains(to))
        << i.file << " includes " << i.include;
  }
}

TEST(Layers, LibTorchStaysOutOfHeadersButThese) {
  const std::set<std::string> allowed = {
      "model/bert.h",        "model/cuda_graphs.h", "model/gpu_batch.h",
      "model/gpu_encoder.h", "model/task_head.h",   "model/to_tensor.h"};
  for (const Include& i : AllIncludes()) {
    const std::string top = TopFolder(i.include);
    if (top != "torch" && top != "ATen" && top != "c10") continue;
    if (!i.file.ends_with(".h")) continue;
    EXPECT_TRUE(allowed.contains(i.file))
        << i.file << " includes " << i.include;
  }
}

// Its header clashes with Abseil's, see model/tokenizer.h.
TEST(Layers, OneFileIncludesSentencePieceAndItHasNoAbseil) {
  std::set<std::string> users;
  for (const Include& i : AllIncludes()) {
    if (i.include.find("sentencepiece_processor") != std::string::npos) {
      users.insert(i.file);
    }
  }
  ASSERT_LE(users.size(), 1u);
  for (const Include& i : AllIncludes()) {
    if (users.contains(i.file)) {
      EXPECT_NE(TopFolder(i.include), "absl") << i.file;
    }
  }
}

TEST(Layers, OneFileIncludesSoci) {
  std::set<std::string> users;
  for (const Include& i : AllIncludes()) {
    if (TopFolder(i.include) == "soci") users.insert(i.file);
  }
  EXPECT_EQ(users, std::set<std::string>{"store/sql.cc"});
}

}  // namespace
}  // namespace vitrine
