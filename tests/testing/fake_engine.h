#pragma once

// An engine that does what a test says: outputs by a function of the ids, a
// gate that holds batches back, a record of what was run.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "model/engine.h"

namespace vitrine {

class FakeEngine : public Engine {
 public:
  // The k-th output of `head` for a sequence.
  using Value =
      std::function<float(absl::Span<const int32_t> ids, int head, int k)>;

  // widths[h] outputs for head h.
  explicit FakeEngine(std::vector<int> widths, Value value = &FakeEngine::Sum)
      : widths_(std::move(widths)), value_(std::move(value)) {}

  // The sum of the ids, apart by head and place: exact in a float.
  static float Sum(absl::Span<const int32_t> ids, int head, int k) {
    float sum = 0;
    for (const int32_t id : ids) sum += id;
    return sum + 1000 * head + 100 * k;
  }

  absl::StatusOr<Outputs> Run(const Batch& batch) const override {
    {
      MutexLock lock(mu_);
      batches_.push_back(batch);
      changed_.NotifyAll();
      while (held_) changed_.Wait(mu_);
      if (fail_ != nullptr) {
        const absl::Status status = fail_(batch);
        if (!status.ok()) return status;
      }
    }
    Outputs out;
    for (int s = 0; s < batch.sequences(); ++s) {
      const auto ids = absl::MakeConstSpan(batch.ids).subspan(
          batch.offsets[s], batch.offsets[s + 1] - batch.offsets[s]);
      for (int h = 0; h < static_cast<int>(widths_.size()); ++h) {
        if ((batch.heads[s] >> h & 1) == 0) continue;
        for (int k = 0; k < widths_[h]; ++k) {
          out.values.push_back(value_(ids, h, k));
        }
      }
      out.offsets.push_back(static_cast<int64_t>(out.values.size()));
    }
    return out;
  }

  int width(int head) const override { return widths_[head]; }
  std::string name() const override { return "fake"; }
  std::string device() const override { return "cpu"; }
  std::string dtype() const override { return "fp32"; }

  // Batches that come from now on stay in Run until Release.
  void Hold() {
    MutexLock lock(mu_);
    held_ = true;
  }
  void Release() {
    MutexLock lock(mu_);
    held_ = false;
    changed_.NotifyAll();
  }
  // Returns once `count` batches have come, since the start.
  void WaitForBatches(size_t count) const {
    MutexLock lock(mu_);
    while (batches_.size() < count) changed_.Wait(mu_);
  }
  // An error for batches that deserve one.
  void FailWhere(std::function<absl::Status(const Batch&)> fail) {
    MutexLock lock(mu_);
    fail_ = std::move(fail);
  }
  std::vector<Batch> batches() const {
    MutexLock lock(mu_);
    return batches_;
  }

 private:
  const std::vector<int> widths_;
  const Value value_;

  mutable Mutex mu_;
  mutable CondVar changed_;
  mutable std::vector<Batch> batches_ ABSL_GUARDED_BY(mu_);
  std::function<absl::Status(const Batch&)> fail_ ABSL_GUARDED_BY(mu_);
  bool held_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace vitrine
