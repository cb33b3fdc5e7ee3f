#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <link.h>
#include <omp.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <latch>
#include <mutex>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "model/batch_checks.h"
#include "model/bert.h"
#include "model/engine.h"
#include "model/gpu_engine.h"
#include "model/length_buckets.h"
#include "model/math_libraries.h"
#include "model/task_head.h"
#include "model/torch_status.h"

namespace vitrine {
namespace {

// Tokens of a block: its activations stay within a core's cache (MiniLM's and
// 2 MiB: some 600), while each product has rows enough.
constexpr int kBlockTokens = 512;

// Above this the threads work inside one pass together, not beside each other.
constexpr double kMaxImbalance = 1.25;

// Instructions for products of bf16: AMX, or AVX-512's own.
bool CpuHasFastBf16() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool amx_bf16 = d >> 22 & 1;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return amx_bf16;
  return amx_bf16 || (a >> 5 & 1);
#else
  return false;
#endif
}

// The path of the libblas.so.3 in this process; empty when there is none.
std::string BlasPath() {
  std::string path;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const char* name = strrchr(info->dlpi_name, '/');
        if (name == nullptr || strncmp(name, "/libblas.so", 11) != 0) return 0;
        if (char* real = realpath(info->dlpi_name, nullptr)) {
          *static_cast<std::string*>(out) = real;
          free(real);
        }
        return 1;
      },
      &path);
  return path;
}

// Debian's libblas.so.3 is an alternative; the reference one, in
// /usr/lib/<machine>/blas/, makes fp32 some 25 times slower.
void WarnOfSlowBlas() {
  static std::once_flag once;
  std::call_once(once, [] {
    const std::string path = BlasPath();
    if (absl::StrContains(path, "/blas/libblas.so")) {
      Log(LogLevel::kWarning, "slow_blas",
          {{"library", path}, {"install", "libopenblas0-pthread"}});
    }
  });
}

absl::StatusOr<bool> ChooseCuda(internal::Device device) {
  switch (device) {
    case internal::DEVICE_AUTO:
      return at::hasCUDA();
    case internal::DEVICE_CPU:
      return false;
    case internal::DEVICE_CUDA:
      return true;  // NewGpuEngine says so where there is none
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("device ", device, ": unknown"));
  }
}

absl::StatusOr<at::ScalarType> ChooseDtype(internal::Dtype dtype) {
  switch (dtype) {
    case internal::DTYPE_AUTO:
      return CpuHasFastBf16() ? at::kBFloat16 : at::kFloat;
    case internal::DTYPE_FP32:
      return at::kFloat;
    case internal::DTYPE_BF16:
      if (!CpuHasFastBf16()) {
        Log(LogLevel::kWarning, "slow_bf16",
            {{"reason", "this processor has neither AMX nor AVX512-BF16"}});
      }
      return at::kBFloat16;
    case internal::DTYPE_FP16:
      return absl::FailedPreconditionError("dtype FP16: CUDA only");
    case internal::DTYPE_INT8:
      return absl::FailedPreconditionError("dtype INT8: oneDNN's engine only");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("dtype ", dtype, ": unknown"));
  }
}

// This thread alone in LibTorch and oneDNN while it lives.
class OneOmpThread {
 public:
  OneOmpThread() {
    // First: LibTorch sets its process-wide number on each thread it meets.
    at::internal::lazy_init_num_threads();
    before_ = omp_get_max_threads();
    omp_set_num_threads(1);
  }
  ~OneOmpThread() { omp_set_num_threads(before_); }
  OneOmpThread(const OneOmpThread&) = delete;
  OneOmpThread& operator=(const OneOmpThread&) = delete;

 private:
  int before_;
};

// The sequences of `batch` in the order given.
Batch Select(const Batch& batch, const std::vector<int>& sequences) {
  Batch out;
  for (const int s : sequences) {
    const int32_t begin = batch.offsets[s], end = batch.offsets[s + 1];
    out.ids.insert(out.ids.end(), batch.ids.begin() + begin,
                   batch.ids.begin() + end);
    out.segment_ids.insert(out.segment_ids.end(),
                           batch.segment_ids.begin() + begin,
                           batch.segment_ids.begin() + end);
    out.offsets.push_back(out.tokens());
    out.heads.push_back(batch.heads[s]);
  }
  return out;
}

// The busiest share's tokens over the average.
double Imbalance(const Batch& batch,
                 const std::vector<std::vector<int>>& shares, int threads) {
  int64_t most = 0;
  for (const std::vector<int>& share : shares) {
    int64_t tokens = 0;
    for (const int s : share) {
      tokens += batch.offsets[s + 1] - batch.offsets[s];
    }
    most = std::max(most, tokens);
  }
  return static_cast<double>(most) * threads / batch.tokens();
}

class TorchEngine final : public Engine {
 public:
  TorchEngine(Bert bert, std::vector<TaskHead> heads, at::ScalarType dtype,
              int threads)
      : bert_(std::move(bert)),
        heads_(std::move(heads)),
        dtype_(dtype),
        threads_(threads) {}

  void StartThreads() const override {
    std::call_once(start_once_, [this] {
      if (threads_ <= 1) return;
      pool_ = std::make_unique<ThreadPool>("engine", threads_ - 1,
                                           /*max_queued=*/1 << 16);
      started_.store(true, std::memory_order_release);
    });
  }

  absl::StatusOr<Outputs> Run(const Batch& batch) const override {
    RETURN_IF_ERROR(CheckBatch(batch, bert_.config(), heads_.size()));
    if (batch.sequences() == 0) return Outputs();
    if (threads_ > 1 && !started_.load(std::memory_order_acquire)) {
      const OneOmpThread alone;
      return RunWhole(batch);
    }
    // Each thread its own sequences, from the first layer to the last, a
    // cacheful at a time. OpenMP inside every pass would have the threads meet
    // a hundred times a batch and spin in between, which is ruinous where
    // requests are tokenized on the same processors. A lone long sequence is
    // better off so, though.
    if (Imbalance(batch, ShareByLength(batch.offsets, threads_), threads_) <=
        kMaxImbalance) {
      const int rounds =
          std::max<int>(1, batch.tokens() / (threads_ * kBlockTokens));
      const std::vector<std::vector<int>> shares =
          ShareByLength(batch.offsets, threads_ * rounds);
      if (shares.size() > 1) return RunShares(batch, shares);
    }
    return RunWhole(batch);
  }

  int width(int head) const override {
    return static_cast<int>(heads_[head].width());
  }
  std::string name() const override { return "torch"; }
  std::string device() const override { return "cpu"; }
  std::string dtype() const override {
    return dtype_ == at::kFloat ? "fp32" : "bf16";
  }

 private:
  absl::StatusOr<Outputs> RunShares(
      const Batch& batch, const std::vector<std::vector<int>>& shares) const {
    std::vector<absl::StatusOr<Outputs>> results(shares.size());
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      const OneOmpThread alone;
      for (size_t i; (i = next++) < shares.size();) {
        results[i] = RunWhole(Select(batch, shares[i]));
      }
    };
    std::latch done(threads_ - 1);
    for (int t = 1; t < threads_; ++t) {
      // Where the pool is full, the others do its share.
      if (!pool_->Post([&] {
            work();
            done.count_down();
          })) {
        done.count_down();
      }
    }
    work();
    done.wait();

    std::vector<absl::Span<const float>> rows(batch.sequences());
    for (size_t i = 0; i < shares.size(); ++i) {
      if (!results[i].ok()) return results[i].status();
      for (size_t k = 0; k < shares[i].size(); ++k) {
        rows[shares[i][k]] = results[i]->Of(static_cast<int>(k));
      }
    }
    Outputs outputs;
    for (const absl::Span<const float> row : rows) {
      outputs.values.insert(outputs.values.end(), row.begin(), row.end());
      outputs.offsets.push_back(static_cast<int64_t>(outputs.values.size()));
    }
    return outputs;
  }

  absl::StatusOr<Outputs> RunWhole(const Batch& batch) const {
    try {
      return RunChecked(batch);
    } catch (const std::exception& e) {
      return TorchStatus(e);
    }
  }

  Outputs RunChecked(const Batch& batch) const {
    // A thread that LibTorch has not seen yet has OpenMP's thread count.
    at::internal::lazy_init_num_threads();
    const c10::InferenceMode inference;
    const at::Tensor hidden =
        bert_.Forward(ToPackedInput(batch, bert_.config(), at::kCPU));

    Outputs outputs;
    for (const HeadMask mask : batch.heads) {
      int64_t width = 0;
      for (size_t h = 0; h < heads_.size(); ++h) {
        if (mask >> h & 1) width += heads_[h].width();
      }
      outputs.offsets.push_back(outputs.offsets.back() + width);
    }
    outputs.values.resize(outputs.offsets.back());

    // By pooling, made when the first head asks.
    at::Tensor pooled_by_kind[internal::Pooling_ARRAYSIZE];
    std::vector<int64_t> filled(outputs.offsets.begin(),
                                outputs.offsets.end() - 1);
    for (size_t h = 0; h < heads_.size(); ++h) {
      std::vector<int64_t> wanted;  // sequences
      for (int s = 0; s < batch.sequences(); ++s) {
        if (batch.heads[s] >> h & 1) wanted.push_back(s);
      }
      if (wanted.empty()) continue;
      const internal::Pooling pooling = heads_[h].head().pooling();
      at::Tensor& pooled = pooled_by_kind[pooling];
      if (!pooled.defined()) pooled = Pool(hidden, batch.offsets, pooling);
      const at::Tensor rows =
          wanted.size() == batch.heads.size()
              ? pooled
              : pooled.index_select(0, at::tensor(wanted, at::kLong));
      const at::Tensor out = heads_[h]
                                 .Forward(rows)
                                 .to(at::kCPU, at::kFloat)
                                 .contiguous();  // (wanted, width)
      const float* values = out.data_ptr<float>();
      const int64_t width = heads_[h].width();
      for (const int64_t s : wanted) {
        std::copy_n(values, width, outputs.values.begin() + filled[s]);
        filled[s] += width;
        values += width;
      }
    }
    return outputs;
  }

  const Bert bert_;
  const std::vector<TaskHead> heads_;
  const at::ScalarType dtype_;
  const int threads_;
  mutable std::once_flag start_once_;
  mutable std::unique_ptr<ThreadPool> pool_;  // threads_ - 1; null for none
  mutable std::atomic<bool> started_{false};  // pool_ is there
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> NewTorchEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  RETURN_IF_ERROR(CheckHeads(heads));
  try {
    ASSIGN_OR_RETURN(const bool cuda, ChooseCuda(options.device));
    if (cuda) return NewGpuEngine(checkpoint, heads, options);
    ASSIGN_OR_RETURN(const at::ScalarType dtype, ChooseDtype(options.dtype));
    WarnOfSlowBlas();
    SetUpMathLibraries(kAllProducts);
    if (options.inner_threads > 0) at::set_num_threads(options.inner_threads);

    // Weights born under InferenceMode carry no autograd state.
    const c10::InferenceMode inference;
    ASSIGN_OR_RETURN(Bert bert, Bert::FromCheckpoint(checkpoint));
    bert.PrepareForInference(at::kCPU, dtype);
    std::vector<TaskHead> task_heads;
    for (const internal::Head& head : heads) {
      ASSIGN_OR_RETURN(TaskHead task_head,
                       TaskHead::FromCheckpoint(checkpoint, head));
      // Small, so in fp32 whatever the encoder runs in.
      task_head.To(at::kCPU, at::kFloat);
      task_heads.push_back(std::move(task_head));
    }
    std::unique_ptr<Engine> engine = std::make_unique<TorchEngine>(
        std::move(bert), std::move(task_heads), dtype, at::get_num_threads());
    if (options.start_threads) engine->StartThreads();
    return engine;
  } catch (const std::exception& e) {
    return TorchStatus(e);
  }
}

}  // namespace vitrine
