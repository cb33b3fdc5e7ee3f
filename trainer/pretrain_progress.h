#pragma once

// How a run of pre-training shows itself: a bar with the time left on a
// terminal, plain lines otherwise.

#include <chrono>
#include <cstdio>
#include <string>

#include "trainer/pretrain.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class PretrainPrinter : public PretrainListener {
 public:
  explicit PretrainPrinter(std::FILE* out);
  ~PretrainPrinter() override;

  void OnPhase(const std::string& what) override;
  void OnStart(const PretrainReport& report) override;
  void OnStep(const PretrainProgress& progress) override;
  void OnEvaluate(int64_t step, double perplexity, double accuracy) override;

 private:
  void ClearBar();

  std::FILE* const out_;
  const bool terminal_;
  bool bar_shown_ = false;
  int64_t candidates_ = 0;  // PretrainReport's
  std::chrono::steady_clock::time_point last_;
};

}  // namespace vitrine
