#include "model/servable_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/textproto.h"
#include "model/checkpoint.h"
#include "model/load_tokenizer.h"

namespace vitrine {
namespace {

constexpr char kManifestFile[] = "manifest.textproto";
constexpr char kGoldenFile[] = "golden.textproto";
constexpr char kEmbeddingHead[] = "embedding";
constexpr int kGoldenBatchTokens = 4096;

absl::Status VerifyFile(const std::string& folder,
                        const internal::FileDigest& file) {
  const std::string path = JoinPath(folder, file.name());
  if (!PathExists(path)) {
    return absl::DataLossError(
        absl::StrCat(path, ": missing, though ", kManifestFile, " lists it"));
  }
  // The cheap check first: most damage is a file cut short.
  ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> mapped,
                   MappedFile::Open(path));
  if (static_cast<int64_t>(mapped->data().size()) != file.size_bytes()) {
    return absl::DataLossError(absl::StrCat(path, ": ", mapped->data().size(),
                                            " bytes, ", kManifestFile, " says ",
                                            file.size_bytes()));
  }
  const std::string sha256 = Sha256(mapped->data());
  if (sha256 != file.sha256()) {
    return absl::DataLossError(absl::StrCat(path, ": its SHA-256 is ", sha256,
                                            ", ", kManifestFile, " says ",
                                            file.sha256()));
  }
  return absl::OkStatus();
}

absl::Status VerifyDigests(const std::string& folder,
                           const internal::Manifest& manifest) {
  std::set<std::string> listed = {kManifestFile};
  for (const internal::FileDigest& file : manifest.files()) {
    if (file.name().empty() || absl::StrContains(file.name(), '/')) {
      return absl::InvalidArgumentError(
          absl::StrCat(JoinPath(folder, kManifestFile), ": \"", file.name(),
                       "\" is not a plain file name"));
    }
    listed.insert(file.name());
    RETURN_IF_ERROR(VerifyFile(folder, file));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    if (name[0] != '.' && !listed.contains(name)) {
      return absl::DataLossError(absl::StrCat(
          JoinPath(folder, name), ": ", kManifestFile, " does not list it"));
    }
  }
  return absl::OkStatus();
}

std::string LastPart(absl::string_view folder) {
  while (absl::ConsumeSuffix(&folder, "/")) {
  }
  return std::string(folder.substr(folder.rfind('/') + 1));
}

// How far golden outputs may be off, times the larger of 1 and the output.
double GoldenTolerance(const internal::Quantization& quantization,
                       const std::string& dtype) {
  if (dtype == "fp32") return 1e-3;
  if (dtype != "int8") return 5e-2;
  return quantization.golden_tolerance() > 0 ? quantization.golden_tolerance()
                                             : 0.25;
}

// Runs the inputs that the trainer recorded and compares.
absl::Status CheckGolden(const internal::Golden& golden,
                         const std::vector<internal::Head>& heads,
                         double tolerance, const Engine& engine) {
  for (int begin = 0; begin < golden.sequences_size();) {
    Batch batch;
    int end = begin;
    for (; end < golden.sequences_size(); ++end) {
      const internal::Golden::Sequence& sequence = golden.sequences(end);
      if (end > begin &&
          batch.tokens() + sequence.ids_size() > kGoldenBatchTokens) {
        break;
      }
      const auto head = std::find_if(heads.begin(), heads.end(),
                                     [&sequence](const internal::Head& h) {
                                       return h.name() == sequence.head();
                                     });
      if (head == heads.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "sequence ", end, ": no head \"", sequence.head(), "\""));
      }
      Encoding encoding;
      encoding.ids.assign(sequence.ids().begin(), sequence.ids().end());
      encoding.segment_ids.assign(sequence.segment_ids().begin(),
                                  sequence.segment_ids().end());
      if (encoding.segment_ids.empty()) {
        encoding.segment_ids.resize(encoding.ids.size());
      }
      if (encoding.segment_ids.size() != encoding.ids.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("sequence ", end, ": ", encoding.ids.size(), " ids, ",
                         encoding.segment_ids.size(), " segment_ids"));
      }
      batch.Add(encoding, HeadMask{1} << (head - heads.begin()));
    }
    absl::StatusOr<Outputs> outputs = engine.Run(batch);
    if (!outputs.ok()) {
      return Annotate(outputs.status(),
                      absl::StrCat("the batch from sequence ", begin));
    }
    for (int s = begin; s < end; ++s) {
      const internal::Golden::Sequence& sequence = golden.sequences(s);
      const absl::Span<const float> actual = outputs->Of(s - begin);
      if (static_cast<int>(actual.size()) != sequence.outputs_size()) {
        return absl::FailedPreconditionError(absl::StrCat(
            "sequence ", s, ": head ", sequence.head(), ": ", actual.size(),
            " outputs, ", sequence.outputs_size(), " recorded"));
      }
      for (size_t i = 0; i < actual.size(); ++i) {
        const double expected = sequence.outputs(static_cast<int>(i));
        const double difference = std::abs(actual[i] - expected);
        // Written so that NaN fails.
        if (!(difference <= tolerance * std::max(1.0, std::abs(expected)))) {
          return absl::FailedPreconditionError(absl::StrCat(
              "sequence ", s, ": head ", sequence.head(), ": output ", i,
              " is ", actual[i], ", recorded ", expected, ": they differ by ",
              difference, " > ", tolerance));
        }
      }
    }
    begin = end;
  }
  return absl::OkStatus();
}

// The first runs allocate, build primitives and touch the weights: not in a
// caller's time.
absl::Status WarmUp(const Engine& engine, int heads, int max_tokens,
                    const SpecialTokens& special) {
  const HeadMask all =
      heads == kMaxHeads ? ~HeadMask{0} : (HeadMask{1} << heads) - 1;
  for (const std::vector<int>& lengths :
       {std::vector<int>{8}, {max_tokens}, {8, 12, 16, 24, 32, 48, 64, 64}}) {
    Batch batch;
    for (const int length : lengths) {
      Encoding encoding;
      encoding.ids.assign(std::min(length, max_tokens), special.sep);
      encoding.ids[0] = special.cls;
      encoding.segment_ids.resize(encoding.ids.size());
      batch.Add(encoding, all);
    }
    RETURN_IF_ERROR(engine.Run(batch).status());
  }
  return absl::OkStatus();
}

int FindKind(const std::vector<internal::Head>& heads,
             internal::HeadKind kind) {
  for (size_t h = 0; h < heads.size(); ++h) {
    if (heads[h].kind() == kind && heads[h].name() != kEmbeddingHead) {
      return static_cast<int>(h);
    }
  }
  return -1;
}

}  // namespace

internal::Head EmbeddingHead(const internal::Manifest& manifest) {
  internal::Head embedding;
  embedding.set_name(kEmbeddingHead);
  embedding.set_kind(internal::HEAD_KIND_RECOMMENDATION);
  embedding.set_pooling(manifest.pooling() == internal::POOLING_CLS
                            ? internal::POOLING_CLS
                            : internal::POOLING_MEAN);
  return embedding;
}

ServableModel::ServableModel(internal::Manifest manifest,
                             std::unique_ptr<Tokenizer> tokenizer,
                             EncoderConfig encoder,
                             internal::EncodingOptions resolved_encoding,
                             std::vector<internal::Head> heads,
                             std::unique_ptr<Engine> engine,
                             std::vector<HeadTables> tables)
    : manifest_(std::move(manifest)),
      tokenizer_(std::move(tokenizer)),
      encoder_(std::move(encoder)),
      encoding_(std::move(resolved_encoding)),
      featurizer_(*tokenizer_, encoding_, encoder_),
      heads_(std::move(heads)),
      engine_(std::move(engine)),
      tables_(std::move(tables)),
      loaded_at_(absl::Now()) {}

absl::StatusOr<std::shared_ptr<const ServableModel>> ServableModel::Load(
    const std::string& folder, const ServableOptions& options) {
  internal::Manifest manifest;
  const std::string manifest_path = JoinPath(folder, kManifestFile);
  const bool has_manifest = PathExists(manifest_path);
  if (has_manifest) {
    RETURN_IF_ERROR(ReadSealedTextProto(manifest_path, &manifest));
    if (options.verify_digests) {
      RETURN_IF_ERROR(VerifyDigests(folder, manifest));
    }
  } else {
    manifest.set_model(LastPart(folder));
  }

  std::vector<internal::Head> heads(manifest.heads().begin(),
                                    manifest.heads().end());
  ASSIGN_OR_RETURN(Checkpoint checkpoint, LoadCheckpoint(folder, heads));
  if (!has_manifest) {
    ASSIGN_OR_RETURN(const std::vector<ImportedHead> imported,
                     HeadsOfHuggingFaceFolder(folder));
    AddHeads(imported, &checkpoint);
    for (const ImportedHead& head : imported) {
      heads.push_back(head.head);
      *manifest.add_heads() = head.head;
    }
  }
  ASSIGN_OR_RETURN(std::vector<HeadTables> tables,
                   OpenHeadTables(folder, heads));
  heads.push_back(EmbeddingHead(manifest));
  // Once more, since the name "embedding" may be taken.
  RETURN_IF_ERROR(Annotate(CheckHeads(heads), folder));

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(folder);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), folder);
  const EncoderConfig& encoder = checkpoint.config;
  if ((*tokenizer)->vocab_size() > encoder.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder, ": the tokenizer has ", (*tokenizer)->vocab_size(),
        " pieces, config.json's vocab_size is ", encoder.vocab_size));
  }
  internal::EncodingOptions wanted = manifest.encoding();
  wanted.MergeFrom(options.encoding);
  absl::StatusOr<internal::EncodingOptions> encoding =
      ResolveEncodingOptions(wanted, encoder);
  if (!encoding.ok()) return Annotate(encoding.status(), folder);

  EngineOptions engine_options = options.engine;
  if (manifest.has_quantization()) {
    engine_options.quantization = &manifest.quantization();
  }
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      NewEngine(checkpoint, heads, engine_options);
  if (!engine.ok()) return Annotate(engine.status(), folder);
  const std::string golden_path = JoinPath(folder, kGoldenFile);
  if (has_manifest && PathExists(golden_path)) {
    internal::Golden golden;
    RETURN_IF_ERROR(ReadTextProto(golden_path, &golden));
    RETURN_IF_ERROR(Annotate(
        CheckGolden(
            golden, heads,
            GoldenTolerance(manifest.quantization(), (*engine)->dtype()),
            **engine),
        golden_path));
  }
  RETURN_IF_ERROR(
      Annotate(WarmUp(**engine, static_cast<int>(heads.size()),
                      encoding->max_tokens(), (*tokenizer)->special()),
               folder));
  return std::make_shared<const ServableModel>(
      std::move(manifest), *std::move(tokenizer), encoder, *std::move(encoding),
      std::move(heads), *std::move(engine), std::move(tables));
}

std::string ServableModel::version() const {
  return absl::StrCat(manifest_.version());
}

int ServableModel::relevance_head() const {
  return FindKind(heads_, internal::HEAD_KIND_RELEVANCE);
}

int ServableModel::recommendation_head() const {
  return FindKind(heads_, internal::HEAD_KIND_RECOMMENDATION);
}

int ServableModel::interest_head() const {
  return FindKind(heads_, internal::HEAD_KIND_INTEREST);
}

const HeadTables& ServableModel::tables(int head) const {
  static const HeadTables kNone;
  return head < tables_.size() ? tables_[head] : kNone;
}

const Cooccurrence* ServableModel::cooccurrence(int head) const {
  return tables(head).counts.get();
}

const NgramClassifier* ServableModel::ngrams(int head) const {
  return tables(head).ngrams.get();
}

const LexicalScorer* ServableModel::lexical(int head) const {
  return tables(head).lexical.get();
}

int ServableModel::embedding_head() const {
  const int recommendation = recommendation_head();
  if (recommendation >= 0) return recommendation;
  return heads_.empty() || heads_.back().name() != kEmbeddingHead
             ? -1
             : static_cast<int>(heads_.size()) - 1;
}

absl::StatusOr<int> ServableModel::classification_head(
    absl::string_view name) const {
  std::map<std::string, int> by_name;
  for (size_t h = 0; h < heads_.size(); ++h) {
    if (heads_[h].kind() == internal::HEAD_KIND_CLASSIFICATION) {
      by_name[heads_[h].name()] = static_cast<int>(h);
    }
  }
  if (name.empty() && by_name.size() == 1) return by_name.begin()->second;
  const auto it = by_name.find(std::string(name));
  if (it != by_name.end()) return it->second;
  const std::string known = absl::StrJoin(
      by_name, ", ",
      [](std::string* out, const auto& entry) { out->append(entry.first); });
  if (by_name.empty()) {
    return absl::NotFoundError(
        absl::StrCat("model ", this->name(), " has no classification head"));
  }
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head: model ", this->name(), " has several, name one of: ", known));
  }
  return absl::NotFoundError(
      absl::StrCat("head \"", absl::CHexEscape(name.substr(0, 64)),
                   "\": model ", this->name(), " has: ", known));
}

}  // namespace vitrine
