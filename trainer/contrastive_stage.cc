// The contrastive stage: the vectors of two texts that say much the same come
// close, those of other texts of the batch go apart. The vector is what Embed
// and a fresh recommendation head answer with: the pooled state, of length 1.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>

#include "absl/hash/hash.h"
#include "absl/strings/match.h"
#include "base/status_macros.h"
#include "trainer/contrastive_loss.h"
#include "trainer/mlm_network.h"
#include "trainer/network.h"
#include "trainer/pretrain_stage.h"
#include "trainer/text_pairs.h"

namespace vitrine {
namespace {

// Pairs that held-out texts are told apart among: the share that is found
// depends on it.
constexpr size_t kHeldOutPairs = 128;

// A head without weights.
internal::Head VectorHead(internal::Pooling pooling) {
  internal::Head head;
  head.set_name("vector");
  head.set_kind(internal::HEAD_KIND_RECOMMENDATION);
  head.set_pooling(pooling);
  return head;
}

// Equal texts have equal keys, in this process.
uint64_t KeyOf(const Encoding& encoding) { return absl::HashOf(encoding.ids); }

// The pairs of a batch, left halves first.
struct PairBatch {
  std::vector<TextPair> pairs;
  std::vector<const Encoding*> sequences;  // (2 * pairs)
  std::vector<uint64_t> keys;
  int64_t tokens = 0;

  PairBatch(PairBatch&&) = default;
  explicit PairBatch(std::vector<TextPair> made) : pairs(std::move(made)) {
    for (const TextPair& pair : pairs) sequences.push_back(&pair.left);
    for (const TextPair& pair : pairs) sequences.push_back(&pair.right);
    for (const Encoding* const sequence : sequences) {
      keys.push_back(KeyOf(*sequence));
      tokens += static_cast<int64_t>(sequence->ids.size());
    }
  }
};

class ContrastiveStage : public PretrainStage {
 public:
  ContrastiveStage(const StageSettings& settings,
                   std::unique_ptr<Network> network)
      : settings_(settings),
        options_(settings.options),
        maker_(settings.tokenizer, settings.options.max_tokens),
        network_(std::move(network)) {}

  std::vector<std::pair<std::string, at::Tensor>> parameters() const override {
    std::vector<std::pair<std::string, at::Tensor>> out;
    for (const auto& [name, tensor] : network_->EncoderParameters()) {
      if (absl::StartsWith(name, "pooler.")) continue;  // has no part in this
      out.emplace_back(name, tensor);
    }
    return out;
  }

  absl::StatusOr<CorpusSize> Read(const std::atomic<bool>& stop) override {
    DocumentOptions options;
    options.held_out_share = options_.held_out_share;
    options.join_parts = false;
    // A crop of what comes later in a long text is as good as any.
    options.max_part_tokens = 4 * options_.max_tokens;
    ASSIGN_OR_RETURN(CorpusSize size,
                     ReadDocuments(options_.texts, settings_.tokenizer, options,
                                   settings_.workers, stop,
                                   [this](const TokenizedDocument& document) {
                                     Add(document);
                                   }));
    size.sequences = training_.size();
    for (int64_t i = 0; i < training_.size(); ++i) size.tokens += tokens(i);
    PairHeldOut();
    return size;
  }
  int64_t texts() const override { return training_.size(); }
  int64_t tokens(int64_t text) const override {
    return maker_.MaxTokens(training_, text);
  }
  int64_t held_out_tokens() const override { return held_out_tokens_; }
  int64_t candidates() const override {
    return held_out_.empty()
               ? 0
               : static_cast<int64_t>(held_out_.front().pairs.size());
  }

  void StartTraining(uint64_t seed) override {
    std::vector<at::Tensor> tensors;
    for (const auto& [name, tensor] : parameters()) tensors.push_back(tensor);
    network_->StartTraining(std::move(tensors), seed);
  }
  std::vector<Dropout>& dropout() override { return network_->dropout(); }

  // The loss ties all of a step's texts together: each process makes the
  // vectors of its own, has those of the others from them, and computes the
  // whole loss, of which its gradients are its own texts' part.
  absl::StatusOr<StageLoss> ForwardBackward(
      absl::Span<const StageExample> step,
      absl::Span<const StageExample> own) override {
    std::vector<TextPair> pairs;
    for (const auto [text, epoch] : step) {
      std::mt19937_64 random = RandomFor(options_.seed, epoch, text);
      pairs.push_back(maker_.Draw(training_, text, &random));
    }
    const PairBatch batch(std::move(pairs));
    const auto begin = static_cast<int64_t>(own.data() - step.data());
    const auto count = static_cast<int64_t>(own.size());
    const auto size = static_cast<int64_t>(step.size());
    std::vector<const Encoding*> sequences;
    for (const int64_t half : {begin, size + begin}) {
      const auto from = batch.sequences.begin() + half;
      sequences.insert(sequences.end(), from, from + count);
    }
    StageLoss out;
    for (const Encoding* const sequence : sequences) {
      out.tokens += static_cast<int64_t>(sequence->ids.size());
    }
    absl::Status gathered;
    int64_t found = 0;
    const auto loss = [&](const at::Tensor& vectors) {
      at::Tensor all = vectors;
      if (settings_.processes != nullptr) {
        gathered = Gather(begin, count, size, &all);
        if (!gathered.ok()) return vectors.sum();
      }
      return ContrastiveLoss(all, batch.keys, options_.temperature, &found);
    };
    if (count == 0) {
      at::Tensor none;
      RETURN_IF_ERROR(Gather(begin, count, size, &none));
      return out;
    }
    const double whole =
        network_->ForwardBackward(0, sequences, loss, /*weight=*/1);
    RETURN_IF_ERROR(gathered);
    if (begin == 0) {  // told by one process
      out.loss = whole;
      out.count = 2 * size;
      out.found = found;
    }
    return out;
  }

  StageLoss Evaluate() const override {
    StageLoss sum;
    for (const PairBatch& batch : held_out_) {
      const at::NoGradGuard no_grad;
      const at::Tensor vectors =
          at::tensor(network_->Infer(0, batch.sequences))
              .view({static_cast<int64_t>(batch.sequences.size()), -1});
      int64_t found = 0;
      sum.loss +=
          ContrastiveLoss(vectors, batch.keys, options_.temperature, &found)
              .item<double>();
      sum.count += SizeOf(batch).count;
      sum.found += found;
      sum.tokens += batch.tokens;
    }
    return sum;
  }

  absl::StatusOr<std::vector<NamedTensor>> Save(
      TensorType type) const override {
    const std::vector<std::string>& architectures =
        settings_.config.architectures;
    if (architectures.empty() ||
        !absl::EndsWith(architectures[0], "ForMaskedLM")) {
      return network_->SaveEncoder(type);
    }
    // With the output layer as it was, for whoever goes on by masked words.
    ASSIGN_OR_RETURN(
        const std::unique_ptr<MlmNetwork> whole,
        MlmNetwork::Load(settings_.source->folder, settings_.source->checkpoint,
                         options_.seed, settings_.bf16, settings_.workers));
    std::map<std::string, at::Tensor> encoder;
    for (const auto& [name, tensor] : network_->EncoderParameters()) {
      encoder[name] = tensor;
    }
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : whole->parameters()) {
      const auto it = encoder.find(name.substr(name.find('.') + 1));
      if (it != encoder.end()) tensor.copy_(it->second);
    }
    return whole->Save(type);
  }

 private:
  // `vectors`, (2 * count, width), are this process's, of the pairs from
  // `begin` on; they become those of all `size` pairs, the others' without
  // gradients. All processes call it at once.
  absl::Status Gather(int64_t begin, int64_t count, int64_t size,
                      at::Tensor* vectors) const {
    at::Tensor all = at::zeros({2 * size, network_->width(0)});
    if (count > 0) {
      const at::Tensor own = vectors->detach();
      all.narrow(0, begin, count).copy_(own.narrow(0, 0, count));
      all.narrow(0, size + begin, count).copy_(own.narrow(0, count, count));
    }
    RETURN_IF_ERROR(settings_.processes->Sum(all));
    if (count == 0) {
      *vectors = all;
      return absl::OkStatus();
    }
    const int64_t end = begin + count;
    *vectors = at::cat({all.narrow(0, 0, begin), vectors->narrow(0, 0, count),
                        all.narrow(0, end, size - count),
                        vectors->narrow(0, count, count),
                        all.narrow(0, size + end, size - end)});
    return absl::OkStatus();
  }

  static StageLoss SizeOf(const PairBatch& batch) {
    StageLoss size;
    size.count = static_cast<int64_t>(batch.sequences.size());
    size.tokens = batch.tokens;
    return size;
  }

  void Add(const TokenizedDocument& document) {
    if (maker_.Ways(document.parts) == 0) return;
    PairDocuments& documents = document.held_out ? held_out_texts_ : training_;
    for (const auto& part : document.parts) documents.parts.Add(part);
    documents.offsets.push_back(documents.parts.size());
  }

  void PairHeldOut() {
    std::vector<TextPair> pairs;
    for (int64_t d = 0;
         d < held_out_texts_.size() && held_out_tokens_ < kMaxHeldOutTokens;
         ++d) {
      std::mt19937_64 random = RandomFor(options_.seed, kHeldOutRound, d);
      pairs.push_back(maker_.Draw(held_out_texts_, d, &random));
      held_out_tokens_ += static_cast<int64_t>(pairs.back().left.ids.size() +
                                               pairs.back().right.ids.size());
      if (pairs.size() == kHeldOutPairs) {
        held_out_.emplace_back(std::exchange(pairs, {}));
      }
    }
    // A smaller batch is easier: only where there is no other.
    if (held_out_.empty() && pairs.size() > 1) {
      held_out_.emplace_back(std::move(pairs));
    }
    if (held_out_.empty()) held_out_tokens_ = 0;
  }

  const StageSettings settings_;
  const PretrainOptions& options_;
  const PairMaker maker_;
  const std::unique_ptr<Network> network_;
  PairDocuments training_, held_out_texts_;
  std::vector<PairBatch> held_out_;
  int64_t held_out_tokens_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PretrainStage>> NewContrastiveStage(
    const StageSettings& settings) {
  Checkpoint checkpoint = settings.source->checkpoint;
  checkpoint.config = settings.config;
  checkpoint.heads.clear();
  ASSIGN_OR_RETURN(
      std::unique_ptr<Network> network,
      Network::Create(checkpoint, {VectorHead(settings.options.pooling)},
                      settings.bf16, settings.workers,
                      settings.options.device));
  network->PadBatches(settings.tokenizer.special().pad,
                      settings.options.max_tokens);
  return std::make_unique<ContrastiveStage>(settings, std::move(network));
}

}  // namespace vitrine
