#pragma once

// One version, loaded: manifest, tokenizer, featurizer, engine and heads.
// Immutable; shared by the calls that pinned it and freed with the last.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "model/engine.h"
#include "model/featurizer.h"
#include "model/head_tables.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

struct ServableOptions {
  EngineOptions engine;
  internal::EncodingOptions encoding;  // set fields override the manifest's
  bool verify_digests = true;
};

// The head that every loaded model has beside those of its manifest: pooled and
// normalised, without weights.
internal::Head EmbeddingHead(const internal::Manifest& manifest);

class ServableModel {
 public:
  // Parses and checks everything in the folder, verifies the digests, runs the
  // golden inputs (tolerance 1e-3 in fp32, 5e-2 in bf16, in int8 the
  // manifest's, else 0.25) and warms up.
  // A plain Hugging Face folder without a manifest loads too, with the head of
  // its checkpoint and version 0. Blocking; seconds.
  static absl::StatusOr<std::shared_ptr<const ServableModel>> Load(
      const std::string& folder, const ServableOptions& options);

  // For tests: any parts. heads[h] is head number h, tables[h] what it has
  // beside its weights (beyond the end: nothing).
  ServableModel(internal::Manifest manifest,
                std::unique_ptr<Tokenizer> tokenizer, EncoderConfig encoder,
                internal::EncodingOptions resolved_encoding,
                std::vector<internal::Head> heads,
                std::unique_ptr<Engine> engine,
                std::vector<HeadTables> tables = {});

  const internal::Manifest& manifest() const { return manifest_; }
  const std::string& name() const { return manifest_.model(); }
  std::string version() const;  // "12"
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const Featurizer& featurizer() const { return featurizer_; }
  const EncoderConfig& encoder() const { return encoder_; }
  const internal::EncodingOptions& encoding() const { return encoding_; }
  const Engine& engine() const { return *engine_; }
  absl::Time loaded_at() const { return loaded_at_; }

  // Head numbers as HeadMask counts them; -1 when there is none. The last head
  // of a loaded model is "embedding", EmbeddingHead().
  // embedding_head() is what Embed uses: the recommendation head where there
  // is one, else that.
  const std::vector<internal::Head>& heads() const { return heads_; }
  int relevance_head() const;
  int recommendation_head() const;
  int interest_head() const;
  int embedding_head() const;
  // What this head has beside its weights.
  const HeadTables& tables(int head) const;
  // What the shop's sequences say to this head's recommendations; null: it goes
  // by texts alone.
  const Cooccurrence* cooccurrence(int head) const;
  // What this classification head adds to its encoder's logits; null: nothing.
  const NgramClassifier* ngrams(int head) const;
  // What this relevance head adds to its encoder's logit; null: nothing.
  const LexicalScorer* lexical(int head) const;
  // By name; an empty name means the only classification head. kNotFound lists
  // what there is; kInvalidArgument where several leave an empty name open.
  absl::StatusOr<int> classification_head(absl::string_view name) const;

 private:
  const internal::Manifest manifest_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const EncoderConfig encoder_;
  const internal::EncodingOptions encoding_;
  const Featurizer featurizer_;
  const std::vector<internal::Head> heads_;
  const std::unique_ptr<Engine> engine_;
  const std::vector<HeadTables> tables_;
  const absl::Time loaded_at_;
};

}  // namespace vitrine
