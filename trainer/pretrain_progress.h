#pragma once

// How a run of pre-training shows itself: a bar with the time left on a
// terminal, plain lines otherwise.

#include <chrono>
#include <cstdio>
#include <string>

#include "trainer/pretrain.h"
#include "trainer/status_line.h"

namespace vitrine {

// Writes to `out`, which outlives it.
class PretrainPrinter : public PretrainListener {
 public:
  explicit PretrainPrinter(std::FILE* out) : out_(out), line_(out) {}

  void OnPhase(const std::string& what) override;
  void OnStart(const PretrainReport& report) override;
  void OnStep(const PretrainProgress& progress) override;
  void OnEvaluate(int64_t step, double perplexity, double accuracy) override;

 private:
  std::FILE* const out_;
  StatusLine line_;
  int64_t candidates_ = 0;  // PretrainReport's
};

}  // namespace vitrine
