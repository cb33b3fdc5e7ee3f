#pragma once

// Learns a SentencePiece model (unigram, with bytes for what no piece covers)
// from texts.
//
// The library's trainer runs in a program of its own, vitrine-train-pieces,
// beside this one: it needs the protobuf that Debian's libsentencepiece brings
// along, which must not meet ours (docs/adr/0010-sentencepiece-copy.md).

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/text_documents.h"

namespace vitrine {

struct PieceModelOptions {
  int64_t pieces = 16000;  // special ones and bytes included
  bool lower_case = true;  // Unicode's case folding, by the model itself
  // Text to learn from at most: a share of the documents, by a hash.
  int64_t sample_bytes = int64_t{20} << 20;
  int threads = 1;
};

// Documents of `sources` to learn from, cut into lines.
absl::StatusOr<std::vector<std::string>> SampleLines(
    const std::vector<TextSource>& sources, int64_t sample_bytes);

// The serialized model, in ALBERT's layout: <pad>, <unk>, [CLS], [SEP],
// [MASK], then the bytes and the pieces. `scratch` is a folder for temporary
// files. The same lines, options and threads give the same model.
absl::StatusOr<std::string> TrainPieceModel(
    const std::vector<std::string>& lines, const PieceModelOptions& options,
    const std::string& scratch);

// tokenizer_config.json for such a model.
std::string PieceModelConfigJson();

}  // namespace vitrine
