#pragma once

// Attention of one head over one sequence, forward and backward, for training
// on a CPU. LibTorch's way (gather, pad, batched products, softmax) costs
// several times the arithmetic, and oneDNN makes code for each of the shapes
// that packed batches have without end. Arithmetic is fp32; T, the type in
// memory, is float or Bf16. Free of LibTorch; any thread.

#include <cstdint>
#include <vector>

#include "model/cpu_kernels.h"

namespace vitrine {

// Where a head of a sequence lies in matrices of a row per token.
struct AttentionShape {
  int64_t tokens;
  int64_t size;        // of the head
  int64_t qkv_stride;  // from row to row of query, key and value
  int64_t out_stride;  // of the context
  float scale;         // of the query
};

// Room to work in, kept from head to head.
struct AttentionBuffers {
  std::vector<float> query, key, key_t, value, value_t, weights, by_weights,
      out, by_out;
};

// context = softmax(scale * query key^T) value. log_sums[t] gets the log of
// the sum of row t's exponentials, which the backward pass needs.
void AttendForward(const AttentionShape& shape, const float* query,
                   const float* key, const float* value,
                   AttentionBuffers* scratch, float* context, float* log_sums);
void AttendForward(const AttentionShape& shape, const Bf16* query,
                   const Bf16* key, const Bf16* value,
                   AttentionBuffers* scratch, Bf16* context, float* log_sums);

// The gradients by query, key and value from that by the context.
void AttendBackward(const AttentionShape& shape, const float* query,
                    const float* key, const float* value, const float* log_sums,
                    const float* by_context, AttentionBuffers* scratch,
                    float* by_query, float* by_key, float* by_value);
void AttendBackward(const AttentionShape& shape, const Bf16* query,
                    const Bf16* key, const Bf16* value, const float* log_sums,
                    const Bf16* by_context, AttentionBuffers* scratch,
                    Bf16* by_query, Bf16* by_key, Bf16* by_value);

}  // namespace vitrine
