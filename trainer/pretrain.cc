#include "trainer/pretrain.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <random>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "model/load_tokenizer.h"
#include "model/math_libraries.h"
#include "nlohmann/json.hpp"
#include "trainer/batches.h"
#include "trainer/match_marks.h"
#include "trainer/network.h"
#include "trainer/optimizer.h"
#include "trainer/piece_model.h"
#include "trainer/pretrain_stage.h"
#include "trainer/source_model.h"
#include "trainer/tensorboard_writer.h"
#include "trainer/threads.h"
#include "trainer/training_state.h"
#include "trainer/version_writer.h"

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kCreatedBy[] = "vitrine-trainer 0.1.0";
constexpr double kLossSmoothing = 0.98;
constexpr int64_t kPlotSteps = 5;

const char* NameOf(Stage stage) {
  return stage == Stage::kMlm           ? "mlm"
         : stage == Stage::kContrastive ? "contrastive"
                                        : "matching";
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What is made beside --out has its name with more behind it.
PretrainOptions WithoutSlashBehindOut(PretrainOptions options) {
  while (options.out.size() > 1 && options.out.back() == '/') {
    options.out.pop_back();
  }
  return options;
}

class Run {
 public:
  Run(const PretrainOptions& options, PretrainListener* listener,
      const std::atomic<bool>& stop)
      : options_(WithoutSlashBehindOut(options)),
        listener_(listener),
        stop_(stop) {}

  ~Run();

  absl::StatusOr<PretrainReport> Go();

 private:
  absl::StatusOr<PretrainReport> Work();
  // Process 0, or the only one.
  bool IsFirst() const { return options_.processes.rank == 0; }
  absl::StatusOr<std::string> LearnPieces();
  absl::Status ShareOutPieces();
  absl::Status CheckSameRun();
  absl::Status CheckOut() const;
  absl::Status MakeTokenizer();
  absl::Status CheckHeads();
  absl::Status MakeStage();
  absl::Status ReadTexts();
  void MakeOptimizer();
  absl::StatusOr<std::string> Fingerprint() const;
  std::vector<StateFile> StateFiles();
  absl::StatusOr<internal::TrainingState> LoadState();
  absl::Status Resume();
  absl::Status SaveState();
  void Plot(const std::vector<TensorBoardWriter::Scalar>& scalars);
  void ShuffleEpoch();
  std::vector<StageExample> NextExamples();
  absl::Span<const StageExample> ShareOf(
      absl::Span<const StageExample> examples) const;
  absl::StatusOr<StageLoss> ForwardBackward();
  absl::Status Step();
  void Evaluate();
  absl::Status Train();
  absl::Status WriteResult();
  absl::Status CheckStop() const {
    return stop_ ? absl::CancelledError("interrupted; nothing was written")
                 : absl::OkStatus();
  }

  const PretrainOptions options_;
  PretrainListener* const listener_;
  const std::atomic<bool>& stop_;

  std::unique_ptr<ProcessGroup> processes_;  // null: this one is alone
  bool all_stop_ = false;                    // one of them was told to stop
  bool save_due_ = false;                    // after this step
  at::Tensor gradients_;                     // all of them, side by side

  std::unique_ptr<Workers> workers_;
  std::unique_ptr<SourceModel> source_;  // null: random weights
  std::string tokenizer_folder_;
  std::string learnt_pieces_;  // that folder, where this run made it
  std::unique_ptr<Tokenizer> tokenizer_;
  EncoderConfig training_config_;  // with the dropout of this run
  std::unique_ptr<PretrainStage> stage_;

  std::vector<at::Tensor> trained_;
  std::vector<std::string> trained_names_;
  std::unique_ptr<Optimizer> optimizer_;
  // Where training stands: what a checkpoint keeps.
  int64_t step_ = 0, total_steps_ = 0;
  int epoch_ = 0;       // times through the texts so far
  int64_t next_ = 0;    // of the epoch's order
  int64_t tokens_ = 0;  // trained on
  double smoothed_loss_ = 0;
  double training_seconds_ = 0;
  double seconds_before_ = 0;  // of the runs that this one goes on from
  int64_t tokens_here_ = 0;    // of this process
  double seconds_here_ = 0;

  std::vector<int32_t> order_;  // of the epoch
  std::string fingerprint_;
  std::unique_ptr<TrainingStateStore> states_;
  Clock::time_point start_, saved_;
  std::unique_ptr<TensorBoardWriter> plots_;
  double gradient_norm_ = 0, rate_ = 0, step_loss_ = 0;

  PretrainReport report_;
};

Run::~Run() {
  // Process 0 keeps them until it has written the result.
  if (IsFirst() || learnt_pieces_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(learnt_pieces_, ignored);
}

absl::Status Run::CheckOut() const {
  if (!PathExists(options_.out)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto names, ListFolder(options_.out));
  if (names.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("--out ", options_.out, ": the folder is not empty"));
}

// It is kept until the end beside the checkpoints, or beside the result, under
// the digest of what it was learnt from: a run that is begun again does not
// learn it again. Returns the model.
absl::StatusOr<std::string> Run::LearnPieces() {
  listener_->OnPhase("learning the SentencePiece model");
  PieceModelOptions pieces;
  pieces.pieces = options_.pieces;
  pieces.lower_case = options_.lower_case;
  pieces.threads = workers_->count();
  ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                   SampleLines(options_.texts, pieces.sample_bytes));
  std::string all =
      absl::StrCat(pieces.pieces, pieces.lower_case, pieces.threads);
  for (const std::string& line : lines) absl::StrAppend(&all, "\n", line);
  const std::string name = absl::StrCat("pieces-", Sha256(all).substr(0, 16));
  learnt_pieces_ = options_.checkpoint_folder.empty()
                       ? absl::StrCat(options_.out, ".", name)
                       : JoinPath(options_.checkpoint_folder, name);
  const std::string path = JoinPath(learnt_pieces_, "spiece.model");
  if (PathExists(path)) return ReadFile(path);
  RETURN_IF_ERROR(MakeFolders(learnt_pieces_));
  ASSIGN_OR_RETURN(const std::string model,
                   TrainPieceModel(lines, pieces, learnt_pieces_));
  RETURN_IF_ERROR(WriteFile(JoinPath(learnt_pieces_, "tokenizer_config.json"),
                            PieceModelConfigJson()));
  RETURN_IF_ERROR(WriteFileAtomically(path, model));
  return model;
}

// What process 0 learns, in a folder of each of the others' own.
absl::Status Run::ShareOutPieces() {
  std::string model;
  if (IsFirst()) {
    ASSIGN_OR_RETURN(model, LearnPieces());
  }
  if (processes_ == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(model, processes_->Share("pieces", model));
  if (IsFirst()) return absl::OkStatus();
  learnt_pieces_ =
      (std::filesystem::temp_directory_path() /
       absl::StrCat("vitrine-pieces-", getpid(), "-", processes_->rank()))
          .string();
  RETURN_IF_ERROR(MakeFolders(learnt_pieces_));
  RETURN_IF_ERROR(WriteFile(JoinPath(learnt_pieces_, "tokenizer_config.json"),
                            PieceModelConfigJson()));
  return WriteFile(JoinPath(learnt_pieces_, "spiece.model"), model);
}

absl::Status Run::MakeTokenizer() {
  if (!options_.from.empty()) {
    ASSIGN_OR_RETURN(source_, LoadSourceModel(options_.from));
    tokenizer_folder_ = options_.from;
    tokenizer_ = std::move(source_->tokenizer);
    return absl::OkStatus();
  }
  tokenizer_folder_ = options_.tokenizer;
  if (tokenizer_folder_.empty()) {
    RETURN_IF_ERROR(ShareOutPieces());
    tokenizer_folder_ = learnt_pieces_;
    RETURN_IF_ERROR(CheckStop());
  }
  ASSIGN_OR_RETURN(tokenizer_, LoadTokenizer(tokenizer_folder_));
  return absl::OkStatus();
}

// The matching stage goes on with a relevance head; no stage has others.
absl::Status Run::CheckHeads() {
  for (const internal::Head& head : source_->manifest.heads()) {
    if (options_.stage != Stage::kMatching ||
        head.kind() != internal::HEAD_KIND_RELEVANCE ||
        head.name() != "relevance") {
      report_.warnings.push_back(
          absl::StrCat("the head ", head.name(), " of --from ", options_.from,
                       " is not in the result: --stage ",
                       NameOf(options_.stage), " has no use for it"));
      continue;
    }
    const bool means = head.pooling() == internal::POOLING_MEAN;
    if (means != (options_.pooling == internal::POOLING_MEAN)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--pooling ", means ? "cls" : "mean", ": the head relevance of ",
          options_.from, " reads ", means ? "mean" : "cls"));
    }
  }
  return absl::OkStatus();
}

absl::Status Run::MakeStage() {
  EncoderConfig config;
  if (source_ != nullptr) {
    if (options_.stage == Stage::kMatching) {
      RETURN_IF_ERROR(SetMatchMarks(MatchMarks::kOn, source_.get()));
    }
    RETURN_IF_ERROR(CheckHeads());
    config = source_->checkpoint.config;
  } else {
    config.model_type = "bert";
    config.vocab_size = tokenizer_->vocab_size();
    config.pad_token_id = tokenizer_->special().pad;
    config.hidden_size = options_.hidden;
    config.num_layers = options_.layers;
    config.num_heads = options_.heads > 0
                           ? options_.heads
                           : std::max<int64_t>(1, options_.hidden / 64);
    config.intermediate_size =
        options_.intermediate > 0 ? options_.intermediate : 4 * options_.hidden;
    config.type_vocab_size = options_.segments;
    config.max_positions = options_.max_positions;
    // Checks the numbers by the rules of every other config.
    RETURN_IF_ERROR(ParseEncoderConfig(EncoderConfigToJson(config)).status());
  }
  // An output layer is made by one stage, and kept by the other.
  const std::string family = config.model_type == "bert"      ? "Bert"
                             : config.model_type == "roberta" ? "Roberta"
                                                              : "XLMRoberta";
  const std::string with_layer = family + "ForMaskedLM";
  config.labels.clear();
  if (options_.stage == Stage::kMatching) {
    config.architectures = {family + "ForSequenceClassification"};
    config.labels = {"relevance"};
  } else if (options_.stage == Stage::kMlm ||
             config.architectures != std::vector<std::string>{with_layer}) {
    config.architectures = {options_.stage == Stage::kMlm ? with_layer
                                                          : family + "Model"};
  }
  if (options_.max_tokens > config.max_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-tokens ", options_.max_tokens, ": the encoder has ",
                     config.max_tokens(), " positions"));
  }
  report_.config = config;
  training_config_ = config;
  training_config_.hidden_dropout = training_config_.attention_dropout =
      options_.dropout;
  const StageSettings settings = {
      options_,     training_config_, *tokenizer_,     source_.get(),
      report_.bf16, workers_.get(),   processes_.get()};
  ASSIGN_OR_RETURN(stage_, options_.stage == Stage::kMlm ? NewMlmStage(settings)
                           : options_.stage == Stage::kContrastive
                               ? NewContrastiveStage(settings)
                               : NewMatchingStage(settings));
  for (const auto& [name, tensor] : stage_->parameters()) {
    report_.parameters += tensor.numel();
  }
  return absl::OkStatus();
}

absl::Status Run::ReadTexts() {
  listener_->OnPhase("reading the texts");
  ASSIGN_OR_RETURN(const CorpusSize size, stage_->Read(stop_));
  if (stage_->texts() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text: ", size.documents, " documents, none of them ",
                     options_.stage == Stage::kMlm
                         ? "long enough to train on"
                         : "with two fields or enough words for two crops"));
  }
  report_.documents = size.documents;
  report_.sequences = size.sequences;
  report_.corpus_tokens = size.tokens;
  report_.data_digest = size.digest;
  report_.held_out_tokens = stage_->held_out_tokens();
  report_.candidates = stage_->candidates();
  const double wanted = options_.tokens > 0
                            ? static_cast<double>(options_.tokens)
                            : options_.epochs * report_.corpus_tokens;
  total_steps_ = std::max<int64_t>(
      1, static_cast<int64_t>(std::ceil(wanted / options_.batch_tokens)));
  report_.total_steps = total_steps_;
  if (report_.held_out_tokens == 0) {
    report_.warnings.push_back(
        "no texts are held out, so there is no perplexity");
  }
  return absl::OkStatus();
}

void Run::MakeOptimizer() {
  std::vector<ParameterGroup> groups(2);
  for (const auto& [name, tensor] : stage_->parameters()) {
    groups[!IsDecayed(name)].tensors.push_back(tensor);
    trained_.push_back(tensor);
    trained_names_.push_back(name);
  }
  for (ParameterGroup& group : groups) {
    group.learning_rate = options_.learning_rate;
  }
  groups[0].weight_decay = options_.weight_decay;
  optimizer_ = NewAdamW(groups, workers_.get(), options_.beta2);
  stage_->StartTraining(options_.seed);
  if (processes_ == nullptr) return;
  // As if all processes' workers were those of one.
  std::vector<Dropout>& dropout = stage_->dropout();
  for (size_t i = 0; i < dropout.size(); ++i) {
    dropout[i] = Dropout(options_.seed * 1000003 +
                         processes_->rank() * dropout.size() + i);
  }
}

// All that the numbers of a step depend on.
absl::StatusOr<std::string> Run::Fingerprint() const {
  const PretrainOptions& o = options_;
  std::string text = absl::StrCat(kCreatedBy, "|", NameOf(o.stage));
  for (const double value :
       {o.learning_rate, o.warmup, o.weight_decay, o.clip, o.beta2, o.dropout,
        o.masking.share, o.masking.keep, o.masking.substitute, o.held_out_share,
        o.temperature}) {
    absl::StrAppendFormat(&text, "|%.17g", value);
  }
  for (const int64_t value :
       {static_cast<int64_t>(o.schedule), int64_t{o.pooling},
        int64_t{o.max_tokens}, int64_t{o.batch_tokens}, int64_t{o.share_tokens},
        total_steps_, static_cast<int64_t>(o.seed), int64_t{o.device.cuda()},
        int64_t{report_.bf16}, int64_t{workers_->count()},
        int64_t{at::get_num_threads()}}) {
    absl::StrAppend(&text, "|", value);
  }
  if (processes_ != nullptr) {
    absl::StrAppend(&text, "|processes ", processes_->size());
  }
  if (o.stage == Stage::kMatching) {
    absl::StrAppend(&text, "|", o.negatives, "|", o.hard_negatives);
  }
  absl::StrAppend(&text, "|", report_.data_digest, "|",
                  EncoderConfigToJson(report_.config));
  for (const std::string& name : TokenizerFiles(tokenizer_folder_)) {
    ASSIGN_OR_RETURN(const std::string digest,
                     Sha256OfFile(JoinPath(tokenizer_folder_, name)));
    absl::StrAppend(&text, "|", name, digest);
  }
  if (source_ != nullptr) {
    for (size_t i = 0; i < trained_.size(); ++i) {
      const at::Tensor here = trained_[i].detach().to(at::kCPU);
      const absl::string_view bytes(static_cast<const char*>(here.data_ptr()),
                                    here.nbytes());
      absl::StrAppend(&text, "|", trained_names_[i], Sha256(bytes));
    }
  }
  return Sha256(text);
}

std::vector<StateFile> Run::StateFiles() {
  std::vector<StateFile> files = {{"parameters", trained_names_, trained_}};
  AddMoments(optimizer_.get(), &files);
  return files;
}

// Of all processes, or their sums would be of different things.
absl::Status Run::CheckSameRun() {
  ASSIGN_OR_RETURN(fingerprint_, Fingerprint());
  if (processes_ == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string first,
                   processes_->Share("fingerprint", fingerprint_));
  if (first == fingerprint_) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "process ", processes_->rank(),
      " has not what process 0 has: texts, options, tokenizer, --from, number "
      "of threads or bf16 differ"));
}

// Into the tensors, too. kNotFound: there is none to go on from.
absl::StatusOr<internal::TrainingState> Run::LoadState() {
  if (states_ == nullptr) return absl::NotFoundError("no checkpoints");
  internal::TrainingState state;
  const absl::Status loaded = states_->Load(&state, StateFiles());
  if (loaded.ok()) return state;
  if (!absl::IsNotFound(loaded)) {
    Log(LogLevel::kWarning, "checkpoint_not_used",
        {{"folder", options_.checkpoint_folder}, {"reason", loaded}});
    report_.warnings.push_back(absl::StrCat(
        "training starts from the beginning: ", std::string(loaded.message())));
  }
  return absl::NotFoundError("none that fits");
}

absl::Status Run::Resume() {
  if (!options_.checkpoint_folder.empty() && IsFirst()) {
    RETURN_IF_ERROR(MakeFolders(options_.checkpoint_folder));
    // Parameters and two moments; twice, for the old checkpoint goes when the
    // new one is there.
    RETURN_IF_ERROR(CheckFreeDisk(options_.checkpoint_folder,
                                  report_.parameters * 4 * 3 * 2,
                                  "checkpoints"));
    states_ = std::make_unique<TrainingStateStore>(options_.checkpoint_folder,
                                                   fingerprint_);
  }
  absl::StatusOr<internal::TrainingState> loaded = LoadState();
  if (processes_ != nullptr) {
    // What process 0 found goes to all.
    ASSIGN_OR_RETURN(
        const std::string shared,
        processes_->Share("state",
                          loaded.ok() ? loaded->SerializeAsString() : ""));
    if (!shared.empty()) {
      internal::TrainingState state;
      if (!state.ParseFromString(shared)) {
        return absl::InternalError("process 0's state is none");
      }
      loaded = std::move(state);
      for (const StateFile& file : StateFiles()) {
        for (const at::Tensor& tensor : file.tensors) {
          RETURN_IF_ERROR(processes_->Copy(tensor.detach()));
        }
      }
    }
  }
  if (!loaded.ok()) return absl::OkStatus();
  const internal::TrainingState& state = *loaded;
  std::vector<Dropout>& dropout = stage_->dropout();
  const auto first = static_cast<int>(dropout.size()) * options_.processes.rank;
  for (int i = 0;
       i < static_cast<int>(dropout.size()) && first + i < state.dropout_size();
       ++i) {
    dropout[i].set_state(state.dropout(first + i));
  }
  *optimizer_->GetState().steps = state.optimizer_steps();
  step_ = state.step();
  epoch_ = state.epoch();
  next_ = state.epoch_step();
  tokens_ = state.tokens();
  smoothed_loss_ = state.smoothed_loss();
  training_seconds_ = state.training_seconds();
  seconds_before_ = state.seconds();
  report_.resumed_step = step_;
  if (IsFirst()) {
    Log(LogLevel::kInfo, "training_resumed",
        {{"folder", options_.checkpoint_folder}, {"step", step_}});
  }
  return absl::OkStatus();
}

// A checkpoint that cannot be written costs the work since the one before,
// and only if the run is cut off: training goes on. All processes come here
// together, for each has streams of dropout of its own.
absl::Status Run::SaveState() {
  saved_ = Clock::now();
  if (options_.checkpoint_folder.empty()) return absl::OkStatus();
  std::vector<uint64_t> streams;
  for (const Dropout& dropout : stage_->dropout()) {
    streams.push_back(dropout.state());
  }
  if (processes_ != nullptr) {
    // Halves of 32 bits, which a double holds.
    std::vector<double> halves(2 * streams.size() * processes_->size());
    double* half = halves.data() + 2 * streams.size() * processes_->rank();
    for (const uint64_t stream : streams) {
      *half++ = static_cast<double>(stream >> 32);
      *half++ = static_cast<double>(stream & 0xffffffff);
    }
    RETURN_IF_ERROR(processes_->Sum(absl::MakeSpan(halves)));
    streams.clear();
    for (size_t i = 0; i < halves.size(); i += 2) {
      streams.push_back(static_cast<uint64_t>(halves[i]) << 32 |
                        static_cast<uint64_t>(halves[i + 1]));
    }
  }
  if (states_ == nullptr) return absl::OkStatus();
  internal::TrainingState state;
  state.set_step(step_);
  state.set_epoch(epoch_);
  state.set_epoch_step(next_);
  for (const uint64_t stream : streams) state.add_dropout(stream);
  state.set_optimizer_steps(*optimizer_->GetState().steps);
  state.set_tokens(tokens_);
  state.set_smoothed_loss(smoothed_loss_);
  state.set_training_seconds(training_seconds_);
  state.set_seconds(seconds_before_ + SecondsSince(start_));
  const absl::Status saved = states_->Save(std::move(state), StateFiles());
  if (!saved.ok()) {
    Log(LogLevel::kWarning, "checkpoint_failed",
        {{"folder", options_.checkpoint_folder},
         {"step", step_},
         {"error", saved}});
  }
  saved_ = Clock::now();
  return absl::OkStatus();
}

// A plot is not worth the run: the first error is told, and there are no more.
void Run::Plot(const std::vector<TensorBoardWriter::Scalar>& scalars) {
  if (plots_ == nullptr) return;
  const absl::Status written = plots_->Write(step_, scalars);
  if (written.ok()) return;
  Log(LogLevel::kWarning, "plots_end", {{"error", written}});
  plots_.reset();
}

void Run::ShuffleEpoch() {
  order_.resize(stage_->texts());
  std::iota(order_.begin(), order_.end(), 0);
  std::mt19937_64 random = RandomFor(options_.seed, epoch_, kHeldOutRound);
  Shuffle(&order_, &random);
}

// A step's, as many as its tokens allow.
std::vector<StageExample> Run::NextExamples() {
  std::vector<StageExample> examples;
  int64_t tokens = 0;
  while (tokens < options_.batch_tokens) {
    if (next_ == static_cast<int64_t>(order_.size())) {
      ++epoch_;
      next_ = 0;
      ShuffleEpoch();
    }
    tokens += stage_->tokens(order_[next_]);
    if (!examples.empty() && tokens > options_.batch_tokens) break;
    examples.push_back({order_[next_++], epoch_});
  }
  return examples;
}

// This process's part of a step: neighbours, with about as many tokens in each
// process.
absl::Span<const StageExample> Run::ShareOf(
    absl::Span<const StageExample> examples) const {
  int64_t total = 0;
  for (const StageExample& example : examples) {
    total += stage_->tokens(example.text);
  }
  const int64_t rank = processes_->rank(), size = processes_->size();
  size_t begin = 0, end = 0;
  int64_t before = 0;  // tokens
  for (const StageExample& example : examples) {
    begin += before * size < total * rank;
    end += before * size < total * (rank + 1);
    before += stage_->tokens(example.text);
  }
  return examples.subspan(begin, end - begin);
}

// Sets the gradients to those of the step, of all processes together.
absl::StatusOr<StageLoss> Run::ForwardBackward() {
  const std::vector<StageExample> examples = NextExamples();
  if (processes_ == nullptr) return stage_->ForwardBackward(examples, examples);
  const absl::Span<const StageExample> share = ShareOf(examples);
  for (at::Tensor& tensor : trained_) tensor.mutable_grad() = at::Tensor();
  ASSIGN_OR_RETURN(StageLoss loss, stage_->ForwardBackward(examples, share));

  const at::NoGradGuard no_grad;
  if (!gradients_.defined()) {
    gradients_ = at::empty({report_.parameters}, trained_[0].options());
  }
  const auto each = [this](const auto& f) {
    int64_t begin = 0;
    for (at::Tensor& tensor : trained_) {
      f(tensor, gradients_.narrow(0, begin, tensor.numel()).view_as(tensor));
      begin += tensor.numel();
    }
  };
  each([](const at::Tensor& tensor, const at::Tensor& place) {
    tensor.grad().defined() ? place.copy_(tensor.grad()) : place.zero_();
  });
  RETURN_IF_ERROR(processes_->Sum(gradients_));
  each([](at::Tensor& tensor, const at::Tensor& place) {
    tensor.mutable_grad() = place;
  });
  const bool due =
      SecondsSince(saved_) >= options_.checkpoint_seconds && IsFirst();
  double numbers[] = {loss.loss,
                      static_cast<double>(loss.count),
                      static_cast<double>(loss.found),
                      static_cast<double>(loss.tokens),
                      static_cast<double>(stop_),
                      static_cast<double>(due)};
  RETURN_IF_ERROR(processes_->Sum(absl::MakeSpan(numbers)));
  loss.loss = numbers[0];
  loss.count = static_cast<int64_t>(numbers[1]);
  loss.found = static_cast<int64_t>(numbers[2]);
  loss.tokens = static_cast<int64_t>(numbers[3]);
  all_stop_ = numbers[4] > 0;
  save_due_ = numbers[5] > 0;
  return loss;
}

absl::Status Run::Step() {
  ASSIGN_OR_RETURN(const StageLoss loss, ForwardBackward());
  tokens_ += loss.tokens;
  tokens_here_ += loss.tokens;
  step_loss_ = loss.loss / static_cast<double>(loss.count);
  const double norm =
      GradientNorm(trained_, workers_.get()) / static_cast<double>(loss.count);
  if (!std::isfinite(step_loss_) || !std::isfinite(norm)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the loss became ", step_loss_, " and its gradient ", norm, " at step ",
        step_ + 1, "; a lower --learning-rate may help"));
  }
  gradient_norm_ = norm;
  const double clip =
      options_.clip > 0 && norm > options_.clip ? options_.clip / norm : 1;
  const double factor =
      RateFactor(options_.schedule, options_.warmup, step_, total_steps_);
  rate_ = options_.learning_rate * factor;
  optimizer_->Step(factor, clip / static_cast<double>(loss.count));
  ++step_;
  smoothed_loss_ = step_ == 1 ? step_loss_
                              : kLossSmoothing * smoothed_loss_ +
                                    (1 - kLossSmoothing) * step_loss_;
  return absl::OkStatus();
}

void Run::Evaluate() {
  if (report_.held_out_tokens == 0 || !IsFirst()) return;
  const StageLoss loss = stage_->Evaluate();
  const auto count = static_cast<double>(loss.count);
  report_.perplexity = std::exp(loss.loss / count);
  report_.accuracy = static_cast<double>(loss.found) / count;
  Plot({{"held_out/perplexity", report_.perplexity},
        {"held_out/accuracy", report_.accuracy}});
  listener_->OnEvaluate(step_, report_.perplexity, report_.accuracy);
}

absl::Status Run::Train() {
  start_ = saved_ = Clock::now();
  ShuffleEpoch();
  const int64_t evaluate_steps =
      std::max<int64_t>(1, options_.evaluate_tokens / options_.batch_tokens);
  while (step_ < total_steps_) {
    // Of several processes, all stop after the same step.
    if (processes_ == nullptr ? stop_.load() : all_stop_) {
      RETURN_IF_ERROR(SaveState());
      return absl::CancelledError("interrupted; nothing was written");
    }
    const Clock::time_point start = Clock::now();
    RETURN_IF_ERROR(Step());
    seconds_here_ += SecondsSince(start);
    training_seconds_ += SecondsSince(start);
    PretrainProgress progress;
    progress.step = step_;
    progress.steps = total_steps_;
    progress.tokens = tokens_;
    progress.loss = smoothed_loss_;
    progress.tokens_per_second = tokens_here_ / seconds_here_;
    progress.eta_seconds = training_seconds_ / step_ * (total_steps_ - step_);
    if (step_ % kPlotSteps == 0 || step_ == 1) {
      Plot({{"training/loss", step_loss_},
            {"training/smoothed_loss", smoothed_loss_},
            {"training/learning_rate", rate_},
            {"training/gradient_norm", gradient_norm_},
            {"training/tokens_per_second", progress.tokens_per_second}});
    }
    listener_->OnStep(progress);
    if (step_ % evaluate_steps == 0 && step_ < total_steps_) Evaluate();
    const int64_t steps = options_.checkpoint_steps;
    if (processes_ == nullptr) {
      save_due_ = SecondsSince(saved_) >= options_.checkpoint_seconds;
    }
    if (save_due_ || (steps > 0 && step_ % steps == 0)) {
      RETURN_IF_ERROR(SaveState());
    }
  }
  if (report_.resumed_step < step_) RETURN_IF_ERROR(SaveState());
  Evaluate();
  report_.steps = step_;
  report_.tokens = tokens_;
  report_.epochs = epoch_ + static_cast<double>(next_) / order_.size();
  report_.loss = smoothed_loss_;
  report_.seconds = seconds_before_ + SecondsSince(start_);
  report_.tokens_per_second = tokens_here_ / std::max(1e-9, seconds_here_);
  return absl::OkStatus();
}

// What went in, for whoever finds the folder.
std::string Description(const PretrainOptions& o, const PretrainReport& r) {
  nlohmann::ordered_json json;
  json["created_by"] = kCreatedBy;
  json["stage"] = NameOf(o.stage);
  json["from"] = o.from.empty()
                     ? nlohmann::ordered_json()
                     : nlohmann::ordered_json(
                           std::filesystem::path(o.from).filename().string());
  for (const TextSource& text : o.texts) {
    nlohmann::ordered_json entry;
    entry["file"] = std::filesystem::path(text.path).filename().string();
    for (const TextField& field : text.fields) {
      entry["fields"].push_back(field.name);
    }
    json["texts"].push_back(std::move(entry));
  }
  json["documents"] = r.documents;
  json["sequences"] = r.sequences;
  json["corpus_tokens"] = r.corpus_tokens;
  json["data_digest"] = r.data_digest;
  json["tokens_seen"] = r.tokens;
  json["epochs"] = r.epochs;
  json["steps"] = r.steps;
  json["seconds"] = r.seconds;
  json["loss"] = r.loss;
  if (r.held_out_tokens > 0) {
    json["perplexity"] = r.perplexity;
    json["accuracy"] = r.accuracy;
    if (r.candidates > 0) json["candidates"] = r.candidates;
    json["held_out_tokens"] = r.held_out_tokens;
  }
  json["options"] = {
      {"max_tokens", o.max_tokens},
      {"batch_tokens", o.batch_tokens},
      {"share_tokens", o.share_tokens},
      {"learning_rate", o.learning_rate},
      {"schedule", o.schedule == Schedule::kCosine   ? "cosine"
                   : o.schedule == Schedule::kLinear ? "linear"
                                                     : "constant"},
      {"warmup", o.warmup},
      {"weight_decay", o.weight_decay},
      {"clip", o.clip},
      {"beta2", o.beta2},
      {"dropout", o.dropout},
      {"mask", o.masking.share},
      {"mask_keep", o.masking.keep},
      {"mask_substitute", o.masking.substitute},
      {"temperature", o.temperature},
      {"pooling", o.pooling == internal::POOLING_MEAN ? "mean" : "cls"},
      {"negatives", o.negatives},
      {"hard_negatives", o.hard_negatives},
      {"held_out_share", o.held_out_share},
      {"seed", o.seed},
      {"device", r.device},
      {"bf16", r.bf16},
      {"processes", o.processes.size},
      {"workers", r.workers}};
  return json.dump(2) + "\n";
}

// Whole or not at all: beside the folder first, then one rename.
absl::Status Run::WriteResult() {
  NewVersion version;
  version.config = report_.config;
  ASSIGN_OR_RETURN(
      version.encoder,
      stage_->Save(options_.save_f16 ? TensorType::kF16 : TensorType::kF32));
  version.tokenizer_folder = tokenizer_folder_;
  const std::string partial = absl::StrCat(options_.out, ".partial");
  std::error_code error;
  std::filesystem::remove_all(partial, error);
  RETURN_IF_ERROR(CheckFreeDisk(options_.out, SizeOnDisk(version.encoder, {}),
                                "the model"));
  RETURN_IF_ERROR(MakeFolders(partial));
  RETURN_IF_ERROR(WriteModelFolder(partial, version));
  if (options_.stage == Stage::kMatching &&
      options_.pooling == internal::POOLING_MEAN) {
    // The head's, not the encoder's: ModernBERT's field, which import reads.
    auto config =
        nlohmann::ordered_json::parse(EncoderConfigToJson(version.config));
    config["classifier_pooling"] = "mean";
    RETURN_IF_ERROR(
        WriteFile(JoinPath(partial, "config.json"), config.dump(2) + "\n"));
  }
  RETURN_IF_ERROR(WriteFile(JoinPath(partial, "pretraining.json"),
                            Description(options_, report_)));
  RETURN_IF_ERROR(SyncFolder(partial));
  std::filesystem::remove(options_.out, error);  // it is empty
  std::filesystem::rename(partial, options_.out, error);
  if (error) {
    return absl::InternalError(
        absl::StrCat("rename to ", options_.out, ": ", error.message()));
  }
  if (!learnt_pieces_.empty()) {
    std::filesystem::remove_all(learnt_pieces_, error);
  }
  return absl::OkStatus();
}

absl::StatusOr<PretrainReport> Run::Work() {
  if (IsFirst()) RETURN_IF_ERROR(CheckOut());
  report_.device = options_.device.name();
  report_.bf16 =
      options_.bf16.value_or(options_.device.cuda() || ProcessorHasBf16());
  workers_ = std::make_unique<Workers>(
      SetUpThreads(options_.threads, report_.bf16, kAllProducts));
  report_.workers = workers_->count();
  RETURN_IF_ERROR(MakeTokenizer());
  RETURN_IF_ERROR(MakeStage());
  RETURN_IF_ERROR(ReadTexts());
  MakeOptimizer();
  RETURN_IF_ERROR(CheckSameRun());
  RETURN_IF_ERROR(Resume());
  if (!options_.tensorboard_folder.empty() && IsFirst()) {
    ASSIGN_OR_RETURN(
        plots_, TensorBoardWriter::Create(options_.tensorboard_folder, step_));
  }
  listener_->OnStart(report_);
  RETURN_IF_ERROR(Train());
  if (IsFirst()) RETURN_IF_ERROR(WriteResult());
  if (processes_ != nullptr) {
    // None is done before the result is there.
    double nothing = 0;
    RETURN_IF_ERROR(processes_->Sum(absl::MakeSpan(&nothing, 1)));
  }
  return report_;
}

absl::StatusOr<PretrainReport> Run::Go() {
  RETURN_IF_ERROR(CheckOptions(options_));
  if (options_.processes.size == 1) return Work();
  listener_->OnPhase(absl::StrCat("waiting for ", options_.processes.size,
                                  " processes at ", options_.processes.address,
                                  ":", options_.processes.port));
  ASSIGN_OR_RETURN(processes_, ProcessGroup::Join(options_.processes));
  absl::StatusOr<PretrainReport> result = Work();
  if (!result.ok()) processes_->Leave(result.status());
  return result;
}

}  // namespace

std::mt19937_64 RandomFor(uint64_t seed, uint64_t round, uint64_t text) {
  std::seed_seq sequence{
      static_cast<uint32_t>(seed),  static_cast<uint32_t>(seed >> 32),
      static_cast<uint32_t>(round), static_cast<uint32_t>(round >> 32),
      static_cast<uint32_t>(text),  static_cast<uint32_t>(text >> 32)};
  return std::mt19937_64(sequence);
}

absl::StatusOr<PretrainReport> Pretrain(const PretrainOptions& options,
                                        PretrainListener* listener,
                                        const std::atomic<bool>& stop) {
  try {
    return Run(options, listener, stop).Go();
  } catch (const std::exception& e) {  // LibTorch's, out of memory
    return absl::InternalError(absl::StrCat("pre-training: ", e.what()));
  }
}

}  // namespace vitrine
