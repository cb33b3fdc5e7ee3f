#pragma once

// A whole run of pre-training: reads texts, makes a tokenizer where none is
// given, trains a BERT without labels, writes a Hugging Face folder. The
// command line's `pretrain` is a thin shell around it.

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "trainer/masking.h"
#include "trainer/pass_device.h"
#include "trainer/process_group.h"
#include "trainer/schedule.h"
#include "trainer/text_documents.h"
#include "vitrine/internal/manifest.pb.h"

namespace vitrine {

// What is learnt from the texts.
enum class Stage {
  kMlm,          // which words were hidden
  kContrastive,  // which texts belong together; after kMlm, hence with `from`
  kMatching,     // which item a query is of, read together; likewise
};

struct PretrainOptions {
  Stage stage = Stage::kMlm;
  std::vector<TextSource> texts;
  std::string out;  // the folder to make

  // What to start from: a folder, whose shape and tokenizer the result has;
  // empty: random weights.
  std::string from;
  // A folder with tokenizer files; empty: that of `from`, or a SentencePiece
  // model learnt from the texts.
  std::string tokenizer;
  int64_t pieces = 16000;
  bool lower_case = true;

  // Of an encoder with random weights.
  int64_t layers = 4;
  int64_t hidden = 256;
  int64_t heads = 0;         // 0: one for each 64 of the width
  int64_t intermediate = 0;  // 0: four times the width
  int64_t max_positions = 512;
  int64_t segments = 4;

  int max_tokens = 128;  // of a sequence; longer documents are several
  MaskingOptions masking;
  // Of the contrastive stage: what the cosines are divided by.
  double temperature = 0.05;
  // Of the contrastive and the matching stage: which state is the text's vector
  // or what the relevance head reads (as in `fit --pooling`).
  internal::Pooling pooling = internal::POOLING_CLS;
  // Of the matching stage: other documents' items beside a query's own, and how
  // many of them have words of the query.
  int negatives = 5;
  int hard_negatives = 2;
  int64_t tokens = 0;  // to train on; 0: `epochs` times through the texts
  double epochs = 1;
  int batch_tokens = 16384;  // of a step, at most
  // That go through the network together: a step's gradients are summed over
  // such shares.
  int share_tokens = 4096;
  double learning_rate = 1e-3;
  Schedule schedule = Schedule::kCosine;
  double warmup = 0.05;  // share of all steps
  double weight_decay = 0.01;
  double clip = 1;
  double beta2 = 0.98;
  double dropout = 0;  // while pre-training; config.json asks fit for 0.1
  uint64_t seed = 1;
  PassDevice device;
  std::optional<bool> bf16;  // none: where the device gains by it
  int threads = 0;           // 0: as many as processors
  // That train together; all of them get the same options but for the rank.
  // Process 0 alone writes: checkpoints, plots, the result.
  ProcessOptions processes;
  double held_out_share = 0.005;
  int64_t evaluate_tokens = 4'000'000;  // between two evaluations
  bool save_f16 = false;

  // As in FineTuneOptions.
  std::string checkpoint_folder;
  double checkpoint_seconds = 300;
  int64_t checkpoint_steps = 0;
  std::string tensorboard_folder;
};

struct PretrainReport {
  EncoderConfig config;
  int64_t parameters = 0;
  int64_t documents = 0;
  int64_t sequences = 0;        // to train on
  int64_t corpus_tokens = 0;    // of them
  int64_t held_out_tokens = 0;  // that are evaluated
  // That a held-out text is found among: the perplexity of chance. 0: no such
  // number.
  int64_t candidates = 0;
  std::string data_digest;
  bool bf16 = false;
  std::string device;  // "cpu", "cuda"
  int workers = 0;

  int64_t steps = 0, total_steps = 0;
  int64_t tokens = 0;  // trained on
  double epochs = 0;
  double loss = 0;  // smoothed, of training
  // Of the held-out texts, at the end: e to the mean loss, and the share of
  // hidden places, of other halves, or of queries' items, that are found.
  double perplexity = 0;
  double accuracy = 0;
  double seconds = 0;            // of the run
  double tokens_per_second = 0;  // of training alone
  int64_t resumed_step = 0;
  std::vector<std::string> warnings;
};

struct PretrainProgress {
  int64_t step = 0, steps = 0;
  int64_t tokens = 0;
  double loss = 0;  // smoothed
  double tokens_per_second = 0;
  double eta_seconds = 0;
};

// Told what happens, on the calling thread.
class PretrainListener {
 public:
  virtual ~PretrainListener() = default;
  // Before something that takes a while: "reading texts".
  virtual void OnPhase(const std::string& what) { (void)what; }
  virtual void OnStart(const PretrainReport& report) { (void)report; }
  virtual void OnStep(const PretrainProgress& progress) { (void)progress; }
  virtual void OnEvaluate(int64_t step, double perplexity, double accuracy) {
    (void)step, (void)perplexity, (void)accuracy;
  }
};

// Blocking. kCancelled, and nothing is written but a checkpoint, soon after
// `stop` is set, in any of the processes. One seed, one number of processes and
// one of threads give one result, whether in one go or from checkpoints.
absl::StatusOr<PretrainReport> Pretrain(const PretrainOptions& options,
                                        PretrainListener* listener,
                                        const std::atomic<bool>& stop);

// Every problem of the options by themselves, one a line.
absl::Status CheckOptions(const PretrainOptions& options);

}  // namespace vitrine
