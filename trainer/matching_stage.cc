// The matching stage: a cross-encoder reads a query with each item of a group
// (match_groups.h) and learns which one the query is of. The encoder, its
// segments for match marks and a relevance head are trained as `fit` has them,
// and `fit` goes on from the head.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "model/featurizer.h"
#include "model/word_matcher.h"
#include "trainer/group_loss.h"
#include "trainer/match_groups.h"
#include "trainer/named_tensors.h"
#include "trainer/network.h"
#include "trainer/pretrain_stage.h"

namespace vitrine {
namespace {

constexpr char kHead[] = "relevance";

internal::Head RelevanceHead(internal::Pooling pooling) {
  internal::Head head;
  head.set_name(kHead);
  head.set_kind(internal::HEAD_KIND_RELEVANCE);
  head.set_pooling(pooling);
  return head;
}

class MatchingStage : public PretrainStage {
 public:
  MatchingStage(const StageSettings& settings,
                const internal::EncodingOptions& encoding,
                std::unique_ptr<Network> network)
      : settings_(settings),
        options_(settings.options),
        matcher_(settings.tokenizer),
        featurizer_(settings.tokenizer, encoding, settings.config),
        network_(std::move(network)) {
    group_options_.negatives = options_.negatives;
    group_options_.hard = options_.hard_negatives;
    group_options_.encoding = encoding;
  }

  std::vector<std::pair<std::string, at::Tensor>> parameters() const override {
    std::vector<std::pair<std::string, at::Tensor>> out;
    for (const auto& [name, tensor] : network_->EncoderParameters()) {
      if (absl::StartsWith(name, "pooler.")) continue;  // has no part in this
      out.emplace_back(name, tensor);
    }
    for (const auto& [name, tensor] : network_->HeadParameters(0)) {
      // It moves all scores of a group alike: its gradient is rounding alone,
      // which Adam would make steps of.
      if (absl::EndsWith(name, ".out_proj.bias")) continue;
      out.emplace_back(name, tensor);
    }
    return out;
  }

  absl::StatusOr<CorpusSize> Read(const std::atomic<bool>& stop) override {
    DocumentOptions options;
    options.held_out_share = options_.held_out_share;
    options.join_parts = false;
    options.max_part_tokens = options_.max_tokens;
    ASSIGN_OR_RETURN(CorpusSize size,
                     ReadDocuments(options_.texts, settings_.tokenizer, options,
                                   settings_.workers, stop,
                                   [this](const TokenizedDocument& document) {
                                     Add(document);
                                   }));
    if (training_.size() < candidates()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--text: ", training_.size(), " documents of three words or more; ",
          candidates(), " are needed for --negatives ", options_.negatives));
    }
    maker_ = MakerOf(training_);
    size.sequences = training_.size();
    for (int64_t i = 0; i < training_.size(); ++i) size.tokens += tokens(i);
    DrawHeldOut();
    return size;
  }
  int64_t texts() const override { return training_.size(); }
  int64_t tokens(int64_t text) const override {
    return maker_->TokensAbout(text);
  }
  int64_t held_out_tokens() const override { return held_out_tokens_; }
  int64_t candidates() const override { return options_.negatives + 1; }

  void StartTraining(uint64_t seed) override {
    for (const auto& [name, tensor] : parameters()) trained_.push_back(tensor);
    network_->StartTraining(trained_, seed);
  }
  std::vector<Dropout>& dropout() override { return network_->dropout(); }

  absl::StatusOr<StageLoss> ForwardBackward(
      absl::Span<const StageExample> /*step*/,
      absl::Span<const StageExample> own) override {
    if (own.empty()) return StageLoss();
    std::vector<MatchGroup> groups(own.size());
    settings_.workers->Run(static_cast<int>(groups.size()), [&](int i) {
      const auto [text, epoch] = own[i];
      std::mt19937_64 random = RandomFor(options_.seed, epoch, text);
      groups[i] = maker_->Draw(text, &random);
    });
    // Share by share, so that a step's graph is never there as a whole.
    const int64_t most =
        int64_t{options_.share_tokens} * settings_.workers->count();
    StageLoss out;
    std::vector<at::Tensor> sums(trained_.size());
    for (size_t begin = 0; begin < groups.size();) {
      std::vector<const Encoding*> sequences;
      int64_t tokens = 0;
      size_t end = begin;
      for (; end < groups.size() &&
             (end == begin || tokens + groups[end].tokens <= most);
           ++end) {
        for (const Encoding& pair : groups[end].pairs) {
          sequences.push_back(&pair);
        }
        tokens += groups[end].tokens;
      }
      int64_t found = 0;
      out.loss += network_->ForwardBackward(
          0, sequences,
          [&](const at::Tensor& scores) {
            return GroupLoss(scores, candidates(), &found);
          },
          /*weight=*/1);
      if (!std::isfinite(out.loss)) break;
      AddGradients(&sums);
      out.count += static_cast<int64_t>(end - begin);
      out.found += found;
      out.tokens += tokens;
      begin = end;
    }
    out.count = std::max<int64_t>(out.count, 1);
    for (size_t i = 0; i < trained_.size(); ++i) {
      if (sums[i].defined()) trained_[i].mutable_grad() = sums[i];
    }
    return out;
  }

  StageLoss Evaluate() const override {
    const at::NoGradGuard no_grad;
    StageLoss out;
    std::vector<const Encoding*> sequences;
    for (const MatchGroup& group : held_out_) {
      for (const Encoding& pair : group.pairs) sequences.push_back(&pair);
    }
    out.loss = GroupLoss(at::tensor(network_->Infer(0, sequences)),
                         candidates(), &out.found)
                   .item<double>();
    out.count = static_cast<int64_t>(held_out_.size());
    out.tokens = held_out_tokens_;
    return out;
  }

  // As transformers' classifiers with one output have it; the output layer of
  // masked words, where the source has one, for whoever goes on by those.
  absl::StatusOr<std::vector<NamedTensor>> Save(
      TensorType type) const override {
    const bool bert = settings_.config.model_type == "bert";
    const std::string base = bert ? "bert." : "roberta.";
    std::vector<NamedTensor> out;
    for (const auto& [name, tensor] : network_->EncoderParameters()) {
      if (absl::StartsWith(name, "pooler."))
        continue;  // the head's dense layer
      out.push_back(ToNamed(base + name, tensor, type));
    }
    for (const auto& [name, tensor] : network_->HeadParameters(0)) {
      const absl::string_view part =
          absl::StripPrefix(name, absl::StrCat(kHead, "."));
      const bool dense = absl::StartsWith(part, "dense.");
      std::string as = absl::StrCat("classifier.", part);
      if (bert) {
        as = dense ? absl::StrCat("bert.pooler.", part)
                   : absl::StrCat("classifier.",
                                  absl::StripPrefix(part, "out_proj."));
      }
      out.push_back(ToNamed(as, tensor, type));
    }
    ASSIGN_OR_RETURN(const std::unique_ptr<Safetensors> file,
                     OpenSharded(settings_.source->folder));
    std::map<std::string, TensorView> output_layer;
    for (const auto& [name, view] : file->tensors()) {
      // The decoder is the table of word embeddings again.
      if ((absl::StartsWith(name, "cls.predictions.") ||
           absl::StartsWith(name, "lm_head.")) &&
          !absl::StrContains(name, ".decoder.")) {
        output_layer[name] = view;
      }
    }
    ASSIGN_OR_RETURN(std::vector<NamedTensor> more, CopyTensors(output_layer));
    for (NamedTensor& tensor : more) {
      tensor.type = type;
      out.push_back(std::move(tensor));
    }
    return out;
  }

 private:
  std::unique_ptr<MatchGroupMaker> MakerOf(
      const PairDocuments& documents) const {
    return std::make_unique<MatchGroupMaker>(
        featurizer_, matcher_, settings_.tokenizer, documents, group_options_);
  }

  void Add(const TokenizedDocument& document) {
    if (!MatchGroupMaker::IsOfUse(matcher_, document.parts)) return;
    PairDocuments& documents = document.held_out ? held_out_texts_ : training_;
    for (const auto& part : document.parts) documents.parts.Add(part);
    documents.offsets.push_back(documents.parts.size());
  }

  // The parameters' gradients to `sums`.
  void AddGradients(std::vector<at::Tensor>* sums) {
    settings_.workers->Run(static_cast<int>(trained_.size()), [&](int i) {
      const at::NoGradGuard no_grad;
      const at::Tensor& gradient = trained_[i].grad();
      at::Tensor& sum = (*sums)[i];
      if (!gradient.defined()) return;
      if (sum.defined()) {
        sum.add_(gradient);
      } else {
        sum = gradient;
      }
    });
  }

  void DrawHeldOut() {
    if (held_out_texts_.size() < candidates()) return;
    const std::unique_ptr<MatchGroupMaker> maker = MakerOf(held_out_texts_);
    for (int64_t d = 0;
         d < held_out_texts_.size() && held_out_tokens_ < kMaxHeldOutTokens;
         ++d) {
      std::mt19937_64 random = RandomFor(options_.seed, kHeldOutRound, d);
      held_out_.push_back(maker->Draw(d, &random));
      held_out_tokens_ += held_out_.back().tokens;
    }
  }

  const StageSettings settings_;
  const PretrainOptions& options_;
  const WordMatcher matcher_;
  const Featurizer featurizer_;
  const std::unique_ptr<Network> network_;
  MatchGroupOptions group_options_;
  std::vector<at::Tensor> trained_;
  PairDocuments training_, held_out_texts_;
  std::unique_ptr<MatchGroupMaker> maker_;  // of training_
  std::vector<MatchGroup> held_out_;
  int64_t held_out_tokens_ = 0;
};

// The source's own head, where it can go on: a dense layer and one output.
bool HasHead(const SourceModel& source) {
  for (const internal::Head& head : source.manifest.heads()) {
    if (head.name() == kHead && head.kind() == internal::HEAD_KIND_RELEVANCE) {
      return source.checkpoint.heads.count(
                 absl::StrCat(kHead, ".dense.weight")) > 0;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PretrainStage>> NewMatchingStage(
    const StageSettings& settings) {
  Checkpoint checkpoint = settings.source->checkpoint;
  checkpoint.config = settings.config;
  const internal::Head head = RelevanceHead(settings.options.pooling);
  std::vector<internal::Head> heads;
  if (HasHead(*settings.source)) heads.push_back(head);
  ASSIGN_OR_RETURN(std::unique_ptr<Network> network,
                   Network::Create(checkpoint, heads, settings.bf16,
                                   settings.workers, settings.options.device));
  if (heads.empty()) {
    RETURN_IF_ERROR(network->PutHead(head, settings.options.seed).status());
  }
  network->PadBatches(settings.tokenizer.special().pad,
                      settings.options.max_tokens);
  internal::EncodingOptions encoding;
  encoding.set_max_tokens(settings.options.max_tokens);
  ASSIGN_OR_RETURN(encoding, ResolveEncodingOptions(encoding, settings.config));
  return std::make_unique<MatchingStage>(settings, encoding,
                                         std::move(network));
}

}  // namespace vitrine
