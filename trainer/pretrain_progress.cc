#include "trainer/pretrain_progress.h"

#include "absl/strings/str_format.h"
#include "trainer/progress.h"

namespace vitrine {
namespace {}  // namespace

void PretrainPrinter::OnPhase(const std::string& what) {
  absl::FPrintF(out_, "%s\n", what);
  std::fflush(out_);
}

void PretrainPrinter::OnStart(const PretrainReport& report) {
  absl::FPrintF(
      out_,
      "%d layers of %d, %d pieces, %.2fM parameters; products in %s on %s, "
      "%d workers\n"
      "%d documents, %d sequences of %.1f tokens on average, %.2fM tokens; "
      "%d tokens held out; %d steps\n",
      report.config.num_layers, report.config.hidden_size,
      report.config.vocab_size, report.parameters / 1e6,
      report.bf16 ? "bf16" : "fp32", report.device, report.workers,
      report.documents, report.sequences,
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
  line_.Start();
  candidates_ = report.candidates;
}

void PretrainPrinter::OnStep(const PretrainProgress& progress) {
  if (!line_.Due(progress.step >= progress.steps)) return;
  const std::string numbers = absl::StrFormat(
      "loss %.4f  %.0f tokens/s  %s left", progress.loss,
      progress.tokens_per_second, FormatDuration(progress.eta_seconds));
  line_.Show(line_.terminal()
                 ? absl::StrFormat("%s %.1fM tokens %s",
                                   Bar(progress.step, progress.steps),
                                   progress.tokens / 1e6, numbers)
                 : absl::StrFormat("step %d/%d %.2fM tokens %s", progress.step,
                                   progress.steps, progress.tokens / 1e6,
                                   numbers));
}

void PretrainPrinter::OnEvaluate(int64_t step, double perplexity,
                                 double accuracy) {
  line_.Clear();
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
