#pragma once

// The texts of a run of pre-training as token ids, in memory.

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/tokenizer.h"
#include "trainer/text_documents.h"
#include "trainer/workers.h"

namespace vitrine {

// Sequences side by side, without special tokens.
struct TokenStore {
  std::vector<int32_t> ids;
  std::vector<int64_t> offsets = {0};  // (sequences + 1)

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int length(int64_t s) const {
    return static_cast<int>(offsets[s + 1] - offsets[s]);
  }
  absl::Span<const int32_t> operator[](int64_t s) const {
    return absl::MakeConstSpan(ids).subspan(offsets[s], length(s));
  }
  void Add(absl::Span<const int32_t> sequence) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
};

struct CorpusSize {
  int64_t documents = 0;
  int64_t bytes = 0;      // of their texts
  int64_t sequences = 0;  // to train on
  int64_t tokens = 0;     // of them, special ones included
  std::string digest;     // SHA-256 of the texts, in order
};

struct TokenizedDocument {
  std::vector<std::vector<int32_t>> parts;  // without special tokens
  bool held_out = false;
};

struct DocumentOptions {
  // Of the documents, by a hash of the text: equal ones are on one side.
  double held_out_share = 0.005;
  bool join_parts = true;  // a document is one part
  size_t max_part_tokens = size_t{1} << 24;
};

// Calls take(document) for each, in order, on the calling thread. The size has
// no sequences. kCancelled soon after `stop` is set.
absl::StatusOr<CorpusSize> ReadDocuments(
    const std::vector<TextSource>& sources, const Tokenizer& tokenizer,
    const DocumentOptions& options, Workers* workers,
    const std::atomic<bool>& stop,
    const std::function<void(const TokenizedDocument&)>& take);

struct Corpus {
  TokenStore training, held_out;
  CorpusSize size;
};

struct CorpusOptions {
  int max_tokens = 126;  // of a sequence; longer documents are several
  int min_tokens = 3;    // shorter ones have nothing to learn from
  double held_out_share = 0.005;
};

// Documents cut into sequences.
absl::StatusOr<Corpus> ReadCorpus(const std::vector<TextSource>& sources,
                                  const Tokenizer& tokenizer,
                                  const CorpusOptions& options,
                                  Workers* workers,
                                  const std::atomic<bool>& stop);

}  // namespace vitrine
