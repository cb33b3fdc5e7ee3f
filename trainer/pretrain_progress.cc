#include "trainer/pretrain_progress.h"

#include <unistd.h>

#include "absl/strings/str_format.h"
#include "trainer/progress.h"

namespace vitrine {
namespace {

constexpr int kBarCells = 24;
constexpr std::chrono::milliseconds kBarEvery(100);
constexpr std::chrono::seconds kLineEvery(10);

}  // namespace

PretrainPrinter::PretrainPrinter(std::FILE* out)
    : out_(out), terminal_(isatty(fileno(out)) != 0) {}

PretrainPrinter::~PretrainPrinter() { ClearBar(); }

void PretrainPrinter::ClearBar() {
  if (!bar_shown_) return;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
  bar_shown_ = false;
}

void PretrainPrinter::OnPhase(const std::string& what) {
  absl::FPrintF(out_, "%s\n", what);
  std::fflush(out_);
}

void PretrainPrinter::OnStart(const PretrainReport& report) {
  absl::FPrintF(
      out_,
      "%d layers of %d, %d pieces, %.2fM parameters; products in %s, %d "
      "workers\n"
      "%d documents, %d sequences of %.1f tokens on average, %.2fM tokens; "
      "%d tokens held out; %d steps\n",
      report.config.num_layers, report.config.hidden_size,
      report.config.vocab_size, report.parameters / 1e6,
      report.bf16 ? "bf16" : "fp32", report.workers, report.documents,
      report.sequences,
      static_cast<double>(report.corpus_tokens) / report.sequences,
      report.corpus_tokens / 1e6, report.held_out_tokens, report.total_steps);
  for (const std::string& warning : report.warnings) {
    absl::FPrintF(out_, "warning: %s\n", warning);
  }
  if (report.resumed_step > 0) {
    absl::FPrintF(out_, "goes on from the checkpoint of step %d\n",
                  report.resumed_step);
  }
  std::fflush(out_);
  last_ = std::chrono::steady_clock::now();
  candidates_ = report.candidates;
}

void PretrainPrinter::OnStep(const PretrainProgress& progress) {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < kBarEvery && progress.step < progress.steps) return;
  if (!terminal_ && now - last_ < kLineEvery) return;
  last_ = now;
  const std::string numbers = absl::StrFormat(
      "loss %.4f  %.0f tokens/s  %s left", progress.loss,
      progress.tokens_per_second, FormatDuration(progress.eta_seconds));
  if (!terminal_) {
    absl::FPrintF(out_, "step %d/%d %.2fM tokens %s\n", progress.step,
                  progress.steps, progress.tokens / 1e6, numbers);
    std::fflush(out_);
    return;
  }
  const auto full =
      static_cast<int>(kBarCells * progress.step / progress.steps);
  std::string bar;
  for (int i = 0; i < kBarCells; ++i) bar += i < full ? "█" : "░";
  absl::FPrintF(out_, "\r\033[K%s %.1fM tokens %s", bar, progress.tokens / 1e6,
                numbers);
  std::fflush(out_);
  bar_shown_ = true;
}

void PretrainPrinter::OnEvaluate(int64_t step, double perplexity,
                                 double accuracy) {
  ClearBar();
  absl::FPrintF(out_, "step %d held out: perplexity %.2f, %.1f%% found", step,
                perplexity, 100 * accuracy);
  if (candidates_ > 0) {
    absl::FPrintF(out_, " (chance: %d, %.1f%%)", candidates_,
                  100.0 / candidates_);
  }
  absl::FPrintF(out_, "\n");
  std::fflush(out_);
}

}  // namespace vitrine
