#pragma once

// What a head may have beside its weights: tables of their own kind, each in a
// file of its own in the version folder.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/cooccurrence.h"
#include "model/lexical_scorer.h"
#include "model/ngram_classifier.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// Null: the head has none.
struct HeadTables {
  std::shared_ptr<const Cooccurrence> counts;     // of recommendation
  std::shared_ptr<const NgramClassifier> ngrams;  // of classification
  std::shared_ptr<const LexicalScorer> lexical;   // of relevance

  // Bytes on disk, about.
  int64_t size_bytes() const;
};

// Of each head. kInvalidArgument names the file and what is wrong with it.
absl::StatusOr<std::vector<HeadTables>> OpenHeadTables(
    const std::string& folder, absl::Span<const internal::Head> heads);
absl::Status WriteHeadTables(const std::string& folder, const std::string& head,
                             const HeadTables& tables);

}  // namespace vitrine
