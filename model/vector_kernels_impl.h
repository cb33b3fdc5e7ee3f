// The kernels of vector_kernels.h, for the vector width and the instructions
// that the including file is compiled for. To be included once by each of
// vector_kernels_*.cc, which names its table VITRINE_KERNELS and the floats of
// a vector VITRINE_LANES.
//
// All is in an unnamed namespace and nothing of the standard library is used
// but memcpy: an inline function compiled here, for AVX-512 say, might
// otherwise be the one that the linker keeps for everybody.

#include <stdint.h>
#include <string.h>

#include "model/vector_kernels.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define VITRINE_INLINE inline __attribute__((always_inline))

namespace vitrine {
namespace {

constexpr int64_t kLanes = VITRINE_LANES;
// A tile of attention: as many sums as there are registers for.
constexpr int kTileVectors = 2;
constexpr int kTileRows = kLanes == 16 ? 8 : 4;

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
// As they lie in memory.
typedef float F32InMemory
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t I32InMemory
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t U32InMemory
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef uint16_t U16InMemory
    __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef uint8_t U8 __attribute__((vector_size(kLanes)));
typedef uint8_t U8InMemory
    __attribute__((vector_size(kLanes), aligned(1), may_alias));

VITRINE_INLINE F32 All(float x) { return x - F32{}; }

VITRINE_INLINE F32 Load(const float* at) {
  return *reinterpret_cast<const F32InMemory*>(at);
}
VITRINE_INLINE F32 Load(const Bf16* at) {
  const U16 bits = *reinterpret_cast<const U16InMemory*>(at);
  return (F32)(__builtin_convertvector(bits, U32) << 16);
}
VITRINE_INLINE F32 Load(const int32_t* at) {
  const I32 x = *reinterpret_cast<const I32InMemory*>(at);
  return __builtin_convertvector(x, F32);
}

VITRINE_INLINE void Store(F32 x, float* at) {
  *reinterpret_cast<F32InMemory*>(at) = x;
}
// To nearest, ties to even.
VITRINE_INLINE void Store(F32 x, Bf16* at) {
#if defined(__AVX512BF16__)
  const __m256bh bits = _mm512_cvtneps_pbh((__m512)x);
  memcpy(static_cast<void*>(at), &bits, sizeof(bits));
#else
  const U32 bits = (U32)x;
  *reinterpret_cast<U16InMemory*>(at) =
      __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, U16);
#endif
}

#if defined(__AVX512F__)
VITRINE_INLINE F32 Min(F32 a, F32 b) {
  return (F32)_mm512_min_ps((__m512)a, (__m512)b);
}
VITRINE_INLINE F32 Max(F32 a, F32 b) {
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
}
#else
VITRINE_INLINE F32 Min(F32 a, F32 b) { return a < b ? a : b; }
VITRINE_INLINE F32 Max(F32 a, F32 b) { return a > b ? a : b; }
#endif

// The lanes of x in another order: lane i from i ^ distance.
VITRINE_INLINE F32 Swap(F32 x, int64_t distance) {
  I32 from;
  for (int64_t i = 0; i < kLanes; ++i) from[i] = static_cast<int>(i ^ distance);
  return __builtin_shuffle(x, from);
}
VITRINE_INLINE float Sum(F32 x) {
  if constexpr (kLanes > 8) x += Swap(x, 8);
  if constexpr (kLanes > 4) x += Swap(x, 4);
  x += Swap(x, 2);
  x += Swap(x, 1);
  return x[0];
}
VITRINE_INLINE float Largest(F32 x) {
  if constexpr (kLanes > 8) x = Max(x, Swap(x, 8));
  if constexpr (kLanes > 4) x = Max(x, Swap(x, 4));
  x = Max(x, Swap(x, 2));
  x = Max(x, Swap(x, 1));
  return x[0];
}

// Lane numbers from `first` on.
VITRINE_INLINE I32 Lanes(int64_t first) {
  I32 lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<int32_t>(first) + i;
  return lanes;
}

VITRINE_INLINE F32 Polynomial(F32) { return F32{}; }
// c0 + x (c1 + x (…)).
template <typename... Rest>
VITRINE_INLINE F32 Polynomial(F32 x, float c0, Rest... rest) {
  if constexpr (sizeof...(rest) == 0) {
    return All(c0);
  } else {
    return c0 + x * Polynomial(x, rest...);
  }
}

// 2^x for x <= 126, within 2e-7 relatively, or 8e-5 where bf16 is made of it;
// below -126 it is 2^-126. Minimax on [-0.5, 0.5].
template <bool exact = true>
VITRINE_INLINE F32 Exp2(F32 x) {
  x = Max(x, All(-126.0f));
  // Adding 1.5 * 2^23 rounds to a whole number without a call.
  const F32 shifted = x + 12582912.0f;
  const F32 part = x - (shifted - 12582912.0f);
  F32 p;
  if constexpr (exact) {
    p = Polynomial(part, 1.0000000716723196f, 0.6931469669857393f,
                   0.24022119630077132f, 0.05550713373792083f,
                   0.00967554665645684f, 0.0013276450154910205f);
  } else {
    p = Polynomial(part, 0.9999280895009395f, 0.6932610352993052f,
                   0.2426108947335589f, 0.05517115382760637f);
  }
  return (F32)((U32)p + ((U32)shifted << 23));
}

// x Phi(x). Phi(x) - 0.5 is x times a polynomial in x^2 (a least-squares fit on
// [-5, 5] with the ends held, in Chebyshev's variable so that fp32 does not
// cancel); beyond 5, Phi is 0 or 1 within 3e-7. Within 2e-6.
VITRINE_INLINE F32 Gelu(F32 x) {
  const F32 c = Min(Max(x, All(-5.0f)), All(5.0f));
  const F32 p = Polynomial(
      c * c * 0.08f - 1.0f, 1.413637846708298e-1f, -7.029650360345840e-2f,
      5.152089148759842e-2f, -4.043679684400558e-2f, 3.143506124615669e-2f,
      -2.330985665321350e-2f, 1.644738391041756e-2f, -1.104806736111641e-2f,
      6.289316806942225e-3f, -2.826042240485549e-3f, 1.865240279585123e-3f,
      -1.552674686536193e-3f, 5.482637789100409e-4f);
  return x * (0.5f + c * p);
}

// The same on [-4, 4] with fewer terms: within 1.3e-4.
VITRINE_INLINE F32 FastGelu(F32 x) {
  const F32 c = Min(Max(x, All(-4.0f)), All(4.0f));
  const F32 p = Polynomial(
      c * c * 0.125f - 1.0f, 0.17596109165293855f, -0.08441122522155228f,
      0.055673814198102634f, -0.03578220214954365f, 0.02306446824905762f,
      -0.01539898865533084f, 0.00691041756914643f, -0.0010173756428184457f);
  return x * (0.5f + c * p);
}

constexpr float kLog2E = 1.44269504f;

// 0.5 x (1 + tanh(t)) is x sigmoid(2 t).
VITRINE_INLINE F32 GeluTanh(F32 x) {
  const F32 t = (1.5957691216f * kLog2E) * (x + 0.044715f * x * x * x);
  return x / (1.0f + Exp2(Min(-t, All(126.0f))));
}

// Calls each(column, values) for all vectors of a row.
template <typename Each>
VITRINE_INLINE void ForRow(const ProductOutput& y, int64_t row, int64_t width,
                           Each each) {
  const int64_t begin = row * width;
  const auto walk = [&](auto load) __attribute__((always_inline)) {
    if (y.bias == nullptr) {
      for (int64_t i = 0; i < width; i += kLanes) each(i, load(i));
    } else {
      for (int64_t i = 0; i < width; i += kLanes) {
        each(i, load(i) + Load(y.bias + i));
      }
    }
  };
  switch (y.type) {
    case Element::kBf16: {
      const Bf16* const in = static_cast<const Bf16*>(y.data) + begin;
      walk([in](int64_t i)
               __attribute__((always_inline)) { return Load(in + i); });
      break;
    }
    case Element::kS32: {
      const int32_t* const in = static_cast<const int32_t*>(y.data) + begin;
      const F32 scale = All(y.row_scales[row]);
      walk([&y, in, scale ](int64_t i) __attribute__((always_inline)) {
        const I32 exact =
            *reinterpret_cast<const I32InMemory*>(in + i) -
            *reinterpret_cast<const I32InMemory*>(y.corrections + i);
        return __builtin_convertvector(exact, F32) * scale *
               Load(y.column_scales + i);
      });
      break;
    }
    default: {
      const float* const in = static_cast<const float*>(y.data) + begin;
      walk([in](int64_t i)
               __attribute__((always_inline)) { return Load(in + i); });
    }
  }
}

VITRINE_INLINE F32 Magnitude(F32 x) { return Max(x, -x); }

// Row `row` of what a product reads, of the values in `in`; `most` are their
// largest magnitudes by lane, which kU8 alone looks at.
VITRINE_INLINE void StoreRow(const float* in, F32 most, int64_t row,
                             int64_t width, const ProductInput& next) {
  const int64_t begin = row * width;
  switch (next.type) {
    case Element::kBf16: {
      Bf16* const out = static_cast<Bf16*>(next.data) + begin;
      for (int64_t i = 0; i < width; i += kLanes) Store(Load(in + i), out + i);
      break;
    }
    case Element::kU8: {
      float bound = Largest(most);
      if (next.bound > 0 && bound > next.bound) bound = next.bound;
      const float steps = static_cast<float>(next.zero - 1);
      const float inverse = bound > 1e-30f ? steps / bound : 0.0f;
      next.scales[row] = bound / steps;
      // The conversion cuts off, so 0.5 more: to nearest.
      const F32 zero = All(static_cast<float>(next.zero) + 0.5f);
      const F32 least = All(1.0f);
      const F32 largest = All(2.0f * static_cast<float>(next.zero) - 0.5f);
      uint8_t* const out = static_cast<uint8_t*>(next.data) + begin;
      for (int64_t i = 0; i < width; i += kLanes) {
        const F32 x = Min(Max(Load(in + i) * inverse + zero, least), largest);
        const I32 q = __builtin_convertvector(x, I32);
        *reinterpret_cast<U8InMemory*>(out + i) =
            __builtin_convertvector(q, U8);
      }
      break;
    }
    default: {
      float* const out = static_cast<float*>(next.data) + begin;
      if (in == out) break;
      for (int64_t i = 0; i < width; i += kLanes) Store(Load(in + i), out + i);
    }
  }
}

// Row `row`, which holds the values and gets LayerNorm of them, and `next` of
// it. `sums` by lane.
VITRINE_INLINE void NormalizeRow(const Norm& norm, F32 sums, int64_t row,
                                 float* x, const ProductInput& next) {
  const float mean = Sum(sums) / static_cast<float>(norm.size);
  const F32 means = All(mean);
  F32 squares = F32{};
  int64_t i = 0;
  for (; i + kLanes <= norm.size; i += kLanes) {
    const F32 d = Load(x + i) - means;
    squares += d * d;
  }
  if (i < norm.size) {
    const F32 d = Load(x + i) - means;
    squares += Lanes(i) < static_cast<int32_t>(norm.size) ? d * d : F32{};
  }
  const float variance = Sum(squares) / static_cast<float>(norm.size);
  const F32 scale = All(1.0f / __builtin_sqrtf(variance + norm.epsilon));
  F32 most = F32{};
  for (i = 0; i < norm.width; i += kLanes) {
    const F32 y = (Load(x + i) - means) * scale * Load(norm.weight + i) +
                  Load(norm.bias + i);
    most = Max(most, Magnitude(y));
    Store(y, x + i);
  }
  StoreRow(x, most, row, norm.width, next);
}

template <typename T>
VITRINE_INLINE F32 AddEmbeddings(const T* word, const float* position,
                                 const float* segment, int64_t width,
                                 float* out) {
  F32 sums = F32{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const F32 x = Load(word + i) + Load(position + i) + Load(segment + i);
    sums += x;
    Store(x, out + i);
  }
  return sums;
}

void Embed(const EmbeddingTables& tables, const TokenIds* tokens, int64_t rows,
           const Norm& norm, float* x, const ProductInput& next) {
  const int64_t width = norm.width;
  for (int64_t r = 0; r < rows; ++r) {
    float* const row = x + r * width;
    const int64_t word = tokens[r].word * width;
    const float* const position = tables.positions + tokens[r].position * width;
    const float* const segment = tables.segments + tokens[r].segment * width;
    const F32 sums =
        tables.type == Element::kBf16
            ? AddEmbeddings(static_cast<const Bf16*>(tables.words) + word,
                            position, segment, width, row)
            : AddEmbeddings(static_cast<const float*>(tables.words) + word,
                            position, segment, width, row);
    NormalizeRow(norm, sums, r, row, next);
  }
}

void AddAndNormalize(const ProductOutput& y, int64_t rows, const Norm& norm,
                     float* x, const ProductInput& next) {
  for (int64_t r = 0; r < rows; ++r) {
    float* const row = x + r * norm.width;
    F32 sums = F32{};
    ForRow(
        y, r,
        norm.width, [&](int64_t i, F32 value) __attribute__((always_inline)) {
          const F32 sum = Load(row + i) + value;
          sums += sum;
          Store(sum, row + i);
        });
    NormalizeRow(norm, sums, r, row, next);
  }
}

// next = f(y), by way of `row` where a whole row must be known first.
template <typename F>
VITRINE_INLINE void Map(const ProductOutput& y, int64_t rows, int64_t width,
                        float* row, const ProductInput& next, F f) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto store_at = [&](auto* out) __attribute__((always_inline)) {
      ForRow(
          y, r, width, [&](int64_t i, F32 x) __attribute__((always_inline)) {
            Store(f(x), out + i);
          });
    };
    switch (next.type) {
      case Element::kBf16:
        store_at(static_cast<Bf16*>(next.data) + r * width);
        break;
      case Element::kU8: {
        F32 most = F32{};
        ForRow(
            y, r, width, [&](int64_t i, F32 x) __attribute__((always_inline)) {
              const F32 value = f(x);
              most = Max(most, Magnitude(value));
              Store(value, row + i);
            });
        StoreRow(row, most, r, width, next);
        break;
      }
      default:
        store_at(static_cast<float*>(next.data) + r * width);
    }
  }
}

void Activate(Activation activation, const ProductOutput& y, int64_t rows,
              int64_t width, float* row, const ProductInput& next) {
  switch (activation) {
    case Activation::kGelu:
      if (next.type == Element::kF32) {
        Map(
            y, rows, width, row, next,
            [](F32 x) __attribute__((always_inline)) { return Gelu(x); });
      } else {
        Map(
            y, rows, width, row, next,
            [](F32 x) __attribute__((always_inline)) { return FastGelu(x); });
      }
      break;
    case Activation::kGeluTanh:
      Map(
          y, rows, width, row, next,
          [](F32 x) __attribute__((always_inline)) { return GeluTanh(x); });
      break;
    case Activation::kRelu:
      Map(
          y, rows, width, row, next,
          [](F32 x) __attribute__((always_inline)) { return Max(x, F32{}); });
      break;
  }
}

void Convert(const ProductOutput& y, int64_t rows, int64_t width, float* row,
             const ProductInput& next) {
  Map(
      y, rows, width, row, next,
      [](F32 x) __attribute__((always_inline)) { return x; });
}

// tanh(x) = 1 - 2 / (e^2x + 1).
void Tanh(int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 power = Exp2(Min(Load(x + i) * (2 * kLog2E), All(126.0f)));
    Store(1.0f - 2.0f / (power + 1.0f), x + i);
  }
}

// Attention multiplies words of 32 bits: one float, or a pair of bf16.
template <Element type>
struct Words;

template <>
struct Words<Element::kF32> {
  typedef float T;
  static constexpr int64_t kPer = 1;  // elements in a word
  static VITRINE_INLINE F32 Dot(F32 sum, U32 a, U32 b) {
    return sum + (F32)a * (F32)b;
  }
};

template <>
struct Words<Element::kBf16> {
  typedef Bf16 T;
  static constexpr int64_t kPer = 2;
  static VITRINE_INLINE F32 Dot(F32 sum, U32 a, U32 b) {
#if defined(__AVX512BF16__)
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (F32)(a << 16) * (F32)(b << 16);
    return sum + (F32)(a & 0xffff0000) * (F32)(b & 0xffff0000);
#endif
  }
};

VITRINE_INLINE U32 LoadWords(const uint32_t* at) {
  return *reinterpret_cast<const U32InMemory*>(at);
}
VITRINE_INLINE void StoreWords(U32 x, uint32_t* at) {
  *reinterpret_cast<U32InMemory*>(at) = x;
}

// sums (rows, vectors) = a (rows, words) times b (words, vectors); strides in
// words.
template <Element type, int rows, int vectors>
VITRINE_INLINE void Tile(const uint32_t* a, int64_t a_stride, const uint32_t* b,
                         int64_t b_stride, int64_t words,
                         F32 (&sums)[rows][vectors]) {
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) sums[r][v] = F32{};
  }
  for (int64_t w = 0; w < words; ++w) {
    U32 column[vectors];
    for (int v = 0; v < vectors; ++v) {
      column[v] = LoadWords(b + w * b_stride + v * kLanes);
    }
    for (int r = 0; r < rows; ++r) {
      const U32 factor = a[r * a_stride + w] - U32{};
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] = Words<type>::Dot(sums[r][v], factor, column[v]);
      }
    }
  }
}

// block[i][j] becomes block[j][i]: pairs of rows change halves of ever larger
// size.
VITRINE_INLINE void Transpose(U32 (&block)[kLanes]) {
  for (int64_t half = 1; half < kLanes; half *= 2) {
    U32 low, high;  // of two rows: where each lane of the new ones comes from
    for (int64_t i = 0; i < kLanes; ++i) {
      low[i] = static_cast<uint32_t>((i & half) == 0 ? i : kLanes + i - half);
      high[i] = static_cast<uint32_t>((i & half) == 0 ? i + half : kLanes + i);
    }
    for (int64_t i = 0; i < kLanes; ++i) {
      if ((i & half) != 0) continue;
      const U32 a = block[i], b = block[i + half];
      block[i] = __builtin_shuffle(a, b, low);
      block[i + half] = __builtin_shuffle(a, b, high);
    }
  }
}

VITRINE_INLINE int64_t RoundUpTo(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// out (words, padded) = the transposed rows (length, words) of one head;
// columns from `length` on are zero.
VITRINE_INLINE void PackKeys(const uint32_t* rows, int64_t stride,
                             int64_t length, int64_t words, int64_t padded,
                             uint32_t* out) {
  for (int64_t j = 0; j < padded; j += kLanes) {
    for (int64_t w = 0; w < words; w += kLanes) {
      U32 block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        block[i] =
            j + i < length ? LoadWords(rows + (j + i) * stride + w) : U32{};
      }
      Transpose(block);
      for (int64_t i = 0; i < kLanes; ++i) {
        StoreWords(block[i], out + (w + i) * padded + j);
      }
    }
  }
}

// out (pairs of rows, width): rows 2 j and 2 j + 1 of bf16 side by side; a row
// beyond the last is zero.
VITRINE_INLINE void PackValues(const Bf16* rows, int64_t stride, int64_t length,
                               int64_t width, uint32_t* out) {
  for (int64_t j = 0; j < length; j += 2, out += width) {
    const Bf16* const low = rows + j * stride;
    const Bf16* const high = low + stride;
    for (int64_t i = 0; i < width; i += kLanes) {
      U32 pair = __builtin_convertvector(
          *reinterpret_cast<const U16InMemory*>(low + i), U32);
      if (j + 1 < length) {
        pair |= __builtin_convertvector(
                    *reinterpret_cast<const U16InMemory*>(high + i), U32)
                << 16;
      }
      StoreWords(pair, out + i);
    }
  }
}

// out (rows, columns) = a times b, columns in whole vectors: scores of queries
// and keys, or context of weights and values, each row times factors[row].
template <Element type, int rows, typename Out>
VITRINE_INLINE void Multiply(const uint32_t* a, int64_t a_stride,
                             const uint32_t* b, int64_t b_stride, int64_t words,
                             int64_t columns, const float* factors, Out* out,
                             int64_t out_stride) {
  int64_t c = 0;
  const auto tile = [&](auto width) __attribute__((always_inline)) {
    constexpr int vectors = decltype(width)::kVectors;
    for (; c + vectors * kLanes <= columns; c += vectors * kLanes) {
      F32 sums[rows][vectors];
      Tile<type, rows, vectors>(a, a_stride, b + c, b_stride, words, sums);
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          const F32 sum =
              factors == nullptr ? sums[r][v] : sums[r][v] * All(factors[r]);
          Store(sum, out + r * out_stride + c + v * kLanes);
        }
      }
    }
  };
  struct Two {
    enum { kVectors = kTileVectors };
  };
  struct One {
    enum { kVectors = 1 };
  };
  tile(Two());
  tile(One());
}

// A row of scores to weights that are still to be divided by their sum, which
// is returned. Keys from `length` on get none.
template <typename T>
VITRINE_INLINE float Softmax(int64_t length, int64_t padded, float* scores,
                             T* weights) {
  const int64_t last = padded - kLanes;
  const F32 beyond = All(-__builtin_inff());
  Store(
      Lanes(last) < static_cast<int32_t>(length) ? Load(scores + last) : beyond,
      scores + last);
  F32 most = Load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) {
    most = Max(most, Load(scores + i));
  }
  most = All(Largest(most));
  F32 sums = F32{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    // Minus infinity becomes 2^-126, and nothing beside the largest's 1.
    const F32 weight =
        Exp2<sizeof(T) == sizeof(float)>(Load(scores + i) - most);
    sums += weight;
    Store(weight, weights + i);
  }
  return Sum(sums);
}

// Where the parts of one head's attention lie in the scratch.
struct HeadScratch {
  uint32_t* keys;    // (head words, padded)
  uint32_t* values;  // (pairs, head width); bf16 only
  float* scores;     // (kTileRows, padded)
  float* weights;    // (kTileRows, padded), or half of it in bf16
};

template <Element type, int rows>
VITRINE_INLINE void AttendRows(const AttentionTask& task,
                               const HeadScratch& scratch, int64_t head,
                               int64_t query, int64_t padded) {
  using T = typename Words<type>::T;
  constexpr int64_t kPer = Words<type>::kPer;
  const int64_t width = task.heads * task.head_width;
  const int64_t stride = 3 * width / kPer;  // words
  const T* const qkv = static_cast<const T*>(task.qkv);
  const T* const queries =
      qkv + (task.first_query + query) * 3 * width + head * task.head_width;
  Multiply<type, rows>(reinterpret_cast<const uint32_t*>(queries), stride,
                       scratch.keys, padded, task.head_width / kPer, padded,
                       nullptr, scratch.scores, padded);
  T* const weights = reinterpret_cast<T*>(scratch.weights);
  float factors[rows];
  for (int r = 0; r < rows; ++r) {
    factors[r] =
        1.0f / Softmax(task.length, padded, scratch.scores + r * padded,
                       weights + r * padded);
  }
  T* const context =
      static_cast<T*>(task.context) + query * width + head * task.head_width;
  const T* const values = qkv + 2 * width + head * task.head_width;
  const bool pairs = kPer == 2;
  Multiply<type, rows>(
      reinterpret_cast<const uint32_t*>(weights), padded / kPer,
      pairs ? scratch.values : reinterpret_cast<const uint32_t*>(values),
      pairs ? task.head_width : stride, (task.length + kPer - 1) / kPer,
      task.head_width, factors, context, width);
}

template <Element type>
void AttendAs(const AttentionTask& task) {
  using T = typename Words<type>::T;
  constexpr int64_t kPer = Words<type>::kPer;
  const int64_t padded = RoundUpTo(task.length, kLanes);
  const int64_t width = task.heads * task.head_width;
  HeadScratch scratch;
  scratch.scores = task.scratch;
  scratch.weights = scratch.scores + kTileRows * padded;
  scratch.keys =
      reinterpret_cast<uint32_t*>(scratch.weights + kTileRows * padded);
  scratch.values = scratch.keys + task.head_width / kPer * padded;
  const T* const qkv = static_cast<const T*>(task.qkv);
  for (int64_t h = 0; h < task.heads; ++h) {
    const T* const keys = qkv + width + h * task.head_width;
    PackKeys(reinterpret_cast<const uint32_t*>(keys), 3 * width / kPer,
             task.length, task.head_width / kPer, padded, scratch.keys);
    if constexpr (type == Element::kBf16) {
      PackValues(keys + width, 3 * width, task.length, task.head_width,
                 scratch.values);
    }
    int64_t q = 0;
    for (; q + kTileRows <= task.queries; q += kTileRows) {
      AttendRows<type, kTileRows>(task, scratch, h, q, padded);
    }
    for (; q + 2 <= task.queries; q += 2) {
      AttendRows<type, 2>(task, scratch, h, q, padded);
    }
    if (q < task.queries) AttendRows<type, 1>(task, scratch, h, q, padded);
  }
}

void Attend(const AttentionTask& task) {
  if (task.type == Element::kBf16) {
    AttendAs<Element::kBf16>(task);
  } else {
    AttendAs<Element::kF32>(task);
  }
}

}  // namespace

extern const VectorKernels VITRINE_KERNELS;
const VectorKernels VITRINE_KERNELS = {Embed,   AddAndNormalize, Activate,
                                       Convert, Attend,          Tanh};

}  // namespace vitrine
