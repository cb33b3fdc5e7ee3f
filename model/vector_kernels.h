#pragma once

// What the CPU engine computes between its matrix products, in vector code for
// four generations of processor. Arithmetic is fp32; rows in memory are fp32,
// bf16 or int8. Free of LibTorch and oneDNN; any thread.
//
// Rows are `width` elements, a multiple of kRowAlignment; what is beyond the
// real size is zero and stays zero, so that no kernel has a tail.

#include <bit>
#include <cstdint>

namespace vitrine {

inline constexpr int64_t kRowAlignment = 32;

struct Bf16 {
  uint16_t bits;
};

// To nearest, ties to even.
inline Bf16 ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

enum class Activation { kGelu, kGeluTanh, kRelu };

enum class CpuIsa {
  kPlain,
  kAvx2,        // with FMA
  kAvx512,      // F, BW, DQ, VL
  kAvx512Bf16,  // and dot products of bf16
};

enum class Element : uint8_t { kF32, kBf16, kU8, kS32 };

// Rows that a product reads: kF32, kBf16, or kU8, where an element stands for
// (u8 - zero) * scales[row].
struct ProductInput {
  Element type = Element::kF32;
  void* data = nullptr;  // (rows, width)
  float* scales = nullptr;
  // kU8: 128 for steps of -127 to 127, 64 for -63 to 63.
  int zero = 128;
  // kU8: larger magnitudes are cut to it; 0: none is.
  float bound = 0;
};

// Rows that a product wrote: kF32, kBf16, or kS32, where an element stands for
// (s32 - corrections[column]) * row_scales[row] * column_scales[column].
struct ProductOutput {
  Element type = Element::kF32;
  const void* data = nullptr;   // (rows, width)
  const float* bias = nullptr;  // (width), still to be added; null: none
  const float* row_scales = nullptr;
  const float* column_scales = nullptr;
  const int32_t* corrections = nullptr;
};

struct Norm {
  const float* weight = nullptr;  // (width)
  const float* bias = nullptr;    // (width)
  float epsilon = 0;
  int64_t size = 0;  // of a row, really
  int64_t width = 0;
};

struct EmbeddingTables {
  Element type = Element::kF32;      // of `words`: kF32 or kBf16
  const void* words = nullptr;       // (vocabulary, width)
  const float* positions = nullptr;  // (positions, width)
  const float* segments = nullptr;   // (segments, width)
};

// One token of a sequence.
struct TokenIds {
  int32_t word = 0, position = 0, segment = 0;
};

// One sequence's attention, by head, for some of its queries. A row of `qkv`
// has the queries of all heads, then the keys, then the values, each `heads *
// head_width`; scores are 2 to the power of their products, so queries come
// multiplied by log2(e) / sqrt(size of a head).
struct AttentionTask {
  Element type = Element::kF32;  // kF32 or kBf16, of qkv and context
  const void* qkv = nullptr;     // (length, 3 * heads * head_width)
  int64_t length = 0;
  int64_t first_query = 0;
  int64_t queries = 0;
  int64_t heads = 0;
  int64_t head_width = 0;    // a multiple of kRowAlignment
  void* context = nullptr;   // (queries, heads * head_width)
  float* scratch = nullptr;  // AttentionScratch() floats
};

// In floats, for sequences of up to `length` tokens.
int64_t AttentionScratch(int64_t length, int64_t head_width);

struct VectorKernels {
  // x = LayerNorm(word + position + segment), and `next` of it.
  void (*embed)(const EmbeddingTables& tables, const TokenIds* tokens,
                int64_t rows, const Norm& norm, float* x,
                const ProductInput& next);
  // x = LayerNorm(x + y), and `next` of it.
  void (*add_and_normalize)(const ProductOutput& y, int64_t rows,
                            const Norm& norm, float* x,
                            const ProductInput& next);
  // next = activation(y). GELU is within 2e-6 of the exact one where `next` is
  // fp32, within 3e-4 otherwise. `row` is scratch, (width).
  void (*activate)(Activation activation, const ProductOutput& y, int64_t rows,
                   int64_t width, float* row, const ProductInput& next);
  // next = y. `row` is scratch, (width).
  void (*convert)(const ProductOutput& y, int64_t rows, int64_t width,
                  float* row, const ProductInput& next);
  void (*attend)(const AttentionTask& task);
  // x = tanh(x), within 1e-6; n is a multiple of kRowAlignment.
  void (*tanh)(int64_t n, float* x);
};

// `isa` must be one that the processor has; kPlain always is.
const VectorKernels& VectorKernelsFor(CpuIsa isa);

// The best that this processor has, by its own word.
CpuIsa BestCpuIsa();

}  // namespace vitrine
