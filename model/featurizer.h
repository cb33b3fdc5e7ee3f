#pragma once

// Products, queries and histories to token sequences. Training and serving
// both come through here, so that they cannot disagree. Immutable; any thread.
//
// An item's text is its title, brand, categories, attributes (by key, values
// only) and description, each tokenized alone, cut to its budget and appended.
// A history is its newest items first (title, brand, categories, cut to the
// history-item budget), as many as fit; skipped items are left out.
//
// Match marks: an encoder with four or more segments (type_vocab_size) sees in
// a pair which words of the query occur in the item and the other way round:
// segment 2 for a word of the query that the item has too, 3 for a word of the
// item that the query has too, 0 and 1 for the others. A small encoder without
// pretraining hardly finds out by itself that two words are the same.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/model_config.h"
#include "model/tokenizer.h"
#include "vitrine/internal/manifest.pb.h"
#include "vitrine/v1/inference.pb.h"

namespace vitrine {

// Fills zeros with the defaults of manifest.proto and caps max_tokens at what
// the encoder takes. kInvalidArgument: budgets that leave no room.
absl::StatusOr<internal::EncodingOptions> ResolveEncodingOptions(
    const internal::EncodingOptions& options, const EncoderConfig& encoder);

class WordMatcher;

class Featurizer {
 public:
  // `tokenizer` outlives the featurizer; `options` are resolved.
  Featurizer(const Tokenizer& tokenizer,
             const internal::EncodingOptions& options,
             const EncoderConfig& encoder);
  ~Featurizer();

  const Tokenizer& tokenizer() const { return tokenizer_; }

  // Every text-taking function: kInvalidArgument naming the field for invalid
  // UTF-8 ("title: invalid UTF-8 at byte 17").
  absl::StatusOr<Tokens> Query(absl::string_view query) const;
  // kInvalidArgument too for an item without any text.
  absl::StatusOr<Tokens> ItemText(const v1::Item& item) const;

  // What ItemText gives depends on the item and on this alone. Versions that
  // were trained from one another share it, unless their encoding was changed.
  const std::string& item_text_digest() const { return item_text_digest_; }

  // The cross-encoder's input.
  Encoding Pair(const Tokens& query, const Tokens& item) const;
  // The input of an item, or of any text, alone.
  Encoding Single(const Tokens& text) const;
  // kInvalidArgument when nothing but skips is in it.
  absl::StatusOr<Encoding> History(
      absl::Span<const v1::Interaction* const> history) const;
  absl::StatusOr<Encoding> Text(absl::string_view text) const;

 private:
  Tokens WithWords(Tokens tokens) const;

  const Tokenizer& tokenizer_;
  const internal::EncodingOptions options_;
  const int segments_;
  // Null: pairs carry no match marks.
  const std::unique_ptr<const WordMatcher> matcher_;
  const std::string item_text_digest_;
};

}  // namespace vitrine
