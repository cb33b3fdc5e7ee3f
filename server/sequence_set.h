#pragma once

// The sequences of one call, each once, with the heads that it needs.
//
// The same text twice in a call is run once: it costs less, and equal items
// get equal scores, which two batches of different shape could not promise.

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "model/batch.h"
#include "model/engine.h"

namespace vitrine {

// One thread at a time.
class SequenceSet {
 public:
  // Returns the sequence's number. The heads add up where it is there already.
  int Add(Encoding encoding, int head);

  bool empty() const { return sequences_.empty(); }
  int size() const { return static_cast<int>(heads_.size()); }
  int64_t tokens() const { return tokens_; }
  // Sequences whose text was cut.
  int truncated() const { return truncated_; }

  // For the batcher, once all are added.
  std::vector<Encoding> TakeSequences() { return std::move(sequences_); }
  const std::vector<HeadMask>& heads() const { return heads_; }

  // What `head` gave for sequence number `sequence`.
  absl::Span<const float> Of(const Outputs& outputs, const Engine& engine,
                             int sequence, int head) const;

 private:
  std::vector<Encoding> sequences_;
  std::vector<HeadMask> heads_;
  absl::flat_hash_map<std::string, int> index_;  // by ids and segments
  int64_t tokens_ = 0;
  int truncated_ = 0;
};

}  // namespace vitrine
