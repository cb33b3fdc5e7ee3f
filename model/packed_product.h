#pragma once

// Products of packed rows with constant weights, by oneDNN: weights are
// reordered once to what the processor multiplies fastest (AMX, AVX-512, AVX2,
// as ONEDNN_MAX_CPU_ISA allows) and shared by all threads.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/vector_kernels.h"

namespace vitrine {

// What oneDNN may use of this processor, so that one setting caps all.
CpuIsa EffectiveCpuIsa();
// Products of bf16 are faster than those of fp32.
bool HasFastBf16();
// Sums of four products of int8 in one instruction, exactly; without it pairs
// saturate, and inputs must be halved.
bool HasExactInt8();

enum class ProductType {
  kF32,   // kF32 x kF32 -> kF32
  kBf16,  // kBf16 x kBf16 -> kBf16
  kInt8,  // kU8 x s8 -> kS32
};

// A linear layer's shape, its rows padded as vector_kernels.h has it.
struct ProductShape {
  ProductType type = ProductType::kF32;
  int64_t from = 0;   // columns of the input
  int64_t to = 0;     // columns of the output
  bool bias = false;  // added by the product; not with kInt8
  // Parts that its columns are wanted in, for as many threads.
  int parts = 1;
};

// Rows per call are multiples of this.
inline constexpr int64_t kRowStep = 16;
// Above this, threads had better take rows each than columns each.
inline constexpr int64_t kMaxPartRows = 128;

// A thread's own: oneDNN's stream and scratch memory. Kept by whoever calls Run
// and used by one thread at a time.
class ProductContext {
 public:
  ProductContext();
  ~ProductContext();
  ProductContext(ProductContext&&) noexcept;
  ProductContext& operator=(ProductContext&&) noexcept;

 private:
  friend class ProductCode;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// oneDNN's code for products of one shape, which many layers share. Immutable;
// any thread.
class ProductCode {
 public:
  // kUnimplemented where oneDNN has no product of this type here.
  static absl::StatusOr<std::shared_ptr<const ProductCode>> Create(
      const ProductShape& shape);
  ~ProductCode();

  const ProductShape& shape() const;

  // Columns [begin, end) of the output, some for every part.
  struct Columns {
    int64_t begin = 0, end = 0;
  };
  // As many as were wanted, fewer where there are few columns; empty where
  // oneDNN multiplies with all packed weights or none.
  const std::vector<Columns>& parts() const;

  struct Weights;  // packed
  // weights: (to, from), row-major, of floats; for kInt8 whole numbers from
  // -127 to 127. `bias`: (to), or empty where the shape has none.
  absl::StatusOr<std::shared_ptr<const Weights>> Pack(
      absl::Span<const float> weights, absl::Span<const float> bias) const;

  // y (rows, to) = x (rows, from) times the transposed weights, plus the bias.
  absl::Status Run(const Weights& weights, const void* x, void* y, int64_t rows,
                   ProductContext* context) const;

  // y (rows, columns of the part), dense, of up to kMaxPartRows rows: as Run,
  // but for one part of the columns.
  absl::Status RunPart(int part, const Weights& weights, const void* x, void* y,
                       int64_t rows, ProductContext* context) const;

  // Of packed weights, in memory.
  static int64_t SizeBytes(const Weights& weights);

 private:
  struct Calls;
  struct PackedColumns;
  struct Members;
  explicit ProductCode(std::unique_ptr<const Members> members);

  absl::Status RunCalls(const Calls& calls, const PackedColumns& weights,
                        const void* x, void* y, int64_t rows,
                        ProductContext* context) const;

  const std::unique_ptr<const Members> members_;
};

}  // namespace vitrine
