#include "model/attention_kernels.h"

#include <cmath>

#include "model/vector_code.h"

namespace vitrine {
namespace {

// Matrices have rows of whole vectors, zero behind their ends.
constexpr int64_t kVector = 16;
// One AVX-512 register, or as many narrower ones as it takes.
typedef float Vector __attribute__((vector_size(kVector * sizeof(float)),
                                    aligned(sizeof(float))));

VITRINE_INLINE int64_t RoundUp(int64_t size) {
  return (size + kVector - 1) / kVector * kVector;
}

// c (rows, columns) = a b, kRows rows and kColumns vectors of c at a time in
// registers. a[i, k] is at i * a_row + k * a_column, b has rows of `b_row`.
template <int kRows, int kColumns>
VITRINE_INLINE void MultiplyTile(int64_t inner, const float* a, int64_t a_row,
                                 int64_t a_column, const float* b,
                                 int64_t b_row, float* c, int64_t c_row) {
  Vector sums[kRows][kColumns] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vector factors[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      factors[j] =
          *reinterpret_cast<const Vector*>(b + k * b_row + j * kVector);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float factor = a[i * a_row + k * a_column];
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) sums[i][j] += factor * factors[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      *reinterpret_cast<Vector*>(c + i * c_row + j * kVector) = sums[i][j];
    }
  }
}

template <int kColumns>
VITRINE_INLINE void MultiplyStrip(int64_t rows, int64_t inner, const float* a,
                                  int64_t a_row, int64_t a_column,
                                  const float* b, int64_t b_row, float* c,
                                  int64_t c_row) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6) {
    MultiplyTile<6, kColumns>(inner, a + i * a_row, a_row, a_column, b, b_row,
                              c + i * c_row, c_row);
  }
  for (; i + 2 <= rows; i += 2) {
    MultiplyTile<2, kColumns>(inner, a + i * a_row, a_row, a_column, b, b_row,
                              c + i * c_row, c_row);
  }
  for (; i < rows; ++i) {
    MultiplyTile<1, kColumns>(inner, a + i * a_row, a_row, a_column, b, b_row,
                              c + i * c_row, c_row);
  }
}

// `columns` is a number of whole vectors.
VITRINE_INLINE void Multiply(int64_t rows, int64_t columns, int64_t inner,
                             const float* a, int64_t a_row, int64_t a_column,
                             const float* b, int64_t b_row, float* c,
                             int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * kVector <= columns; j += 2 * kVector) {
    MultiplyStrip<2>(rows, inner, a, a_row, a_column, b + j, b_row, c + j,
                     c_row);
  }
  if (j < columns) {
    MultiplyStrip<1>(rows, inner, a, a_row, a_column, b + j, b_row, c + j,
                     c_row);
  }
}

// (tokens, size) of a wider matrix, times `scale`, to rows of `width`.
template <typename T>
VITRINE_INLINE void Gather(const T* from, int64_t stride, int64_t tokens,
                           int64_t size, int64_t width, float scale,
                           std::vector<float>* to) {
  to->resize(tokens * width);
  float* row = to->data();
  for (int64_t t = 0; t < tokens; ++t, from += stride, row += width) {
    for (int64_t i = 0; i < size; ++i) row[i] = Load(from[i]) * scale;
    for (int64_t i = size; i < width; ++i) row[i] = 0;
  }
}

// (tokens, width) to (size, length).
VITRINE_INLINE void Transpose(const std::vector<float>& from, int64_t tokens,
                              int64_t size, int64_t width, int64_t length,
                              std::vector<float>* to) {
  to->resize(size * length);
  for (int64_t i = 0; i < size; ++i) {
    float* const row = to->data() + i * length;
    for (int64_t t = 0; t < tokens; ++t) row[t] = from[t * width + i];
    for (int64_t t = tokens; t < length; ++t) row[t] = 0;
  }
}

template <typename T>
VITRINE_INLINE void Scatter(const float* from, int64_t width, int64_t tokens,
                            int64_t size, float scale, int64_t stride, T* to) {
  for (int64_t t = 0; t < tokens; ++t, from += width, to += stride) {
    for (int64_t i = 0; i < size; ++i) Store(from[i] * scale, &to[i]);
  }
}

template <typename T>
VITRINE_INLINE void ForwardImpl(const AttentionShape& shape, const T* query,
                                const T* key, const T* value,
                                AttentionBuffers* s, T* context,
                                float* log_sums) {
  const int64_t tokens = shape.tokens, size = shape.size;
  const int64_t length = RoundUp(tokens), width = RoundUp(size);
  const int64_t stride = shape.qkv_stride;
  Gather(query, stride, tokens, size, width, shape.scale, &s->query);
  Gather(key, stride, tokens, size, width, 1.0f, &s->key);
  Gather(value, stride, tokens, size, width, 1.0f, &s->value);
  Transpose(s->key, tokens, size, width, length, &s->key_t);
  s->weights.resize(tokens * length);
  s->out.resize(tokens * width);
  float* const weights = s->weights.data();
  Multiply(tokens, length, size, s->query.data(), width, 1, s->key_t.data(),
           length, weights, length);
  for (int64_t t = 0; t < tokens; ++t) {
    float* const row = weights + t * length;
    float highest = row[0];
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < tokens; ++i) highest = std::max(highest, row[i]);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < tokens; ++i) {
      row[i] = Exp(row[i] - highest);
      sum += row[i];
    }
    const float scale = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < tokens; ++i) row[i] *= scale;
    log_sums[t] = highest + std::log(sum);
  }
  Multiply(tokens, width, tokens, weights, length, 1, s->value.data(), width,
           s->out.data(), width);
  Scatter(s->out.data(), width, tokens, size, 1.0f, shape.out_stride, context);
}

template <typename T>
VITRINE_INLINE void BackwardImpl(const AttentionShape& shape, const T* query,
                                 const T* key, const T* value,
                                 const float* log_sums, const T* by_context,
                                 AttentionBuffers* s, T* by_query, T* by_key,
                                 T* by_value) {
  const int64_t tokens = shape.tokens, size = shape.size;
  const int64_t length = RoundUp(tokens), width = RoundUp(size);
  const int64_t stride = shape.qkv_stride;
  Gather(query, stride, tokens, size, width, shape.scale, &s->query);
  Gather(key, stride, tokens, size, width, 1.0f, &s->key);
  Gather(value, stride, tokens, size, width, 1.0f, &s->value);
  Gather(by_context, shape.out_stride, tokens, size, width, 1.0f, &s->by_out);
  Transpose(s->key, tokens, size, width, length, &s->key_t);
  Transpose(s->value, tokens, size, width, length, &s->value_t);
  s->weights.resize(tokens * length);
  s->by_weights.resize(tokens * length);
  s->out.resize(tokens * width);
  float* const weights = s->weights.data();
  float* const by_weights = s->by_weights.data();
  float* const out = s->out.data();
  Multiply(tokens, length, size, s->query.data(), width, 1, s->key_t.data(),
           length, weights, length);
  Multiply(tokens, length, size, s->by_out.data(), width, 1, s->value_t.data(),
           length, by_weights, length);
  for (int64_t t = 0; t < tokens; ++t) {
    float* const row = weights + t * length;
    float* const by_row = by_weights + t * length;
    const float log_sum = log_sums[t];
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < tokens; ++i) {
      row[i] = Exp(row[i] - log_sum);
      dot += row[i] * by_row[i];
    }
    // By the scores from here on.
#pragma omp simd
    for (int64_t i = 0; i < tokens; ++i) by_row[i] = row[i] * (by_row[i] - dot);
  }
  Multiply(tokens, width, tokens, weights, 1, length, s->by_out.data(), width,
           out, width);
  Scatter(out, width, tokens, size, 1.0f, stride, by_value);
  Multiply(tokens, width, tokens, by_weights, length, 1, s->key.data(), width,
           out, width);
  Scatter(out, width, tokens, size, shape.scale, stride, by_query);
  Multiply(tokens, width, tokens, by_weights, 1, length, s->query.data(), width,
           out, width);
  Scatter(out, width, tokens, size, 1.0f, stride, by_key);
}

}  // namespace

VITRINE_MULTIVERSION
void AttendForward(const AttentionShape& shape, const float* query,
                   const float* key, const float* value,
                   AttentionBuffers* scratch, float* context, float* log_sums) {
  ForwardImpl(shape, query, key, value, scratch, context, log_sums);
}

VITRINE_MULTIVERSION
void AttendForward(const AttentionShape& shape, const Bf16* query,
                   const Bf16* key, const Bf16* value,
                   AttentionBuffers* scratch, Bf16* context, float* log_sums) {
  ForwardImpl(shape, query, key, value, scratch, context, log_sums);
}

VITRINE_MULTIVERSION
void AttendBackward(const AttentionShape& shape, const float* query,
                    const float* key, const float* value, const float* log_sums,
                    const float* by_context, AttentionBuffers* scratch,
                    float* by_query, float* by_key, float* by_value) {
  BackwardImpl(shape, query, key, value, log_sums, by_context, scratch,
               by_query, by_key, by_value);
}

VITRINE_MULTIVERSION
void AttendBackward(const AttentionShape& shape, const Bf16* query,
                    const Bf16* key, const Bf16* value, const float* log_sums,
                    const Bf16* by_context, AttentionBuffers* scratch,
                    Bf16* by_query, Bf16* by_key, Bf16* by_value) {
  BackwardImpl(shape, query, key, value, log_sums, by_context, scratch,
               by_query, by_key, by_value);
}

}  // namespace vitrine
