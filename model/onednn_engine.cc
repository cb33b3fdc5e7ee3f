// The CPU engine: oneDNN's products with packed weights, kernels of our own
// between them (ADR 0015). Rows are packed from the first layer to the last, no
// row is padding but the few that fill up a block of kRowStep.
//
// Each thread takes sequences of its own from the first layer to the heads, a
// cacheful at a time, and meets no other. Where that would leave threads idle
// (a lone sequence), they share its rows instead and meet once a layer, when
// all keys and values are there.

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "model/batch_checks.h"
#include "model/engine.h"
#include "model/length_buckets.h"
#include "model/math_libraries.h"
#include "model/packed_product.h"
#include "model/vector_kernels.h"

namespace vitrine {
namespace {

// Tokens that a thread takes from the first layer to the last.
constexpr int64_t kShareTokens = 512;
// Rows of these that go from attention to the end of a layer at once.
constexpr int64_t kChunkRows = 256;
// Above this (the busiest thread's tokens over the average) threads share rows.
constexpr double kMaxImbalance = 1.15;
// Fewer tokens are not worth waking a second thread for.
constexpr int64_t kMinSharedTokens = 2 * kRowStep;
// One that is asleep comes within this, where it gets a core.
constexpr std::chrono::microseconds kHelpersComeWithin(100);

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

int64_t ElementBytes(Element type) {
  return type == Element::kU8 ? 1 : type == Element::kBf16 ? 2 : 4;
}

// Memory that only grows, aligned to a cache line.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* Get(int64_t count) {
    const int64_t bytes = RoundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    if (bytes > bytes_) {
      free(data_);
      data_ = aligned_alloc(64, bytes);
      if (data_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A linear layer, packed.
struct Linear {
  std::shared_ptr<const ProductCode> code;
  std::shared_ptr<const ProductCode::Weights> weights;
  std::vector<float> bias;           // where the product does not add it
  std::vector<float> column_scales;  // kInt8
  std::vector<int32_t> corrections;  // kInt8
  float bound = 0;                   // kInt8: of its input
  int layer = 0;                     // for the observer
  internal::Product product = internal::PRODUCT_UNSPECIFIED;

  ProductType type() const { return code->shape().type; }
  int64_t from() const { return code->shape().from; }
  int64_t to() const { return code->shape().to; }
};

Element InputElement(ProductType type) {
  return type == ProductType::kF32    ? Element::kF32
         : type == ProductType::kBf16 ? Element::kBf16
                                      : Element::kU8;
}
Element OutputElement(ProductType type) {
  return type == ProductType::kF32    ? Element::kF32
         : type == ProductType::kBf16 ? Element::kBf16
                                      : Element::kS32;
}

struct LayerNorm {
  std::vector<float> weight, bias;  // padded
  Norm norm;                        // a view of them
};

struct Layer {
  Linear query_key_value, attention_output, intermediate, output;
  LayerNorm attention_norm, output_norm;
};

struct PackedHead {
  internal::Pooling pooling = internal::POOLING_CLS;
  Linear dense;  // code is null where there is none
  Linear out;    // likewise
  int64_t width = 0;
  bool normalize = false;
};

// Where rows of one layout are kept: a product's input and its scales.
struct InputBuffer {
  Buffer data, scales;

  ProductInput Rows(Element type, int64_t rows, int64_t width, int zero,
                    float bound) {
    ProductInput out;
    out.type = type;
    out.data = data.Get<std::byte>(rows * width * ElementBytes(type));
    if (type == Element::kU8) out.scales = scales.Get<float>(rows);
    out.zero = zero;
    out.bound = bound;
    return out;
  }
};

// From row `row` on.
ProductInput From(ProductInput input, int64_t row, int64_t width) {
  input.data = static_cast<std::byte*>(input.data) +
               row * width * ElementBytes(input.type);
  if (input.scales != nullptr) input.scales += row;
  return input;
}

// What the threads of one share of a batch work on together.
struct Rows {
  Buffer tokens, stream, query_key_value[2];
  InputBuffer stream_input, context;
};

// What a thread has for itself.
struct Scratch {
  ProductContext products;
  Buffer wide, maxima, attention, output, middle;
  InputBuffer context_input, norm_input, middle_input;
  Buffer pooled, dense, logits;
};

struct Workspace {
  Rows rows;
  Scratch scratch;
};

// One sequence of a share.
struct Placed {
  int sequence = 0;   // in the batch
  int64_t first = 0;  // its first row
  int64_t length = 0;
};

// Waits until `value` is no longer `old`, and returns what it is. Spins at
// first, since what is waited for is some microseconds of another thread's
// work; then sleeps, for that thread may lack the core that this one spins on.
int AwaitChange(const std::atomic<int>& value, int old) {
  for (int spins = 0; spins < 2000; ++spins) {
    const int now = value.load(std::memory_order_acquire);
    if (now != old) return now;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  int now;
  while ((now = value.load(std::memory_order_acquire)) == old) value.wait(old);
  return now;
}

// Where threads that share rows wait for each other.
class Meeting {
 public:
  explicit Meeting(int threads) : threads_(threads) {}

  // False once somebody has given up.
  [[nodiscard]] bool Wait() {
    int round = round_.load(std::memory_order_acquire);
    if (round == kGivenUp) return false;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
      return AwaitChange(round_, round) != kGivenUp;
    }
    arrived_.store(0, std::memory_order_relaxed);
    const bool all = round_.compare_exchange_strong(round, round + 1);
    round_.notify_all();
    return all;
  }

  // The others need not wait for this thread any more.
  void GiveUp() {
    round_.store(kGivenUp);
    round_.notify_all();
  }

 private:
  static constexpr int kGivenUp = -1;
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

// Memory is the only thing that may throw while a batch runs.
template <typename F>
absl::Status OutOfMemoryIsAnError(F run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory to run a batch in");
  }
}

class OneDnnEngine final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<OneDnnEngine>> Create(
      const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
      internal::Dtype dtype, const EngineOptions& options);

  void StartThreads() const override {
    std::call_once(start_once_, [this] {
      if (threads_ <= 1) return;
      pool_ = std::make_unique<ThreadPool>("engine", threads_ - 1,
                                           /*max_queued=*/1 << 16);
      started_.store(true, std::memory_order_release);
    });
  }

  absl::StatusOr<Outputs> Run(const Batch& batch) const override;

  int width(int head) const override {
    return static_cast<int>(heads_[head].width);
  }
  std::string name() const override { return "onednn"; }
  std::string device() const override { return "cpu"; }
  std::string dtype() const override {
    return dtype_ == internal::DTYPE_FP32   ? "fp32"
           : dtype_ == internal::DTYPE_BF16 ? "bf16"
                                            : "int8";
  }

 private:
  class Loader;

  // Some sequences of a batch, to be run by one thread or by several that
  // share the rows.
  struct Share {
    const Batch& batch;
    std::vector<Placed> sequences;  // one after the other, from row 0 on
    int64_t tokens = 0;
    Outputs& outputs;

    int64_t rows() const { return RoundUp(tokens, kRowStep); }
  };

  OneDnnEngine(const EncoderConfig& config, int threads, internal::Dtype dtype,
               ActivationObserver* observer)
      : config_(config),
        kernels_(VectorKernelsFor(EffectiveCpuIsa())),
        threads_(threads),
        dtype_(dtype),
        observer_(observer) {}

  // A workspace for as long as it lives: one that is idle, else a new one.
  class WorkspaceLoan {
   public:
    explicit WorkspaceLoan(const OneDnnEngine* engine) : engine_(*engine) {
      const MutexLock lock(engine_.mu_);
      if (engine_.idle_.empty()) {
        workspace_ = std::make_unique<Workspace>();
        // So that giving it back takes no memory.
        engine_.idle_.reserve(++engine_.workspaces_);
      } else {
        workspace_ = std::move(engine_.idle_.back());
        engine_.idle_.pop_back();
      }
    }
    ~WorkspaceLoan() {
      const MutexLock lock(engine_.mu_);
      engine_.idle_.push_back(std::move(workspace_));
    }
    WorkspaceLoan(const WorkspaceLoan&) = delete;
    WorkspaceLoan& operator=(const WorkspaceLoan&) = delete;

    Workspace* operator->() const { return workspace_.get(); }

   private:
    const OneDnnEngine& engine_;
    std::unique_ptr<Workspace> workspace_;
  };

  Share MakeShare(const Batch& batch, const std::vector<int>& sequences,
                  Outputs* outputs) const;
  // Each thread sequences of its own.
  absl::Status RunApart(const Batch& batch,
                        const std::vector<std::vector<int>>& shares,
                        Outputs* outputs) const;
  // All threads the same sequences.
  absl::Status RunTogether(const Share& share) const;

  // Makes room for a share and writes down its tokens.
  void Prepare(const Share& share, Rows* rows) const;
  // Rows [begin, end) of the share, begin a multiple of kRowStep. `meeting` is
  // where the threads of the other rows are met; null: there are none. Throws
  // std::bad_alloc.
  absl::Status RunRows(const Share& share, int64_t begin, int64_t end,
                       Rows* rows, Scratch* scratch, Meeting* meeting) const;
  absl::Status RunHeads(const Share& share,
                        const std::vector<Placed>& sequences,
                        const float* stream, Scratch* scratch) const;
  // y = x times the weights.
  absl::StatusOr<ProductOutput> Multiply(const Linear& linear,
                                         const ProductInput& x, int64_t rows,
                                         void* y, Scratch* scratch) const;

  ProductInput InputOf(const Linear& linear, InputBuffer* buffer,
                       int64_t rows) const {
    return buffer->Rows(InputElement(linear.type()), rows, linear.from(), zero_,
                        linear.bound);
  }

  const EncoderConfig config_;
  const VectorKernels& kernels_;
  const int threads_;
  const internal::Dtype dtype_;
  ActivationObserver* const observer_;  // null: none

  // Constant once Create has returned.
  int64_t width_ = 0;       // of the stream
  int64_t head_width_ = 0;  // of one head of attention
  int64_t inner_width_ = 0;
  int64_t widest_ = 0;
  int zero_ = 128;
  Activation activation_ = Activation::kGelu;
  Element between_ = Element::kF32;  // of queries, keys, values and context
  std::vector<std::byte> words_;
  std::vector<float> positions_, segments_;
  EmbeddingTables tables_;
  LayerNorm embeddings_norm_;
  std::vector<Layer> layers_;
  std::vector<PackedHead> heads_;

  mutable Mutex mu_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_ ABSL_GUARDED_BY(mu_);
  mutable size_t workspaces_ ABSL_GUARDED_BY(mu_) = 0;  // idle or lent

  // Last, so that it ends first: a thread that comes too late for a sequence
  // looks at what is above.
  mutable std::once_flag start_once_;
  mutable std::unique_ptr<ThreadPool> pool_;  // threads_ - 1; null for none
  mutable std::atomic<bool> started_{false};  // pool_ is there
};

// ---------------------------------------------------------------- running

absl::StatusOr<ProductOutput> OneDnnEngine::Multiply(const Linear& linear,
                                                     const ProductInput& x,
                                                     int64_t rows, void* y,
                                                     Scratch* scratch) const {
  if (observer_ != nullptr && x.type == Element::kU8) {
    float* const maxima = scratch->maxima.Get<float>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      maxima[r] = x.scales[r] * static_cast<float>(x.zero - 1);
    }
    observer_->Observe(linear.layer, linear.product, maxima, rows);
  }
  RETURN_IF_ERROR(linear.code->Run(
      *linear.weights, x.data, y, RoundUp(rows, kRowStep), &scratch->products));
  ProductOutput out;
  out.type = OutputElement(linear.type());
  out.data = y;
  if (!linear.bias.empty()) out.bias = linear.bias.data();
  if (linear.type() == ProductType::kInt8) {
    out.row_scales = x.scales;
    out.column_scales = linear.column_scales.data();
    out.corrections = linear.corrections.data();
  }
  return out;
}

absl::Status OneDnnEngine::RunRows(const Share& share, int64_t begin,
                                   int64_t end, Rows* rows, Scratch* scratch,
                                   Meeting* meeting) const {
  const int64_t count = end - begin;
  const int64_t attention_width = config_.num_heads * head_width_;
  const int64_t all_rows = share.rows();
  float* const all_stream = rows->stream.Get<float>(all_rows * width_);
  float* const stream = all_stream + begin * width_;
  float* const wide = scratch->wide.Get<float>(widest_);
  // This thread's rows of what the layer's first product reads.
  const auto input_of_layer = [&](const Layer& layer) {
    ProductInput out =
        From(InputOf(layer.query_key_value, &rows->stream_input, all_rows),
             begin, width_);
    if (out.type == Element::kF32) out.data = stream;
    return out;
  };

  ProductInput input = input_of_layer(layers_.front());
  kernels_.embed(tables_, rows->tokens.Get<TokenIds>(all_rows) + begin, count,
                 embeddings_norm_.norm, stream, input);

  // The sequences whose heads are this thread's, and whether those or the one
  // that goes on here need more than first tokens.
  std::vector<Placed> own;
  bool only_first_tokens = true;
  for (const Placed& placed : share.sequences) {
    if (placed.first + placed.length <= begin || placed.first >= end) continue;
    if (placed.first >= begin) own.push_back(placed);
    for (size_t h = 0; h < heads_.size(); ++h) {
      only_first_tokens &= !(share.batch.heads[placed.sequence] >> h & 1) ||
                           heads_[h].pooling != internal::POOLING_MEAN;
    }
  }

  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const bool last = l + 1 == layers_.size();
    // Keys and values are for all to read, until the layer after the next.
    Buffer& shared = rows->query_key_value[meeting == nullptr ? 0 : l % 2];
    const int64_t qkv_row = 3 * attention_width * ElementBytes(between_);
    std::byte* const all_qkv = shared.Get<std::byte>(all_rows * qkv_row);
    std::byte* const qkv = all_qkv + begin * qkv_row;
    if (layer.query_key_value.type() == ProductType::kInt8) {
      for (int64_t r = 0; r < count; r += kChunkRows) {
        const int64_t n = std::min<int64_t>(kChunkRows, count - r);
        int32_t* const exact =
            scratch->middle.Get<int32_t>(kChunkRows * 3 * attention_width);
        ASSIGN_OR_RETURN(const ProductOutput y,
                         Multiply(layer.query_key_value,
                                  From(input, r, layer.query_key_value.from()),
                                  n, exact, scratch));
        ProductInput floats;
        floats.type = between_;
        floats.data = qkv + r * qkv_row;
        kernels_.convert(y, n, 3 * attention_width, wide, floats);
      }
    } else {
      RETURN_IF_ERROR(
          Multiply(layer.query_key_value, input, count, qkv, scratch).status());
    }
    // Whoever gave up has the error.
    if (meeting != nullptr && !meeting->Wait()) return absl::OkStatus();

    // Of the last layer's rows only those that a head reads are finished.
    const bool compact = last && only_first_tokens;
    ProductInput context =
        rows->context.Rows(between_, all_rows, attention_width, 0, 0);
    const int64_t context_row = attention_width * ElementBytes(between_);
    std::byte* const context_rows =
        static_cast<std::byte*>(context.data) + begin * context_row;
    AttentionTask task;
    task.type = between_;
    task.heads = config_.num_heads;
    task.head_width = head_width_;
    int64_t next_row = 0;
    for (const Placed& placed : share.sequences) {
      const int64_t from = std::max(placed.first, begin);
      int64_t to = std::min(placed.first + placed.length, end);
      if (compact) to = std::min(to, placed.first + 1);
      if (from >= to) continue;
      task.qkv = all_qkv + placed.first * qkv_row;
      task.length = placed.length;
      task.first_query = from - placed.first;
      task.queries = to - from;
      const int64_t row = compact ? next_row++ : from - begin;
      task.context = context_rows + row * context_row;
      task.scratch = scratch->attention.Get<float>(
          AttentionScratch(placed.length, head_width_));
      kernels_.attend(task);
      if (compact && row != from - begin) {
        std::copy_n(stream + (from - begin) * width_, width_,
                    stream + row * width_);
      }
    }
    const int64_t left = compact ? next_row : count;

    // The rest of the layer is each row's own.
    ProductInput next;  // the stream itself
    next.data = stream;
    if (!last) next = input_of_layer(layers_[l + 1]);
    for (int64_t r = 0; r < left; r += kChunkRows) {
      const int64_t n = std::min<int64_t>(kChunkRows, left - r);
      float* const x = stream + r * width_;
      ProductInput attended;
      if (InputElement(layer.attention_output.type()) == between_) {
        attended = From(context, begin + r, attention_width);
      } else {
        attended = InputOf(layer.attention_output, &scratch->context_input,
                           kChunkRows);
        ProductOutput plain;
        plain.type = between_;
        plain.data = context_rows + r * context_row;
        kernels_.convert(plain, n, attention_width, wide, attended);
      }
      void* const y = scratch->output.Get<float>(kChunkRows * width_);
      ASSIGN_OR_RETURN(ProductOutput out, Multiply(layer.attention_output,
                                                   attended, n, y, scratch));
      ProductInput middle =
          InputOf(layer.intermediate, &scratch->norm_input, kChunkRows);
      if (middle.type == Element::kF32) middle.data = x;
      kernels_.add_and_normalize(out, n, layer.attention_norm.norm, x, middle);

      void* const wide_rows =
          scratch->middle.Get<float>(kChunkRows * inner_width_);
      ASSIGN_OR_RETURN(
          out, Multiply(layer.intermediate, middle, n, wide_rows, scratch));
      // In place where the types are the same.
      ProductInput activated;
      if (InputElement(layer.output.type()) == out.type) {
        activated.type = out.type;
        activated.data = wide_rows;
      } else {
        activated = InputOf(layer.output, &scratch->middle_input, kChunkRows);
      }
      kernels_.activate(activation_, out, n, inner_width_, wide, activated);
      ASSIGN_OR_RETURN(out, Multiply(layer.output, activated, n, y, scratch));
      kernels_.add_and_normalize(out, n, layer.output_norm.norm, x,
                                 From(next, r, width_));
    }
    input = next;
  }
  // A mean needs all rows of its sequence.
  if (meeting != nullptr && !meeting->Wait()) return absl::OkStatus();
  if (only_first_tokens) {
    for (size_t i = 0; i < own.size(); ++i) {
      own[i].first = begin + static_cast<int64_t>(i);
    }
  }
  return RunHeads(share, own, all_stream, scratch);
}

absl::Status OneDnnEngine::RunHeads(const Share& share,
                                    const std::vector<Placed>& sequences,
                                    const float* stream,
                                    Scratch* scratch) const {
  const auto wants = [&share](const Placed& placed, size_t head) {
    return (share.batch.heads[placed.sequence] >> head & 1) != 0;
  };
  // (sequences that want the head, width_)
  float* const pooled = scratch->pooled.Get<float>(
      RoundUp(static_cast<int64_t>(sequences.size()), kRowStep) * width_);
  std::vector<int64_t> filled;  // of each sequence's outputs
  for (const Placed& placed : sequences) {
    filled.push_back(share.outputs.offsets[placed.sequence]);
  }
  for (size_t h = 0; h < heads_.size(); ++h) {
    const PackedHead& head = heads_[h];
    int64_t count = 0;
    for (const Placed& placed : sequences) {
      if (!wants(placed, h)) continue;
      float* const out = pooled + count++ * width_;
      const float* row = stream + placed.first * width_;
      std::copy_n(row, width_, out);
      if (head.pooling != internal::POOLING_MEAN) continue;
      for (int64_t t = 1; t < placed.length; ++t) {
        row += width_;
        for (int64_t i = 0; i < width_; ++i) out[i] += row[i];
      }
      const float share_of_one = 1 / static_cast<float>(placed.length);
      for (int64_t i = 0; i < width_; ++i) out[i] *= share_of_one;
    }
    if (count == 0) continue;
    const int64_t padded = RoundUp(count, kRowStep);
    const float* values = pooled;
    int64_t stride = width_;
    const auto multiply = [&](const Linear& linear,
                              Buffer* buffer) -> absl::Status {
      float* const y = buffer->Get<float>(padded * linear.to());
      RETURN_IF_ERROR(linear.code->Run(*linear.weights, values, y, padded,
                                       &scratch->products));
      values = y;
      stride = linear.to();
      return absl::OkStatus();
    };
    if (head.dense.code != nullptr) {
      RETURN_IF_ERROR(multiply(head.dense, &scratch->dense));
      kernels_.tanh(count * stride, scratch->dense.Get<float>(0));
    }
    if (head.out.code != nullptr) {
      RETURN_IF_ERROR(multiply(head.out, &scratch->logits));
    }
    int64_t row = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (!wants(sequences[i], h)) continue;
      float* const out = share.outputs.values.data() + filled[i];
      std::copy_n(values + row++ * stride, head.width, out);
      filled[i] += head.width;
      if (!head.normalize) continue;
      double squares = 0;
      for (int64_t d = 0; d < head.width; ++d) squares += out[d] * out[d];
      // The bound keeps a vector of zeros from becoming NaN.
      const float scale =
          static_cast<float>(1 / std::max(std::sqrt(squares), 1e-12));
      for (int64_t d = 0; d < head.width; ++d) out[d] *= scale;
    }
  }
  return absl::OkStatus();
}

OneDnnEngine::Share OneDnnEngine::MakeShare(const Batch& batch,
                                            const std::vector<int>& sequences,
                                            Outputs* outputs) const {
  Share share{.batch = batch, .outputs = *outputs};
  for (const int s : sequences) {
    const int64_t length = batch.offsets[s + 1] - batch.offsets[s];
    share.sequences.push_back({s, share.tokens, length});
    share.tokens += length;
  }
  return share;
}

void OneDnnEngine::Prepare(const Share& share, Rows* rows) const {
  const int64_t count = share.rows();
  const int64_t attention_width = config_.num_heads * head_width_;
  // As large as any layer wants them: threads that share rows must not find
  // them too small.
  rows->stream.Get<float>(count * width_);
  rows->stream_input.Rows(Element::kF32, count, width_, 0, 0);
  rows->stream_input.Rows(Element::kU8, count, width_, 0, 0);
  rows->context.Rows(Element::kF32, count, attention_width, 0, 0);
  for (Buffer& buffer : rows->query_key_value) {
    buffer.Get<float>(3 * count * attention_width);
  }
  TokenIds* out = rows->tokens.Get<TokenIds>(count);
  for (const Placed& placed : share.sequences) {
    const int32_t first = share.batch.offsets[placed.sequence];
    for (int32_t i = 0; i < placed.length; ++i) {
      *out++ = {share.batch.ids[first + i],
                static_cast<int32_t>(config_.first_position()) + i,
                share.batch.segment_ids[first + i]};
    }
  }
}

absl::Status OneDnnEngine::RunApart(const Batch& batch,
                                    const std::vector<std::vector<int>>& shares,
                                    Outputs* outputs) const {
  // Helpers take shares as this thread does. One that comes when all are taken,
  // since another batch had it, is not waited for: it finds nothing to do and
  // touches nothing of this call.
  struct Work {
    std::atomic<int> next{0};
    std::atomic<int> done{0};
  };
  const auto work = std::make_shared<Work>();
  const int count = static_cast<int>(shares.size());
  std::vector<absl::Status> results(shares.size());
  const auto run = [this, work, count, &batch, &shares, &results, outputs] {
    for (int i; (i = work->next++) < count;) {
      results[i] = OutOfMemoryIsAnError([&]() -> absl::Status {
        const WorkspaceLoan loan(this);
        const Share share = MakeShare(batch, shares[i], outputs);
        Prepare(share, &loan->rows);
        return RunRows(share, 0, share.tokens, &loan->rows, &loan->scratch,
                       nullptr);
      });
      work->done.fetch_add(1, std::memory_order_release);
      work->done.notify_one();
    }
  };
  const int helpers = started_.load() ? std::min(threads_, count) - 1 : 0;
  for (int t = 0; t < helpers; ++t) {
    // Where the pool is full, the others do its share.
    static_cast<void>(pool_->Post(run));
  }
  run();
  for (int done = work->done.load(std::memory_order_acquire); done < count;) {
    done = AwaitChange(work->done, done);
  }
  for (const absl::Status& status : results) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status OneDnnEngine::RunTogether(const Share& share) const {
  // A helper that is not there soon is not waited for: it may lack a core.
  struct Team {
    enum State { kInvited, kThere, kTooLate };
    explicit Team(int helpers) : helpers(helpers), results(helpers + 1) {}
    std::vector<std::atomic<int>> helpers;
    std::atomic<int> size{0};  // set once all have come or are too late
    std::atomic<int> done{0};  // helpers that are
    std::optional<Meeting> meeting;
    Rows* rows = nullptr;
    std::vector<absl::Status> results;
  };
  const int most =
      static_cast<int>(std::min<int64_t>(threads_, share.rows() / kRowStep));
  const auto team = std::make_shared<Team>(most - 1);
  // All memory before anyone is invited: one who has come waits to be told how
  // many there are.
  const WorkspaceLoan workspace(this);
  Prepare(share, &workspace->rows);
  team->rows = &workspace->rows;
  // Rows of member `m` of the team.
  const auto run = [this, &share](Team& team, int m, int size,
                                  Scratch* scratch) {
    const int64_t blocks = share.rows() / kRowStep;
    const int64_t begin = blocks * m / size * kRowStep;
    const int64_t end =
        std::min(share.tokens, blocks * (m + 1) / size * kRowStep);
    team.results[m] = OutOfMemoryIsAnError([&] {
      return RunRows(share, begin, end, team.rows, scratch,
                     size > 1 ? &*team.meeting : nullptr);
    });
    if (!team.results[m].ok()) team.meeting->GiveUp();
  };
  for (int h = 0; h < most - 1; ++h) {
    const bool posted = pool_->Post([this, team, h, run] {
      if (team->helpers[h].load() != Team::kInvited) return;
      // All memory before it says that it is there; without, it is not missed.
      std::optional<WorkspaceLoan> own;
      if (!OutOfMemoryIsAnError([&] {
             own.emplace(this);
             return absl::OkStatus();
           }).ok()) {
        return;
      }
      int invited = Team::kInvited;
      if (!team->helpers[h].compare_exchange_strong(invited, Team::kThere)) {
        return;
      }
      const int size = AwaitChange(team->size, 0);
      int member = 1;
      for (int other = 0; other < h; ++other) {
        member += team->helpers[other].load() == Team::kThere;
      }
      run(*team, member, size, &(*own)->scratch);
      own.reset();
      team->done.fetch_add(1, std::memory_order_release);
      team->done.notify_one();
    });
    if (!posted) team->helpers[h].store(Team::kTooLate);
  }

  using Clock = std::chrono::steady_clock;
  const Clock::time_point latest = Clock::now() + kHelpersComeWithin;
  int size = 1;
  for (std::atomic<int>& helper : team->helpers) {
    while (helper.load() == Team::kInvited && Clock::now() < latest)
      std::this_thread::yield();
    int invited = Team::kInvited;
    helper.compare_exchange_strong(invited, Team::kTooLate);
    size += helper.load() == Team::kThere;
  }
  team->meeting.emplace(size);
  team->size.store(size, std::memory_order_release);
  team->size.notify_all();
  run(*team, 0, size, &workspace->scratch);
  for (int done = team->done.load(std::memory_order_acquire);
       done < size - 1;) {
    done = AwaitChange(team->done, done);
  }
  for (const absl::Status& status : team->results) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::StatusOr<Outputs> OneDnnEngine::Run(const Batch& batch) const {
  RETURN_IF_ERROR(CheckBatch(batch, config_, heads_.size()));
  Outputs outputs;
  for (const HeadMask mask : batch.heads) {
    int64_t width = 0;
    for (size_t h = 0; h < heads_.size(); ++h) {
      if (mask >> h & 1) width += heads_[h].width;
    }
    outputs.offsets.push_back(outputs.offsets.back() + width);
  }
  if (batch.sequences() == 0) return outputs;
  outputs.values.resize(outputs.offsets.back());

  const bool alone = threads_ == 1 || !started_.load(std::memory_order_acquire);
  const int threads = alone ? 1 : threads_;
  if (!alone && batch.tokens() >= kMinSharedTokens &&
      Imbalance(batch.offsets, threads) > kMaxImbalance) {
    std::vector<int> all(batch.sequences());
    std::iota(all.begin(), all.end(), 0);
    const Share share = MakeShare(batch, all, &outputs);
    RETURN_IF_ERROR(OutOfMemoryIsAnError([&] { return RunTogether(share); }));
  } else {
    const int64_t rounds = std::max<int64_t>(
        1, (batch.tokens() + kShareTokens / 2) / (threads * kShareTokens));
    RETURN_IF_ERROR(RunApart(
        batch, ShareByTokens(batch.offsets, static_cast<int>(threads * rounds)),
        &outputs));
  }
  return outputs;
}

// ---------------------------------------------------------------- loading

// Packs a checkpoint's tensors into an engine.
class OneDnnEngine::Loader {
 public:
  Loader(const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
         const internal::Quantization* quantization, OneDnnEngine* engine)
      : checkpoint_(checkpoint),
        head_options_(heads),
        quantization_(quantization),
        engine_(*engine) {}

  absl::Status Load() {
    const EncoderConfig& config = checkpoint_.config;
    const int64_t head_size = config.hidden_size / config.num_heads;
    engine_.width_ = RoundUp(config.hidden_size, kRowAlignment);
    engine_.head_width_ = RoundUp(head_size, kRowAlignment);
    engine_.inner_width_ = RoundUp(config.intermediate_size, kRowAlignment);
    engine_.widest_ = std::max({engine_.width_, engine_.inner_width_,
                                3 * config.num_heads * engine_.head_width_});
    engine_.zero_ = HasExactInt8() ? 128 : 64;
    engine_.activation_ = config.hidden_act == "relu" ? Activation::kRelu
                          : config.hidden_act == "gelu_new"
                              ? Activation::kGeluTanh
                              : Activation::kGelu;
    // What products are in that int8 is not for.
    rest_ = engine_.dtype_ == internal::DTYPE_BF16 ||
                    (engine_.dtype_ == internal::DTYPE_INT8 && HasFastBf16())
                ? ProductType::kBf16
                : ProductType::kF32;
    engine_.between_ = InputElement(rest_);
    RETURN_IF_ERROR(LoadEmbeddings());
    for (int l = 0; l < config.num_layers; ++l) {
      engine_.layers_.emplace_back();
      RETURN_IF_ERROR(LoadLayer(l, &engine_.layers_.back()));
    }
    for (const internal::Head& head : head_options_) {
      engine_.heads_.emplace_back();
      RETURN_IF_ERROR(LoadHead(head, &engine_.heads_.back()));
    }
    return absl::OkStatus();
  }

 private:
  using Tensors = std::map<std::string, TensorView>;

  static absl::StatusOr<std::vector<float>> Read(const Tensors& tensors,
                                                 const std::string& name) {
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      return absl::InvalidArgumentError(absl::StrCat("no tensor ", name));
    }
    absl::StatusOr<std::vector<float>> values = ToFloats(it->second);
    if (!values.ok()) return Annotate(values.status(), name);
    return values;
  }
  absl::StatusOr<std::vector<float>> Read(const std::string& name) const {
    return Read(checkpoint_.encoder, name);
  }

  // (rows, columns) to (rows, width), zeros behind.
  static std::vector<float> Pad(const std::vector<float>& in, int64_t columns,
                                int64_t width) {
    const int64_t rows = static_cast<int64_t>(in.size()) / columns;
    std::vector<float> out(rows * width);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(in.begin() + r * columns, columns, out.begin() + r * width);
    }
    return out;
  }

  absl::StatusOr<LayerNorm> LoadNorm(const std::string& name) const {
    const int64_t hidden = checkpoint_.config.hidden_size;
    LayerNorm out;
    ASSIGN_OR_RETURN(const std::vector<float> weight, Read(name + ".weight"));
    ASSIGN_OR_RETURN(const std::vector<float> bias, Read(name + ".bias"));
    out.weight = Pad(weight, hidden, engine_.width_);
    out.bias = Pad(bias, hidden, engine_.width_);
    out.norm = {
        .weight = out.weight.data(),
        .bias = out.bias.data(),
        .epsilon = static_cast<float>(checkpoint_.config.layer_norm_eps),
        .size = hidden,
        .width = engine_.width_};
    return out;
  }

  absl::Status LoadEmbeddings() {
    const int64_t hidden = checkpoint_.config.hidden_size;
    const int64_t width = engine_.width_;
    const auto table =
        [&](const std::string& name) -> absl::StatusOr<std::vector<float>> {
      ASSIGN_OR_RETURN(
          const std::vector<float> values,
          Read(absl::StrCat("embeddings.", name, "_embeddings.weight")));
      return Pad(values, hidden, width);
    };
    ASSIGN_OR_RETURN(engine_.positions_, table("position"));
    ASSIGN_OR_RETURN(engine_.segments_, table("token_type"));
    ASSIGN_OR_RETURN(const std::vector<float> words, table("word"));
    // The largest table of all: in half of the memory where that is exact
    // enough.
    EmbeddingTables& tables = engine_.tables_;
    tables.type =
        engine_.dtype_ == internal::DTYPE_FP32 ? Element::kF32 : Element::kBf16;
    engine_.words_.resize(words.size() * ElementBytes(tables.type));
    if (tables.type == Element::kF32) {
      std::copy(words.begin(), words.end(),
                reinterpret_cast<float*>(engine_.words_.data()));
    } else {
      std::transform(words.begin(), words.end(),
                     reinterpret_cast<Bf16*>(engine_.words_.data()), ToBf16);
    }
    tables.words = engine_.words_.data();
    tables.positions = engine_.positions_.data();
    tables.segments = engine_.segments_.data();
    ASSIGN_OR_RETURN(engine_.embeddings_norm_,
                     LoadNorm("embeddings.LayerNorm"));
    return absl::OkStatus();
  }

  // `weights` (to, from), padded.
  absl::StatusOr<Linear> Pack(ProductType type, int64_t from, int64_t to,
                              std::vector<float> weights,
                              std::vector<float> bias) {
    const ProductShape shape = {.type = type,
                                .from = from,
                                .to = to,
                                .bias = type != ProductType::kInt8};
    std::shared_ptr<const ProductCode>& code = codes_[{type, from, to}];
    if (code == nullptr) {
      ASSIGN_OR_RETURN(code, ProductCode::Create(shape));
    }
    Linear out;
    out.code = code;
    if (type == ProductType::kInt8) {
      out.column_scales.resize(to);
      out.corrections.resize(to);
      for (int64_t n = 0; n < to; ++n) {
        float* const row = weights.data() + n * from;
        float most = 0;
        for (int64_t k = 0; k < from; ++k) {
          most = std::max(most, std::abs(row[k]));
        }
        const float scale = most > 0 ? most / 127 : 1;
        float sum = 0;  // of whole numbers below 2^24: exact
        for (int64_t k = 0; k < from; ++k) {
          row[k] = std::nearbyint(row[k] / scale);
          sum += row[k];
        }
        out.column_scales[n] = scale;
        out.corrections[n] = engine_.zero_ * static_cast<int32_t>(sum);
      }
      out.bias = std::move(bias);
      bias.clear();
    }
    ASSIGN_OR_RETURN(out.weights, code->Pack(weights, bias));
    return out;
  }

  // The type of a layer's product, as the manifest has it.
  absl::StatusOr<Linear> PackLayer(int layer, internal::Product product,
                                   int64_t from, int64_t to,
                                   std::vector<float> weights,
                                   std::vector<float> bias) {
    ProductType type = rest_;
    float bound = 0;
    if (engine_.dtype_ == internal::DTYPE_INT8) {
      type = ProductType::kInt8;
      if (quantization_ != nullptr) {
        for (const internal::QuantizedProduct& q : quantization_->products()) {
          if (q.layer() != layer || q.product() != product) continue;
          if (q.keep()) type = rest_;
          bound = q.activation_bound();
        }
      }
    }
    ASSIGN_OR_RETURN(Linear out,
                     Pack(type, from, to, std::move(weights), std::move(bias)));
    out.bound = bound;
    out.layer = layer;
    out.product = product;
    return out;
  }

  absl::Status LoadLayer(int l, Layer* layer) {
    const EncoderConfig& config = checkpoint_.config;
    const std::string scope = absl::StrCat("encoder.layer.", l, ".");
    const int64_t hidden = config.hidden_size, width = engine_.width_;
    const int64_t inner = config.intermediate_size;
    const int64_t head_size = hidden / config.num_heads;
    const int64_t head_width = engine_.head_width_;
    const int64_t attention_width = config.num_heads * head_width;

    // Query, key and value below each other, each head padded to head_width.
    std::vector<float> weights(3 * attention_width * width);
    std::vector<float> bias(3 * attention_width);
    for (int part = 0; part < 3; ++part) {
      static constexpr const char* kNames[] = {"query", "key", "value"};
      const std::string name =
          absl::StrCat(scope, "attention.self.", kNames[part]);
      ASSIGN_OR_RETURN(const std::vector<float> w, Read(name + ".weight"));
      ASSIGN_OR_RETURN(const std::vector<float> b, Read(name + ".bias"));
      // As AttentionTask wants queries.
      const float factor =
          part == 0 ? static_cast<float>(M_LOG2E / std::sqrt(head_size)) : 1;
      for (int64_t r = 0; r < hidden; ++r) {
        const int64_t to =
            part * attention_width + r / head_size * head_width + r % head_size;
        for (int64_t c = 0; c < hidden; ++c) {
          weights[to * width + c] = w[r * hidden + c] * factor;
        }
        bias[to] = b[r] * factor;
      }
    }
    ASSIGN_OR_RETURN(
        layer->query_key_value,
        PackLayer(l, internal::PRODUCT_QUERY_KEY_VALUE, width,
                  3 * attention_width, std::move(weights), std::move(bias)));

    {
      const std::string name = scope + "attention.output.dense";
      ASSIGN_OR_RETURN(const std::vector<float> w, Read(name + ".weight"));
      ASSIGN_OR_RETURN(const std::vector<float> b, Read(name + ".bias"));
      std::vector<float> padded(width * attention_width);
      for (int64_t r = 0; r < hidden; ++r) {
        for (int64_t c = 0; c < hidden; ++c) {
          padded[r * attention_width + c / head_size * head_width +
                 c % head_size] = w[r * hidden + c];
        }
      }
      ASSIGN_OR_RETURN(
          layer->attention_output,
          PackLayer(l, internal::PRODUCT_ATTENTION_OUTPUT, attention_width,
                    width, std::move(padded), Pad(b, hidden, width)));
    }
    const auto linear = [&](const std::string& name, internal::Product product,
                            int64_t from, int64_t to, int64_t from_width,
                            int64_t to_width) -> absl::StatusOr<Linear> {
      ASSIGN_OR_RETURN(const std::vector<float> w, Read(name + ".weight"));
      ASSIGN_OR_RETURN(const std::vector<float> b, Read(name + ".bias"));
      std::vector<float> padded = Pad(w, from, from_width);
      padded.resize(to_width * from_width);
      return PackLayer(l, product, from_width, to_width, std::move(padded),
                       Pad(b, to, to_width));
    };
    ASSIGN_OR_RETURN(
        layer->intermediate,
        linear(scope + "intermediate.dense", internal::PRODUCT_INTERMEDIATE,
               hidden, inner, width, engine_.inner_width_));
    ASSIGN_OR_RETURN(layer->output,
                     linear(scope + "output.dense", internal::PRODUCT_OUTPUT,
                            inner, hidden, engine_.inner_width_, width));
    ASSIGN_OR_RETURN(layer->attention_norm,
                     LoadNorm(scope + "attention.output.LayerNorm"));
    ASSIGN_OR_RETURN(layer->output_norm, LoadNorm(scope + "output.LayerNorm"));
    return absl::OkStatus();
  }

  absl::Status LoadHead(const internal::Head& head, PackedHead* out) {
    const int64_t hidden = checkpoint_.config.hidden_size;
    const bool embeds = head.kind() == internal::HEAD_KIND_RECOMMENDATION;
    out->pooling = head.pooling();
    out->normalize = embeds;
    out->width = hidden;
    // Small, so in fp32 whatever the encoder runs in.
    const auto load = [&](const std::string& name, bool optional,
                          Linear* linear) -> absl::Status {
      const auto it = checkpoint_.heads.find(name + ".weight");
      if (it == checkpoint_.heads.end() && optional) return absl::OkStatus();
      ASSIGN_OR_RETURN(const std::vector<float> w,
                       Read(checkpoint_.heads, name + ".weight"));
      const int64_t to = static_cast<int64_t>(w.size()) / hidden;
      std::vector<float> bias(to);
      if (checkpoint_.heads.contains(name + ".bias")) {
        ASSIGN_OR_RETURN(bias, Read(checkpoint_.heads, name + ".bias"));
      }
      const int64_t to_width = RoundUp(to, kRowAlignment);
      std::vector<float> padded = Pad(w, hidden, engine_.width_);
      padded.resize(to_width * engine_.width_);
      ASSIGN_OR_RETURN(*linear,
                       Pack(ProductType::kF32, engine_.width_, to_width,
                            std::move(padded), Pad(bias, to, to_width)));
      out->width = to;
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(
        load(head.name() + ".dense", /*optional=*/true, &out->dense));
    return load(head.name() + (embeds ? ".projection" : ".out_proj"),
                /*optional=*/embeds, &out->out);
  }

  const Checkpoint& checkpoint_;
  const std::vector<internal::Head>& head_options_;
  const internal::Quantization* const quantization_;
  OneDnnEngine& engine_;
  ProductType rest_ = ProductType::kF32;
  std::map<std::tuple<ProductType, int64_t, int64_t>,
           std::shared_ptr<const ProductCode>>
      codes_;
};

absl::StatusOr<std::unique_ptr<OneDnnEngine>> OneDnnEngine::Create(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    internal::Dtype dtype, const EngineOptions& options) {
  const int threads =
      options.inner_threads > 0
          ? options.inner_threads
          : std::max<int>(1, std::thread::hardware_concurrency());
  std::unique_ptr<OneDnnEngine> engine(
      new OneDnnEngine(checkpoint.config, threads, dtype, options.observer));
  RETURN_IF_ERROR(
      Loader(checkpoint, heads, options.quantization, engine.get()).Load());
  if (options.start_threads) engine->StartThreads();
  return engine;
}

absl::StatusOr<internal::Dtype> ChooseDtype(const EngineOptions& options) {
  switch (options.dtype) {
    case internal::DTYPE_AUTO:
      return options.quantization != nullptr ? internal::DTYPE_INT8
             : HasFastBf16()                 ? internal::DTYPE_BF16
                                             : internal::DTYPE_FP32;
    case internal::DTYPE_BF16:
      if (EffectiveCpuIsa() < CpuIsa::kAvx512) {
        return absl::FailedPreconditionError(
            "dtype BF16: this processor has no AVX-512");
      }
      if (!HasFastBf16()) {
        Log(LogLevel::kWarning, "slow_bf16",
            {{"reason", "this processor has neither AMX nor AVX512-BF16"}});
      }
      return options.dtype;
    case internal::DTYPE_FP32:
    case internal::DTYPE_INT8:
      return options.dtype;
    case internal::DTYPE_FP16:
      return absl::FailedPreconditionError("dtype FP16: CUDA only");
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("dtype ", options.dtype, ": unknown"));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> NewOneDnnEngine(
    const Checkpoint& checkpoint, const std::vector<internal::Head>& heads,
    const EngineOptions& options) {
  RETURN_IF_ERROR(CheckHeads(heads));
  if (options.device == internal::DEVICE_CUDA) {
    return absl::FailedPreconditionError(
        "device CUDA: oneDNN's engine is for a CPU");
  }
  ASSIGN_OR_RETURN(const internal::Dtype dtype, ChooseDtype(options));
  SetUpMathLibraries(kAllProducts);
  return OneDnnEngine::Create(checkpoint, heads, dtype, options);
}

}  // namespace vitrine
