#include "model/head_tables.h"

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace vitrine {
namespace {

absl::StatusOr<std::shared_ptr<const NgramClassifier>> OpenNgrams(
    const std::string& path, const internal::Head& head) {
  ASSIGN_OR_RETURN(std::shared_ptr<const NgramClassifier> ngrams,
                   NgramClassifier::Open(path));
  if (ngrams->labels() != head.labels_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": of ", ngrams->labels(), " labels; head ",
                     head.name(), " has ", head.labels_size()));
  }
  return ngrams;
}

}  // namespace

int64_t HeadTables::size_bytes() const {
  return (counts == nullptr ? 0 : counts->size_bytes()) +
         (ngrams == nullptr ? 0 : ngrams->size_bytes()) +
         (lexical == nullptr ? 0 : lexical->size_bytes());
}

absl::StatusOr<std::vector<HeadTables>> OpenHeadTables(
    const std::string& folder, absl::Span<const internal::Head> heads) {
  std::vector<HeadTables> out;
  for (const internal::Head& head : heads) {
    HeadTables& tables = out.emplace_back();
    const std::string counts = JoinPath(folder, CooccurrenceFile(head.name()));
    if (head.kind() == internal::HEAD_KIND_RECOMMENDATION &&
        PathExists(counts)) {
      ASSIGN_OR_RETURN(tables.counts, Cooccurrence::Open(counts));
    }
    const std::string ngrams = JoinPath(folder, NgramFile(head.name()));
    if (head.kind() == internal::HEAD_KIND_CLASSIFICATION &&
        PathExists(ngrams)) {
      ASSIGN_OR_RETURN(tables.ngrams, OpenNgrams(ngrams, head));
    }
    const std::string lexical = JoinPath(folder, LexicalFile(head.name()));
    if (head.kind() == internal::HEAD_KIND_RELEVANCE && PathExists(lexical)) {
      ASSIGN_OR_RETURN(tables.lexical, LexicalScorer::Open(lexical));
    }
  }
  return out;
}

absl::Status WriteHeadTables(const std::string& folder, const std::string& head,
                             const HeadTables& tables) {
  if (tables.counts != nullptr) {
    RETURN_IF_ERROR(
        tables.counts->Write(JoinPath(folder, CooccurrenceFile(head))));
  }
  if (tables.ngrams != nullptr) {
    RETURN_IF_ERROR(tables.ngrams->Write(JoinPath(folder, NgramFile(head))));
  }
  if (tables.lexical != nullptr) {
    RETURN_IF_ERROR(tables.lexical->Write(JoinPath(folder, LexicalFile(head))));
  }
  return absl::OkStatus();
}

}  // namespace vitrine
