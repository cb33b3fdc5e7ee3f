#include "tests/testing/reference.h"

#include <stdio.h>

#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

// With NumPy.
#ifndef VITRINE_PYTHON
#define VITRINE_PYTHON "/usr/bin/python3"
#endif

namespace vitrine::testing {

std::vector<Encoding> RandomSequences(const EncoderConfig& config,
                                      const std::vector<int>& lengths,
                                      uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Encoding> out;
  for (const int length : lengths) {
    Encoding sequence;
    const int first = static_cast<int>(random() % length) + 1;
    for (int i = 0; i < length; ++i) {
      sequence.ids.push_back(
          static_cast<int32_t>(random() % config.vocab_size));
      sequence.segment_ids.push_back(
          config.type_vocab_size > 1 && i >= first ? 1 : 0);
    }
    out.push_back(std::move(sequence));
  }
  return out;
}

absl::StatusOr<std::vector<ReferenceOutput>> RunReference(
    const std::string& folder, const std::vector<Encoding>& sequences) {
  std::string lines;
  for (const Encoding& sequence : sequences) {
    const nlohmann::json line = {{"ids", sequence.ids},
                                 {"type_ids", sequence.segment_ids}};
    absl::StrAppend(&lines, line.dump(), "\n");
  }
  const std::string ids_path = absl::StrCat(folder, ".ids.jsonl");
  RETURN_IF_ERROR(WriteFile(ids_path, lines));
  // One thread: NumPy's would spin while they wait for cores that are busy.
  const std::string command =
      absl::StrCat("OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 " VITRINE_PYTHON
                   " '" VITRINE_SOURCE_DIR "/tests/data/reference_bert.py' '",
                   folder, "' '", ids_path, "'");
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return absl::InternalError("popen failed");
  std::string text;
  char buffer[65536];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    text.append(buffer, n);
  }
  if (pclose(pipe) != 0) {
    return absl::InternalError(absl::StrCat("failed: ", command));
  }
  std::vector<ReferenceOutput> out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const nlohmann::json row =
        nlohmann::json::parse(text.substr(begin, end - begin));
    out.push_back({row["logits"].get<std::vector<float>>(),
                   row["mean"].get<std::vector<float>>(),
                   row["first"].get<std::vector<float>>()});
    begin = end + 1;
  }
  return out;
}

}  // namespace vitrine::testing
