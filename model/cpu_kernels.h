#pragma once

// The parts of the encoder between its matrix products, for LibTorch on a CPU:
// fused passes over memory, in place of the chains of LibTorch calls that cost
// more than the products themselves once those run in bf16 on AMX.
//
// Plain loops that the compiler turns into AVX-512 or AVX2, chosen at start by
// what the processor has. Arithmetic is fp32; T, the type in memory, is float
// or Bf16. Free of LibTorch; any thread.

#include <cstdint>

#include "model/vector_kernels.h"

namespace vitrine {

// One token's three rows of the embedding tables.
struct EmbeddingRows {
  const float* word;
  const float* position;
  const float* segment;
};

// out = LayerNorm(word + position + segment), `size` wide. `copy`, where not
// null, gets the same rounded to bf16: what the next product reads.
void EmbedAndNormalize(const EmbeddingRows& rows, const float* weight,
                       const float* bias, float epsilon, int64_t size,
                       float* out, Bf16* copy);

// x = LayerNorm(x + y + y_bias) for each of `rows` rows of `size`; `copy` as
// above, (rows, size).
void AddAndNormalize(const float* y, const float* y_bias, const float* weight,
                     const float* bias, float epsilon, int64_t rows,
                     int64_t size, float* x, Bf16* copy);
void AddAndNormalize(const Bf16* y, const float* y_bias, const float* weight,
                     const float* bias, float epsilon, int64_t rows,
                     int64_t size, float* x, Bf16* copy);

// x = activation(x + bias), (rows, size). GELU is within 2e-6 of the exact one.
void AddBiasAndActivate(Activation activation, const float* bias, int64_t rows,
                        int64_t size, float* x);
void AddBiasAndActivate(Activation activation, const float* bias, int64_t rows,
                        int64_t size, Bf16* x);

struct HeadShape {
  int64_t heads;
  int64_t size;    // of one head
  int64_t length;  // rows of one head, padded
};

// One sequence's rows of the query-key-value product, (tokens, 3 * hidden), to
// query, key and value by head, each (heads, length, size); the query is
// multiplied by `scale`, rows from `tokens` on are zero.
void SplitHeads(const float* qkv, const float* bias, float scale,
                int64_t tokens, const HeadShape& shape, float* query,
                float* key, float* value);
void SplitHeads(const Bf16* qkv, const float* bias, float scale, int64_t tokens,
                const HeadShape& shape, Bf16* query, Bf16* key, Bf16* value);

// The way back: (heads, length, size) to (tokens, hidden).
void MergeHeads(const float* context, int64_t tokens, const HeadShape& shape,
                float* out);
void MergeHeads(const Bf16* context, int64_t tokens, const HeadShape& shape,
                Bf16* out);

// Softmax over the first `tokens` of each row's `length`, 0 behind them.
void SoftmaxRows(int64_t rows, int64_t length, int64_t tokens, float* x);
void SoftmaxRows(int64_t rows, int64_t length, int64_t tokens, Bf16* x);

}  // namespace vitrine
