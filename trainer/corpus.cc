#include "trainer/corpus.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

// Documents that are tokenized at a time.
constexpr size_t kBlock = 4096;
// That one worker takes at a time.
constexpr size_t kPart = 64;

}  // namespace

absl::StatusOr<CorpusSize> ReadDocuments(
    const std::vector<TextSource>& sources, const Tokenizer& tokenizer,
    const DocumentOptions& options, Workers* workers,
    const std::atomic<bool>& stop,
    const std::function<void(const TokenizedDocument&)>& take) {
  CorpusSize size;
  std::vector<Document> block;
  // By the text's SHA-256, of which 32 bits are enough here.
  const auto limit = static_cast<uint64_t>(options.held_out_share * 4294967296);
  const auto flush = [&] {
    std::vector<TokenizedDocument> tokenized(block.size());
    std::vector<std::string> digests(block.size());
    workers->Run(
        static_cast<int>((block.size() + kPart - 1) / kPart), [&](int part) {
          const size_t end = std::min(block.size(), (part + 1) * kPart);
          for (size_t i = part * kPart; i < end; ++i) {
            const std::string text = TextOf(block[i]);
            digests[i] = Sha256(text);
            if (options.join_parts) block[i] = {text};
            for (const std::string& words : block[i]) {
              tokenized[i].parts.push_back(
                  tokenizer.Tokenize(words, options.max_part_tokens).ids);
            }
          }
        });
    std::string all = size.digest;
    for (size_t i = 0; i < block.size(); ++i) {
      absl::StrAppend(&all, digests[i]);
      for (const std::string& part : block[i]) {
        size.bytes += static_cast<int64_t>(part.size());
      }
      tokenized[i].held_out =
          std::stoull(digests[i].substr(0, 8), nullptr, 16) < limit;
      take(tokenized[i]);
    }
    size.documents += static_cast<int64_t>(block.size());
    size.digest = Sha256(all);
    block.clear();
  };
  Document document;
  for (DocumentReader reader(sources);;) {
    ASSIGN_OR_RETURN(const bool read, reader.Next(&document));
    if (read) block.push_back(std::move(document));
    if (block.size() >= kBlock || !read) flush();
    if (stop) return absl::CancelledError("interrupted; nothing was written");
    if (!read) break;
  }
  return size;
}

absl::StatusOr<Corpus> ReadCorpus(const std::vector<TextSource>& sources,
                                  const Tokenizer& tokenizer,
                                  const CorpusOptions& options,
                                  Workers* workers,
                                  const std::atomic<bool>& stop) {
  Corpus corpus;
  DocumentOptions of_documents;
  of_documents.held_out_share = options.held_out_share;
  const auto take = [&](const TokenizedDocument& document) {
    TokenStore& store = document.held_out ? corpus.held_out : corpus.training;
    const absl::Span<const int32_t> ids(document.parts.front());
    for (size_t begin = 0; begin < ids.size(); begin += options.max_tokens) {
      const auto sequence = ids.subspan(begin, options.max_tokens);
      if (sequence.size() >= options.min_tokens) store.Add(sequence);
    }
  };
  ASSIGN_OR_RETURN(corpus.size, ReadDocuments(sources, tokenizer, of_documents,
                                              workers, stop, take));
  corpus.size.sequences = corpus.training.size();
  corpus.size.tokens =
      corpus.training.offsets.back() + 2 * corpus.training.size();
  return corpus;
}

}  // namespace vitrine
