// Any bytes as tokenizer_config.json, in a folder of each kind.

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "model/load_tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace vitrine {
namespace {

// Folders with a model file each, removed at exit.
class Folders {
 public:
  Folders() : root_(MakeRoot()) {
    const std::filesystem::path data = VITRINE_TEST_DATA "/tokenizer";
    const std::pair<const char*, const char*> files[] = {
        {"../../fuzz/seeds/vocab.txt", "vocab.txt"},
        {"albert.model", "spiece.model"},
    };
    for (const auto& [from, to] : files) {
      paths_.push_back(root_ / to);
      std::filesystem::create_directory(root_ / to);
      std::filesystem::copy_file(data / from, root_ / to / to);
    }
  }
  ~Folders() { std::filesystem::remove_all(root_); }

  const std::vector<std::filesystem::path>& paths() const { return paths_; }

 private:
  static std::filesystem::path MakeRoot() {
    std::string pattern =
        std::filesystem::temp_directory_path() / "vitrine-fuzz-XXXXXX";
    FUZZ_CHECK(mkdtemp(pattern.data()) != nullptr);
    return pattern;
  }

  const std::filesystem::path root_;
  std::vector<std::filesystem::path> paths_;
};

}  // namespace
}  // namespace vitrine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const vitrine::Folders folders;
  for (const auto& folder : folders.paths()) {
    std::ofstream(folder / "tokenizer_config.json", std::ios::binary)
        .write(reinterpret_cast<const char*>(data), size);
    const auto tokenizer = vitrine::LoadTokenizer(folder);
    if (tokenizer.ok()) {
      vitrine::CheckTokenize(**tokenizer, "Sofás, SOFA 沙发", 3);
    } else {
      FUZZ_CHECK(tokenizer.status().message().find("tokenizer_config.json") !=
                 absl::string_view::npos);
    }
  }
  return 0;
}
