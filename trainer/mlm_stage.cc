// Masked language modelling: hidden words of sequences that are packed side by
// side.

#include <ATen/ATen.h>

#include <algorithm>

#include "base/status_macros.h"
#include "trainer/masking.h"
#include "trainer/mlm_network.h"
#include "trainer/pretrain_stage.h"

namespace vitrine {
namespace {

// At most `shares` batches with about as many tokens each, likes side by side.
std::vector<MaskedBatch> Share(std::vector<MaskedText> texts, int64_t tokens,
                               int64_t shares, int32_t pad_id,
                               int64_t longest) {
  std::stable_sort(texts.begin(), texts.end(),
                   [](const MaskedText& a, const MaskedText& b) {
                     return a.ids.size() < b.ids.size();
                   });
  std::vector<MaskedBatch> batches(1);
  int64_t done = 0;
  for (const MaskedText& text : texts) {
    batches.back().Add(text);
    done += static_cast<int64_t>(text.ids.size());
    if (done * shares >= tokens * static_cast<int64_t>(batches.size()) &&
        done < tokens) {
      batches.emplace_back();
    }
  }
  for (MaskedBatch& batch : batches) batch.Pad(pad_id, longest);
  return batches;
}

StageLoss ToStageLoss(const MaskedLoss& loss, int64_t tokens) {
  return {loss.loss, loss.places, loss.found, tokens};
}

class MlmStage : public PretrainStage {
 public:
  MlmStage(const StageSettings& settings, std::unique_ptr<MlmNetwork> network)
      : options_(settings.options),
        tokenizer_(settings.tokenizer),
        workers_(settings.workers),
        masker_(settings.tokenizer, settings.options.masking),
        network_(std::move(network)) {}

  std::vector<std::pair<std::string, at::Tensor>> parameters() const override {
    return network_->parameters();
  }

  absl::StatusOr<CorpusSize> Read(const std::atomic<bool>& stop) override {
    CorpusOptions options;
    options.max_tokens = options_.max_tokens - 2;
    options.held_out_share = options_.held_out_share;
    ASSIGN_OR_RETURN(corpus_, ReadCorpus(options_.texts, tokenizer_, options,
                                         workers_, stop));
    HideHeldOut();
    return corpus_.size;
  }
  int64_t texts() const override { return corpus_.training.size(); }
  int64_t tokens(int64_t text) const override {
    return corpus_.training.length(text) + 2;
  }
  int64_t held_out_tokens() const override { return held_out_tokens_; }

  void StartTraining(uint64_t seed) override { network_->StartTraining(seed); }
  std::vector<Dropout>& dropout() override { return network_->dropout(); }

  absl::StatusOr<StageLoss> ForwardBackward(
      absl::Span<const StageExample> /*step*/,
      absl::Span<const StageExample> own) override {
    if (own.empty()) return StageLoss();
    std::vector<MaskedText> texts;
    int64_t total = 0;
    for (const auto [text, epoch] : own) {
      std::mt19937_64 random = RandomFor(options_.seed, epoch, text);
      texts.push_back(masker_.Mask(corpus_.training[text], &random));
      total += tokens(text);
    }
    // As many for each worker.
    const int64_t count = workers_->count();
    const int64_t shares = (Shares(total) + count - 1) / count * count;
    const std::vector<MaskedBatch> batches =
        Share(std::move(texts), total, shares, tokenizer_.special().pad,
              options_.max_tokens);
    return ToStageLoss(network_->ForwardBackward(batches), total);
  }

  StageLoss Evaluate() const override {
    return ToStageLoss(network_->Evaluate(held_out_), held_out_tokens_);
  }

  absl::StatusOr<std::vector<NamedTensor>> Save(
      TensorType type) const override {
    return network_->Save(type);
  }

 private:
  int64_t Shares(int64_t tokens) const {
    return (tokens + options_.share_tokens - 1) / options_.share_tokens;
  }

  void HideHeldOut() {
    std::vector<MaskedText> texts;
    for (int64_t s = 0;
         s < corpus_.held_out.size() && held_out_tokens_ < kMaxHeldOutTokens;
         ++s) {
      std::mt19937_64 random = RandomFor(options_.seed, kHeldOutRound, s);
      texts.push_back(masker_.Mask(corpus_.held_out[s], &random));
      held_out_tokens_ += static_cast<int64_t>(texts.back().ids.size());
    }
    if (texts.empty()) return;
    held_out_ =
        Share(std::move(texts), held_out_tokens_, Shares(held_out_tokens_),
              tokenizer_.special().pad, options_.max_tokens);
  }

  const PretrainOptions& options_;
  const Tokenizer& tokenizer_;
  Workers* const workers_;
  const WordMasker masker_;
  const std::unique_ptr<MlmNetwork> network_;
  Corpus corpus_;
  std::vector<MaskedBatch> held_out_;
  int64_t held_out_tokens_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PretrainStage>> NewMlmStage(
    const StageSettings& settings) {
  const uint64_t seed = settings.options.seed;
  std::unique_ptr<MlmNetwork> network;
  if (settings.source == nullptr) {
    network = MlmNetwork::Random(settings.config, seed, settings.bf16,
                                 settings.workers, settings.options.device);
  } else {
    Checkpoint checkpoint = settings.source->checkpoint;
    checkpoint.config = settings.config;
    ASSIGN_OR_RETURN(network,
                     MlmNetwork::Load(settings.source->folder, checkpoint, seed,
                                      settings.bf16, settings.workers,
                                      settings.options.device));
  }
  return std::make_unique<MlmStage>(settings, std::move(network));
}

}  // namespace vitrine
