#include "model/cpu_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model/vector_code.h"

namespace vitrine {
namespace {

// x * Phi(x). Phi(x) - 0.5 is x times a polynomial in x^2 (a least-squares fit
// on [-5, 5] with the ends held, in Chebyshev's variable so that fp32 does not
// cancel); beyond 5, Phi is 0 or 1 within 3e-7.
VITRINE_INLINE float Gelu(float x) {
  const float c = std::min(std::max(x, -5.0f), 5.0f);
  const float u = c * c * 0.08f - 1.0f;
  float p = 5.482637789100409e-4f;
  p = p * u - 1.552674686536193e-3f;
  p = p * u + 1.865240279585123e-3f;
  p = p * u - 2.826042240485549e-3f;
  p = p * u + 6.289316806942225e-3f;
  p = p * u - 1.104806736111641e-2f;
  p = p * u + 1.644738391041756e-2f;
  p = p * u - 2.330985665321350e-2f;
  p = p * u + 3.143506124615669e-2f;
  p = p * u - 4.043679684400558e-2f;
  p = p * u + 5.152089148759842e-2f;
  p = p * u - 7.029650360345840e-2f;
  p = p * u + 1.413637846708298e-1f;
  return x * (0.5f + c * p);
}

// 0.5 x (1 + tanh(t)) is x sigmoid(2 t).
VITRINE_INLINE float GeluTanh(float x) {
  const float t = 1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + Exp(-t));
}

// `row` holds the values and gets LayerNorm of them.
VITRINE_INLINE void NormalizeRow(const float* weight, const float* bias,
                                 float epsilon, int64_t size, float sum,
                                 float* row, Bf16* copy) {
  const float mean = sum / size;
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < size; ++i) {
    squares += (row[i] - mean) * (row[i] - mean);
  }
  const float scale = 1.0f / std::sqrt(squares / size + epsilon);
  if (copy == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      row[i] = (row[i] - mean) * scale * weight[i] + bias[i];
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      row[i] = (row[i] - mean) * scale * weight[i] + bias[i];
      Store(row[i], &copy[i]);
    }
  }
}

template <typename T>
VITRINE_INLINE void AddAndNormalizeImpl(const T* y, const float* y_bias,
                                        const float* weight, const float* bias,
                                        float epsilon, int64_t rows,
                                        int64_t size, float* x, Bf16* copy) {
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) {
      x[i] += Load(y[i]) + y_bias[i];
      sum += x[i];
    }
    NormalizeRow(weight, bias, epsilon, size, sum, x, copy);
    x += size;
    y += size;
    if (copy != nullptr) copy += size;
  }
}

template <typename T>
VITRINE_INLINE void AddBiasAndActivateImpl(Activation activation,
                                           const float* bias, int64_t rows,
                                           int64_t size, T* x) {
  for (int64_t r = 0; r < rows; ++r, x += size) {
    switch (activation) {
      case Activation::kGelu:
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          Store(Gelu(Load(x[i]) + bias[i]), &x[i]);
        }
        break;
      case Activation::kGeluTanh:
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          Store(GeluTanh(Load(x[i]) + bias[i]), &x[i]);
        }
        break;
      case Activation::kRelu:
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
          Store(std::max(Load(x[i]) + bias[i], 0.0f), &x[i]);
        }
        break;
    }
  }
}

template <typename T>
VITRINE_INLINE void SplitHeadsImpl(const T* qkv, const float* bias, float scale,
                                   int64_t tokens, const HeadShape& shape,
                                   T* query, T* key, T* value) {
  const int64_t hidden = shape.heads * shape.size;
  for (int part = 0; part < 3; ++part) {
    T* const to = part == 0 ? query : part == 1 ? key : value;
    const float factor = part == 0 ? scale : 1.0f;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t column = part * hidden + h * shape.size;
      T* out = to + h * shape.length * shape.size;
      for (int64_t t = 0; t < tokens; ++t, out += shape.size) {
        const T* in = qkv + t * 3 * hidden + column;
#pragma omp simd
        for (int64_t i = 0; i < shape.size; ++i) {
          Store((Load(in[i]) + bias[column + i]) * factor, &out[i]);
        }
      }
      // Zeros and not what was in memory: 0 * NaN would reach real tokens.
      memset(static_cast<void*>(out), 0,
             (shape.length - tokens) * shape.size * sizeof(T));
    }
  }
}

template <typename T>
VITRINE_INLINE void MergeHeadsImpl(const T* context, int64_t tokens,
                                   const HeadShape& shape, T* out) {
  for (int64_t h = 0; h < shape.heads; ++h) {
    const T* in = context + h * shape.length * shape.size;
    for (int64_t t = 0; t < tokens; ++t) {
      memcpy(static_cast<void*>(out + (t * shape.heads + h) * shape.size),
             in + t * shape.size, shape.size * sizeof(T));
    }
  }
}

// 16 floats for GCC's vector arithmetic: rows of attention are short, and what
// the loops above leave to scalar remainders and reductions would take most of
// the time.
constexpr int64_t kLanes = 16;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

template <typename T>
VITRINE_INLINE void SoftmaxRowsImpl(int64_t rows, int64_t length,
                                    int64_t tokens, T* x) {
  const int64_t vectors = (tokens + kLanes - 1) / kLanes;
  // Behind the tokens stays minus infinity, or what Exp makes of it: 1e-38.
  std::vector<float> buffer(vectors * kLanes);
  float* const row = buffer.data();
  for (int64_t r = 0; r < rows; ++r, x += length) {
    for (int64_t i = tokens; i < vectors * kLanes; ++i) row[i] = -INFINITY;
#pragma omp simd
    for (int64_t i = 0; i < tokens; ++i) row[i] = Load(x[i]);

    Lanes lanes;
    memcpy(&lanes, row, sizeof(lanes));
    for (int64_t v = 1; v < vectors; ++v) {
      Lanes next;
      memcpy(&next, row + v * kLanes, sizeof(next));
      lanes = lanes > next ? lanes : next;
    }
    float most = lanes[0];
    for (int i = 1; i < kLanes; ++i) most = std::max(most, lanes[i]);

    lanes = Lanes{};
    for (int64_t v = 0; v < vectors; ++v) {
      float* const at = row + v * kLanes;
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) at[i] = Exp(at[i] - most);
      Lanes next;
      memcpy(&next, at, sizeof(next));
      lanes += next;
    }
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    const float scale = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < tokens; ++i) Store(row[i] * scale, &x[i]);
    memset(static_cast<void*>(x + tokens), 0, (length - tokens) * sizeof(T));
  }
}

}  // namespace

VITRINE_MULTIVERSION
void EmbedAndNormalize(const EmbeddingRows& rows, const float* weight,
                       const float* bias, float epsilon, int64_t size,
                       float* out, Bf16* copy) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    out[i] = rows.word[i] + rows.position[i] + rows.segment[i];
    sum += out[i];
  }
  NormalizeRow(weight, bias, epsilon, size, sum, out, copy);
}

VITRINE_MULTIVERSION
void AddAndNormalize(const float* y, const float* y_bias, const float* weight,
                     const float* bias, float epsilon, int64_t rows,
                     int64_t size, float* x, Bf16* copy) {
  AddAndNormalizeImpl(y, y_bias, weight, bias, epsilon, rows, size, x, copy);
}

VITRINE_MULTIVERSION
void AddAndNormalize(const Bf16* y, const float* y_bias, const float* weight,
                     const float* bias, float epsilon, int64_t rows,
                     int64_t size, float* x, Bf16* copy) {
  AddAndNormalizeImpl(y, y_bias, weight, bias, epsilon, rows, size, x, copy);
}

VITRINE_MULTIVERSION
void AddBiasAndActivate(Activation activation, const float* bias, int64_t rows,
                        int64_t size, float* x) {
  AddBiasAndActivateImpl(activation, bias, rows, size, x);
}

VITRINE_MULTIVERSION
void AddBiasAndActivate(Activation activation, const float* bias, int64_t rows,
                        int64_t size, Bf16* x) {
  AddBiasAndActivateImpl(activation, bias, rows, size, x);
}

VITRINE_MULTIVERSION
void SplitHeads(const float* qkv, const float* bias, float scale,
                int64_t tokens, const HeadShape& shape, float* query,
                float* key, float* value) {
  SplitHeadsImpl(qkv, bias, scale, tokens, shape, query, key, value);
}

VITRINE_MULTIVERSION
void SplitHeads(const Bf16* qkv, const float* bias, float scale, int64_t tokens,
                const HeadShape& shape, Bf16* query, Bf16* key, Bf16* value) {
  SplitHeadsImpl(qkv, bias, scale, tokens, shape, query, key, value);
}

void MergeHeads(const float* context, int64_t tokens, const HeadShape& shape,
                float* out) {
  MergeHeadsImpl(context, tokens, shape, out);
}

void MergeHeads(const Bf16* context, int64_t tokens, const HeadShape& shape,
                Bf16* out) {
  MergeHeadsImpl(context, tokens, shape, out);
}

VITRINE_MULTIVERSION
void SoftmaxRows(int64_t rows, int64_t length, int64_t tokens, float* x) {
  SoftmaxRowsImpl(rows, length, tokens, x);
}

VITRINE_MULTIVERSION
void SoftmaxRows(int64_t rows, int64_t length, int64_t tokens, Bf16* x) {
  SoftmaxRowsImpl(rows, length, tokens, x);
}

}  // namespace vitrine
