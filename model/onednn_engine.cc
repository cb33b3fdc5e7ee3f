// The CPU engine: oneDNN's products with packed weights, kernels of our own
// between them (ADR 0015). Rows are packed from the first layer to the last, no
// row is padding but the few that fill up a block of kRowStep.
//
// Each thread takes sequences of its own from the first layer to the heads, a
// cacheful at a time, and meets no other. Where that would leave threads idle
// (a long sequence among short ones), they share its rows instead, a layer at a
// time. Where there are few rows in all, reading the weights is what takes
// time: then they share the columns of each product, so that each reads its
// part of the weights only, and the rows of what comes between.

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "base/work_team.h"
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
// Where threads share rows, what one takes at a time, at least.
constexpr int64_t kLeastRangeRows = 64;
// Above this (the busiest thread's tokens over the average) threads share rows.
constexpr double kMaxImbalance = 1.15;
// Up to so many tokens threads share columns, where their work would be unequal
// otherwise; up to half of it where it would not, but a layer's weights are so
// large that half of them are read faster.
constexpr int64_t kMaxColumnTokens = 128;
static_assert(kMaxColumnTokens <= kMaxPartRows);
constexpr int64_t kLargeLayerBytes = int64_t{3} << 20;
// More threads have too few columns each.
constexpr int kMaxColumnThreads = 8;

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

ProductOutput From(ProductOutput output, int64_t row, int64_t width) {
  output.data = static_cast<const std::byte*>(output.data) +
                row * width * ElementBytes(output.type);
  if (output.row_scales != nullptr) output.row_scales += row;
  return output;
}

// The rows of a share.
struct Rows {
  Buffer tokens, stream, query_key_value[2];
  InputBuffer stream_input;
  // Some threads are in the layer before while others are in the next: the
  // layers' keys and values take turns.
  bool take_turns = false;
};

// What a thread has for itself.
struct Scratch {
  ProductContext products;
  Buffer wide, maxima, attention, context, output, middle, part;
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

// Memory is the only thing that may throw while a batch runs.
template <typename F>
absl::Status OutOfMemoryIsAnError(F run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory to run a batch in");
  }
}

// Those who work on a share: one thread, or it as the leader of a team.
struct Crew {
  struct Team {
    explicit Team(int members) : workspaces(members) {}
    WorkTeam work;
    std::vector<Workspace*> workspaces;  // of each member that has come
  };

  Scratch* scratch = nullptr;  // the leader's
  Team* team = nullptr;        // null: alone

  // Calls f(task, scratch of who does it) for tasks 0 to tasks - 1.
  absl::Status ForTasks(
      int tasks, absl::FunctionRef<absl::Status(int, Scratch*)> f) const {
    return team->work.For(tasks, [&](int task, int member) {
      return OutOfMemoryIsAnError(
          [&] { return f(task, &team->workspaces[member]->scratch); });
    });
  }
  // Calls f(first, count, scratch) for ranges of `rows` rows.
  template <typename F>
  absl::Status ForRows(int64_t rows, F f) const {
    if (team == nullptr) {
      f(0, rows, scratch);
      return absl::OkStatus();
    }
    const int64_t ranges =
        std::min<int64_t>(rows, static_cast<int64_t>(team->workspaces.size()));
    return ForTasks(static_cast<int>(ranges), [&](int task, Scratch* own) {
      const int64_t first = rows * task / ranges;
      f(first, rows * (task + 1) / ranges - first, own);
      return absl::OkStatus();
    });
  }
};

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

  // Some sequences of a batch that run through the layers together.
  struct Share {
    const Batch& batch;
    std::vector<Placed> sequences;  // one after the other, from row 0 on
    int64_t tokens = 0;
    bool only_first_tokens = true;  // are what its heads read
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

    Workspace* get() const { return workspace_.get(); }

   private:
    const OneDnnEngine& engine_;
    std::unique_ptr<Workspace> workspace_;
  };

  Share MakeShare(const Batch& batch, const std::vector<int>& sequences,
                  Outputs* outputs) const;
  // Returns run(team, its leader's workspace); threads of the engine that have
  // nothing else to do help.
  absl::Status WithTeam(
      int members,
      absl::FunctionRef<absl::Status(Crew::Team*, Workspace*)> run) const;
  // Each thread sequences of its own.
  absl::Status RunApart(const Batch& batch,
                        const std::vector<std::vector<int>>& shares,
                        Outputs* outputs) const;
  // All threads the same sequences.
  absl::Status RunByRows(const Share& share) const;
  absl::Status RunByColumns(const Share& share) const;

  // From the tokens to the heads; of a team, its leader. Throws std::bad_alloc,
  // as what follows does.
  absl::Status RunShare(const Share& share, Crew::Team* team,
                        Workspace* workspace) const;
  // Its steps: Prepare, which makes room and writes down the tokens; Embed;
  // Project and Attend for each layer; RunHeads. Of rows [begin, end), begin is
  // a multiple of kRowStep.
  void Prepare(const Share& share, Rows* rows) const;
  absl::Status Embed(const Share& share, int64_t begin, int64_t end, Rows* rows,
                     const Crew& crew) const;
  // The layer's queries, keys and values.
  absl::Status Project(const Share& share, size_t layer, int64_t begin,
                       int64_t end, Rows* rows, const Crew& crew) const;
  // The rest of the layer, once all rows are projected. Of the last layer,
  // where only first tokens are read, no others are finished, and these are
  // moved to `begin` and the rows behind it.
  absl::Status Attend(const Share& share, size_t layer, int64_t begin,
                      int64_t end, Rows* rows, const Crew& crew) const;
  // Attend's product of the intermediate width, activated.
  absl::StatusOr<ProductInput> RunIntermediate(const Layer& layer,
                                               const ProductInput& x,
                                               int64_t rows,
                                               const Crew& crew) const;
  // All layers were run in ranges of so many rows.
  absl::Status RunHeads(const Share& share, int64_t range_rows, Rows* rows,
                        Scratch* scratch) const;

  ProductInput InputOfLayer(const Share& share, size_t layer, Rows* rows) const;
  std::byte* QueryKeyValue(const Share& share, size_t layer, Rows* rows) const;
  // Multiplies x and the weights; calls use(y, columns, scratch) with all rows
  // of the product: of all its columns, or of each part of them by who of the
  // team has it. `whole` is room for the first case.
  using UseProduct = absl::FunctionRef<void(const ProductOutput&,
                                            ProductCode::Columns, Scratch*)>;
  absl::Status Multiply(const Linear& linear, const ProductInput& x,
                        int64_t rows, void* whole, const Crew& crew,
                        UseProduct use) const;
  // Into y (rows, columns).
  absl::StatusOr<ProductOutput> Multiply(const Linear& linear,
                                         const ProductInput& x, int64_t rows,
                                         void* y, const Crew& crew) const;

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
  int64_t attention_width_ = 0;
  int64_t inner_width_ = 0;
  int64_t widest_ = 0;
  int zero_ = 128;
  bool has_parts_ = true;    // every product of the layers
  int64_t layer_bytes_ = 0;  // of the first layer's packed weights
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

// What a product wrote to `data`, from column `begin` on.
ProductOutput OutputOf(const Linear& linear, const ProductInput& x,
                       const void* data, int64_t begin) {
  ProductOutput out;
  out.type = OutputElement(linear.type());
  out.data = data;
  if (!linear.bias.empty()) out.bias = linear.bias.data() + begin;
  if (linear.type() == ProductType::kInt8) {
    out.row_scales = x.scales;
    out.column_scales = linear.column_scales.data() + begin;
    out.corrections = linear.corrections.data() + begin;
  }
  return out;
}

absl::Status OneDnnEngine::Multiply(const Linear& linear, const ProductInput& x,
                                    int64_t rows, void* whole, const Crew& crew,
                                    UseProduct use) const {
  if (observer_ != nullptr && x.type == Element::kU8) {
    float* const maxima = crew.scratch->maxima.Get<float>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      maxima[r] = x.scales[r] * static_cast<float>(x.zero - 1);
    }
    observer_->Observe(linear.layer, linear.product, maxima, rows);
  }
  const int64_t padded = RoundUp(rows, kRowStep);
  if (crew.team == nullptr) {
    RETURN_IF_ERROR(linear.code->Run(*linear.weights, x.data, whole, padded,
                                     &crew.scratch->products));
    use(OutputOf(linear, x, whole, 0), {0, linear.to()}, crew.scratch);
    return absl::OkStatus();
  }
  const std::vector<ProductCode::Columns>& parts = linear.code->parts();
  const auto multiply = [&](int p, Scratch* scratch) -> absl::Status {
    const int64_t width = parts[p].end - parts[p].begin;
    auto* const part = scratch->part.Get<std::byte>(
        padded * width * ElementBytes(OutputElement(linear.type())));
    RETURN_IF_ERROR(linear.code->RunPart(p, *linear.weights, x.data, part,
                                         padded, &scratch->products));
    use(OutputOf(linear, x, part, parts[p].begin), parts[p], scratch);
    return absl::OkStatus();
  };
  return crew.ForTasks(static_cast<int>(parts.size()), multiply);
}

absl::StatusOr<ProductOutput> OneDnnEngine::Multiply(const Linear& linear,
                                                     const ProductInput& x,
                                                     int64_t rows, void* y,
                                                     const Crew& crew) const {
  const auto copy = [&](const ProductOutput& part, ProductCode::Columns columns,
                        Scratch*) {
    if (part.data == y) return;
    const int64_t element = ElementBytes(part.type);
    const int64_t bytes = (columns.end - columns.begin) * element;
    const auto* from = static_cast<const std::byte*>(part.data);
    auto* to = static_cast<std::byte*>(y) + columns.begin * element;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(from, bytes, to);
      from += bytes;
      to += linear.to() * element;
    }
  };
  RETURN_IF_ERROR(Multiply(linear, x, rows, y, crew, copy));
  return OutputOf(linear, x, y, 0);
}

// Calls the kernel f(y, rows, width, next) where y is `columns` of rows as wide
// as those of `next`, `width`.
template <typename F>
void ForColumns(const ProductOutput& y, ProductCode::Columns columns,
                int64_t rows, const ProductInput& next, int64_t width, F f) {
  const int64_t count = columns.end - columns.begin;
  if (count == width) {
    f(y, rows, width, next);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    ProductInput row = From(next, r, width);
    row.data = static_cast<std::byte*>(row.data) +
               columns.begin * ElementBytes(row.type);
    f(From(y, r, count), 1, count, row);
  }
}

// What the layer's first product reads; all rows.
ProductInput OneDnnEngine::InputOfLayer(const Share& share, size_t layer,
                                        Rows* rows) const {
  ProductInput out = InputOf(layers_[layer].query_key_value,
                             &rows->stream_input, share.rows());
  if (out.type == Element::kF32) {
    out.data = rows->stream.Get<float>(share.rows() * width_);
  }
  return out;
}

std::byte* OneDnnEngine::QueryKeyValue(const Share& share, size_t layer,
                                       Rows* rows) const {
  return rows->query_key_value[rows->take_turns ? layer % 2 : 0].Get<std::byte>(
      share.rows() * 3 * attention_width_ * ElementBytes(between_));
}

absl::Status OneDnnEngine::Embed(const Share& share, int64_t begin, int64_t end,
                                 Rows* rows, const Crew& crew) const {
  const TokenIds* const tokens = rows->tokens.Get<TokenIds>(share.rows());
  float* const stream = rows->stream.Get<float>(share.rows() * width_);
  const ProductInput input = InputOfLayer(share, 0, rows);
  return crew.ForRows(end - begin, [&](int64_t first, int64_t count, Scratch*) {
    const int64_t row = begin + first;
    kernels_.embed(tables_, tokens + row, count, embeddings_norm_.norm,
                   stream + row * width_, From(input, row, width_));
  });
}

absl::Status OneDnnEngine::Project(const Share& share, size_t layer,
                                   int64_t begin, int64_t end, Rows* rows,
                                   const Crew& crew) const {
  const Linear& linear = layers_[layer].query_key_value;
  const ProductInput input =
      From(InputOfLayer(share, layer, rows), begin, width_);
  const int64_t count = end - begin;
  const int64_t row_bytes = linear.to() * ElementBytes(between_);
  std::byte* const out = QueryKeyValue(share, layer, rows) + begin * row_bytes;
  if (linear.type() != ProductType::kInt8) {
    return Multiply(linear, input, count, out, crew).status();
  }
  for (int64_t r = 0; r < count; r += kChunkRows) {
    const int64_t n = std::min<int64_t>(kChunkRows, count - r);
    int32_t* const exact =
        crew.scratch->middle.Get<int32_t>(kChunkRows * linear.to());
    ProductInput floats;
    floats.type = between_;
    floats.data = out + r * row_bytes;
    const auto convert = [&](const ProductOutput& y,
                             ProductCode::Columns columns, Scratch* scratch) {
      float* const row = scratch->wide.Get<float>(widest_);
      ForColumns(y, columns, n, floats, linear.to(),
                 [&](const ProductOutput& part, int64_t rows_of_part,
                     int64_t width, const ProductInput& next) {
                   kernels_.convert(part, rows_of_part, width, row, next);
                 });
    };
    RETURN_IF_ERROR(
        Multiply(linear, From(input, r, width_), n, exact, crew, convert));
  }
  return absl::OkStatus();
}

absl::Status OneDnnEngine::Attend(const Share& share, size_t layer_number,
                                  int64_t begin, int64_t end, Rows* rows,
                                  const Crew& crew) const {
  const Layer& layer = layers_[layer_number];
  const bool last = layer_number + 1 == layers_.size();
  float* const stream =
      rows->stream.Get<float>(share.rows() * width_) + begin * width_;
  // Of the last layer's rows only those that a head reads are finished.
  const bool compact = last && share.only_first_tokens;
  int64_t count = end - begin;
  if (compact) {
    count = 0;
    for (const Placed& placed : share.sequences) {
      if (placed.first < begin || placed.first >= end) continue;
      if (placed.first != begin + count) {
        std::copy_n(stream + (placed.first - begin) * width_, width_,
                    stream + count * width_);
      }
      ++count;
    }
  }
  const std::byte* const qkv = QueryKeyValue(share, layer_number, rows);
  // The context of rows [first, first + wanted) of those `count`.
  const auto attend = [&](int64_t first, int64_t wanted,
                          const ProductInput& context, Scratch* scratch) {
    AttentionTask task;
    task.type = between_;
    task.heads = config_.num_heads;
    task.head_width = head_width_;
    int64_t row = 0;  // of the sequence's first query
    for (const Placed& placed : share.sequences) {
      const int64_t from = std::max(placed.first, begin);
      int64_t to = std::min(placed.first + placed.length, end);
      if (compact) to = std::min(to, placed.first + 1);
      if (from >= to) continue;
      const int64_t begin_here = std::max(row, first);
      const int64_t end_here = std::min(row + to - from, first + wanted);
      if (begin_here < end_here) {
        task.qkv =
            qkv + placed.first * 3 * attention_width_ * ElementBytes(between_);
        task.length = placed.length;
        task.first_query = from - placed.first + begin_here - row;
        task.queries = end_here - begin_here;
        task.context = From(context, begin_here - first, attention_width_).data;
        task.scratch = scratch->attention.Get<float>(
            AttentionScratch(placed.length, head_width_));
        kernels_.attend(task);
      }
      row += to - from;
    }
  };

  // From here on a row needs no others.
  ProductInput next;  // the stream itself
  next.data = stream;
  if (!last) {
    next = From(InputOfLayer(share, layer_number + 1, rows), begin, width_);
  }
  Scratch& own = *crew.scratch;
  for (int64_t r = 0; r < count; r += kChunkRows) {
    const int64_t n = std::min<int64_t>(kChunkRows, count - r);
    float* const x = stream + r * width_;
    ProductInput context;
    context.type = between_;
    context.data = own.context.Get<float>(kChunkRows * attention_width_);
    const bool convert =
        InputElement(layer.attention_output.type()) != between_;
    const ProductInput attended =
        convert
            ? InputOf(layer.attention_output, &own.context_input, kChunkRows)
            : context;
    RETURN_IF_ERROR(
        crew.ForRows(n, [&](int64_t first, int64_t part, Scratch* scratch) {
          const ProductInput here = From(context, first, attention_width_);
          attend(r + first, part, here, scratch);
          if (!convert) return;
          ProductOutput plain;
          plain.type = here.type;
          plain.data = here.data;
          kernels_.convert(plain, part, attention_width_,
                           scratch->wide.Get<float>(widest_),
                           From(attended, first, attention_width_));
        }));

    void* const y = own.output.Get<float>(kChunkRows * width_);
    ASSIGN_OR_RETURN(ProductOutput out,
                     Multiply(layer.attention_output, attended, n, y, crew));
    ProductInput middle =
        InputOf(layer.intermediate, &own.norm_input, kChunkRows);
    if (middle.type == Element::kF32) middle.data = x;
    const auto add_and_normalize = [&](const Norm& norm,
                                       const ProductInput& result) {
      return crew.ForRows(n, [&](int64_t first, int64_t part, Scratch*) {
        kernels_.add_and_normalize(From(out, first, width_), part, norm,
                                   x + first * width_,
                                   From(result, first, width_));
      });
    };
    RETURN_IF_ERROR(add_and_normalize(layer.attention_norm.norm, middle));

    ASSIGN_OR_RETURN(const ProductInput activated,
                     RunIntermediate(layer, middle, n, crew));
    ASSIGN_OR_RETURN(out, Multiply(layer.output, activated, n, y, crew));
    RETURN_IF_ERROR(
        add_and_normalize(layer.output_norm.norm, From(next, r, width_)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ProductInput> OneDnnEngine::RunIntermediate(
    const Layer& layer, const ProductInput& x, int64_t rows,
    const Crew& crew) const {
  const Linear& linear = layer.intermediate;
  void* const y = crew.scratch->middle.Get<float>(kChunkRows * inner_width_);
  // In place where the types are the same.
  ProductInput out;
  out.type = InputElement(layer.output.type());
  out.data = y;
  if (out.type != OutputElement(linear.type())) {
    out = InputOf(layer.output, &crew.scratch->middle_input, kChunkRows);
  }
  const auto activate = [&](const ProductOutput& part, int64_t rows_of_part,
                            int64_t width, const ProductInput& next,
                            Scratch* scratch) {
    kernels_.activate(activation_, part, rows_of_part, width,
                      scratch->wide.Get<float>(widest_), next);
  };
  if (out.type == Element::kU8) {
    // A row's scale is of all its columns.
    ASSIGN_OR_RETURN(const ProductOutput all,
                     Multiply(linear, x, rows, y, crew));
    RETURN_IF_ERROR(
        crew.ForRows(rows, [&](int64_t first, int64_t count, Scratch* scratch) {
          activate(From(all, first, inner_width_), count, inner_width_,
                   From(out, first, inner_width_), scratch);
        }));
  } else {
    const auto activate_columns = [&](const ProductOutput& part,
                                      ProductCode::Columns columns,
                                      Scratch* scratch) {
      ForColumns(part, columns, rows, out, inner_width_,
                 [&](const ProductOutput& of_rows, int64_t count, int64_t width,
                     const ProductInput& next) {
                   activate(of_rows, count, width, next, scratch);
                 });
    };
    RETURN_IF_ERROR(Multiply(linear, x, rows, y, crew, activate_columns));
  }
  return out;
}

absl::Status OneDnnEngine::RunHeads(const Share& share, int64_t range_rows,
                                    Rows* rows, Scratch* scratch) const {
  const float* const stream = rows->stream.Get<float>(share.rows() * width_);
  std::vector<Placed> sequences = share.sequences;
  if (share.only_first_tokens) {
    // Where Attend has moved them.
    int64_t range = -1, row = 0;
    for (Placed& placed : sequences) {
      if (placed.first / range_rows != range) {
        range = placed.first / range_rows;
        row = range * range_rows;
      }
      placed.first = row++;
    }
  }
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
    for (size_t h = 0; h < heads_.size(); ++h) {
      share.only_first_tokens &= !(batch.heads[s] >> h & 1) ||
                                 heads_[h].pooling != internal::POOLING_MEAN;
    }
  }
  return share;
}

void OneDnnEngine::Prepare(const Share& share, Rows* rows) const {
  const int64_t count = share.rows();
  // As large as any layer wants them: threads that share rows must not find
  // them too small.
  rows->stream.Get<float>(count * width_);
  rows->stream_input.Rows(Element::kF32, count, width_, 0, 0);
  rows->stream_input.Rows(Element::kU8, count, width_, 0, 0);
  for (Buffer& buffer : rows->query_key_value) {
    buffer.Get<float>(3 * count * attention_width_);
  }
  rows->take_turns = false;
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

absl::Status OneDnnEngine::RunShare(const Share& share, Crew::Team* team,
                                    Workspace* workspace) const {
  Rows* const rows = &workspace->rows;
  const Crew crew = {&workspace->scratch, team};
  Prepare(share, rows);
  RETURN_IF_ERROR(Embed(share, 0, share.tokens, rows, crew));
  for (size_t l = 0; l < layers_.size(); ++l) {
    RETURN_IF_ERROR(Project(share, l, 0, share.tokens, rows, crew));
    RETURN_IF_ERROR(Attend(share, l, 0, share.tokens, rows, crew));
  }
  return RunHeads(share, share.rows(), rows, crew.scratch);
}

absl::Status OneDnnEngine::WithTeam(
    int members,
    absl::FunctionRef<absl::Status(Crew::Team*, Workspace*)> run) const {
  return OutOfMemoryIsAnError([&] {
    const auto team = std::make_shared<Crew::Team>(members);
    const WorkspaceLoan own(this);
    team->workspaces[0] = own.get();
    // However this ends, nobody waits for more.
    const absl::Cleanup dissolve = [&team] { team->work.Dissolve(); };
    for (int member = 1; member < members; ++member) {
      // Where the pool is full, and where there is no memory for one who helps,
      // the others do its work. One that comes late touches nothing of this
      // call.
      static_cast<void>(pool_->Post([this, team, member] {
        if (team->work.dissolved()) return;
        static_cast<void>(OutOfMemoryIsAnError([&] {
          const WorkspaceLoan loan(this);
          team->workspaces[member] = loan.get();
          team->work.Help(member);
          return absl::OkStatus();
        }));
      }));
    }
    return run(team.get(), own.get());
  });
}

absl::Status OneDnnEngine::RunApart(const Batch& batch,
                                    const std::vector<std::vector<int>>& shares,
                                    Outputs* outputs) const {
  const int count = static_cast<int>(shares.size());
  const int members = started_.load() ? std::min(threads_, count) : 1;
  return WithTeam(members, [&](Crew::Team* team, Workspace*) {
    const auto run = [&](int i, int member) {
      return OutOfMemoryIsAnError([&] {
        return RunShare(MakeShare(batch, shares[i], outputs), /*team=*/nullptr,
                        team->workspaces[member]);
      });
    };
    return team->work.For(count, run, /*last=*/true);
  });
}

absl::Status OneDnnEngine::RunByColumns(const Share& share) const {
  return WithTeam(std::min(threads_, kMaxColumnThreads),
                  [&](Crew::Team* team, Workspace* workspace) {
                    return RunShare(share, team, workspace);
                  });
}

absl::Status OneDnnEngine::RunByRows(const Share& share) const {
  // Two for each thread, so that one who comes late finds something to do.
  const int64_t range_rows = RoundUp(
      std::max(share.rows() / (2 * threads_), kLeastRangeRows), kRowStep);
  const int ranges =
      static_cast<int>((share.rows() + range_rows - 1) / range_rows);
  const auto run = [&](Crew::Team* team, Workspace* workspace) -> absl::Status {
    Rows* const rows = &workspace->rows;
    Prepare(share, rows);
    rows->take_turns = true;
    const Crew all = {&workspace->scratch, team};
    // Nobody begins with a layer before all keys and values of it are there.
    for (size_t l = 0; l <= layers_.size(); ++l) {
      const auto step = [&](int range, Scratch* scratch) -> absl::Status {
        const int64_t begin = range * range_rows;
        const int64_t end = std::min(begin + range_rows, share.tokens);
        const Crew one = {scratch, /*team=*/nullptr};
        RETURN_IF_ERROR(l == 0 ? Embed(share, begin, end, rows, one)
                               : Attend(share, l - 1, begin, end, rows, one));
        if (l == layers_.size()) return absl::OkStatus();
        return Project(share, l, begin, end, rows, one);
      };
      RETURN_IF_ERROR(all.ForTasks(ranges, step));
    }
    return RunHeads(share, range_rows, rows, all.scratch);
  };
  return WithTeam(std::min(threads_, ranges), run);
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
  const bool unequal =
      !alone && Imbalance(batch.offsets, threads) > kMaxImbalance;
  const bool by_columns = !alone && has_parts_ &&
                          batch.tokens() <= (unequal ? kMaxColumnTokens
                                             : layer_bytes_ > kLargeLayerBytes
                                                 ? kMaxColumnTokens / 2
                                                 : 0);
  const bool by_rows = unequal && batch.tokens() > kLeastRangeRows;
  if (by_columns || by_rows) {
    std::vector<int> all(batch.sequences());
    std::iota(all.begin(), all.end(), 0);
    const Share share = MakeShare(batch, all, &outputs);
    RETURN_IF_ERROR(by_columns ? RunByColumns(share) : RunByRows(share));
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
    engine_.attention_width_ = config.num_heads * engine_.head_width_;
    engine_.widest_ = std::max(
        {engine_.width_, engine_.inner_width_, 3 * engine_.attention_width_});
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
    for (const Linear* linear :
         {&engine_.layers_[0].query_key_value,
          &engine_.layers_[0].attention_output,
          &engine_.layers_[0].intermediate, &engine_.layers_[0].output}) {
      engine_.layer_bytes_ += ProductCode::SizeBytes(*linear->weights);
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

  // `weights` (to, from), padded, whose columns `threads` may share.
  absl::StatusOr<Linear> Pack(ProductType type, int64_t from, int64_t to,
                              int threads, std::vector<float> weights,
                              std::vector<float> bias) {
    const ProductShape shape = {.type = type,
                                .from = from,
                                .to = to,
                                .bias = type != ProductType::kInt8,
                                .parts = std::min(threads, kMaxColumnThreads)};
    std::shared_ptr<const ProductCode>& code =
        codes_[{type, from, to, threads}];
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
    ASSIGN_OR_RETURN(Linear out, Pack(type, from, to, engine_.threads_,
                                      std::move(weights), std::move(bias)));
    engine_.has_parts_ &= !out.code->parts().empty();
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
      ASSIGN_OR_RETURN(
          *linear,
          Pack(ProductType::kF32, engine_.width_, to_width,
               /*threads=*/1, std::move(padded), Pad(bias, to, to_width)));
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
  std::map<std::tuple<ProductType, int64_t, int64_t, int>,
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
