// Bert::Forward for serving on a CPU: LibTorch's matrix products, everything
// between them in fused passes. The stream of hidden states stays fp32, also
// where the products are bf16.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "model/bert.h"
#include "model/cpu_kernels.h"
#include "model/length_buckets.h"

namespace vitrine {
namespace {

// Work per task in elements, below which a thread is not worth waking.
constexpr int64_t kGrain = 16384;

int64_t RowGrain(int64_t row_size) {
  return std::max<int64_t>(1, kGrain / row_size);
}

template <typename T>
constexpr at::ScalarType kType =
    std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;

// oneDNN makes code for each shape of a product: a millisecond, as long as the
// product itself takes, and a quarter of a MiB. So sizes are rounded up, and
// what a server has to multiply soon has all been seen: tokens in steps of
// kRowStep, lengths in steps of kLengthStep, and sequences to the sizes below.
template <typename T>
constexpr int kRowStep = kType<T> == at::kFloat ? 1 : 32;
template <typename T>
constexpr int kLengthStep = kType<T> == at::kFloat ? 1 : 16;

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 … that is at least n.
int64_t RoundUpCount(int64_t n) {
  int64_t power = 1;
  while (power * 2 <= n) power *= 2;
  if (power == n) return n;
  return power + power / 2 >= n ? power + power / 2 : 2 * power;
}

template <typename T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// product(begin, end) for parts of [0, n): all at once for bf16, where oneDNN
// uses OpenMP itself. The BLAS of fp32 has threads of its own at best, which
// OpenMP's, still spinning from the last pass, then contend with: the engine
// sets it to one and the parts are shared out here.
template <typename T, typename F>
void Share(int64_t n, int64_t grain, F product) {
  if (kType<T> != at::kFloat || at::get_num_threads() == 1) {
    product(0, n);
    return;
  }
  at::parallel_for(0, n, grain, [&product](int64_t begin, int64_t end) {
    const c10::InferenceMode inference;  // a thread's own
    product(begin, end);
  });
}

// out (rows, to) = x (rows, from) times the transposed weight (to, from).
template <typename T>
void Product(const at::Tensor& x, const at::Tensor& weight,
             const at::Tensor& out) {
  Share<T>(x.size(0), 32, [&](int64_t begin, int64_t end) {
    at::Tensor part = out.narrow(0, begin, end - begin);
    at::mm_out(part, x.narrow(0, begin, end - begin), weight.t());
  });
}

// (n, i, j) times (n, j, k).
template <typename T>
at::Tensor BatchedProduct(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty({a.size(0), a.size(1), b.size(2)}, a.options());
  Share<T>(a.size(0), 4, [&](int64_t begin, int64_t end) {
    at::Tensor part = out.narrow(0, begin, end - begin);
    at::bmm_out(part, a.narrow(0, begin, end - begin),
                b.narrow(0, begin, end - begin));
  });
  return out;
}

Activation ToActivation(const std::string& name) {
  return name == "relu"       ? Activation::kRelu
         : name == "gelu_new" ? Activation::kGeluTanh
                              : Activation::kGelu;
}

struct Scope {
  const std::vector<int32_t>& offsets;
  const std::vector<LengthBucket>& buckets;
  int64_t heads;
  int64_t hidden;
};

// qkv (tokens, 3 * hidden) to the context `out` (tokens, hidden).
template <typename T>
void Attend(const at::Tensor& qkv, const at::Tensor& bias, const Scope& scope,
            const at::Tensor& out) {
  const int64_t size = scope.hidden / scope.heads;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  for (const LengthBucket& bucket : scope.buckets) {
    const int64_t n = static_cast<int64_t>(bucket.sequences.size());
    const HeadShape shape{scope.heads, size,
                          RoundUp(bucket.longest, kLengthStep<T>)};
    const int64_t one = scope.heads * shape.length * size;  // of a sequence
    const int64_t padded_n = kType<T> == at::kFloat ? n : RoundUpCount(n);
    // (padded n * heads, length, size)
    const auto make = [&] {
      at::Tensor out = at::empty({padded_n * scope.heads, shape.length, size},
                                 qkv.options());
      out.narrow(0, n * scope.heads, out.size(0) - n * scope.heads).zero_();
      return out;
    };
    const at::Tensor query = make(), key = make(), value = make();
    const auto tokens = [&](int64_t i) {
      const int s = bucket.sequences[i];
      return scope.offsets[s + 1] - scope.offsets[s];
    };
    at::parallel_for(0, n, RowGrain(3 * one), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = scope.offsets[bucket.sequences[i]];
        SplitHeads(Data<T>(qkv) + first * 3 * scope.hidden, Data<float>(bias),
                   scale, tokens(i), shape, Data<T>(query) + i * one,
                   Data<T>(key) + i * one, Data<T>(value) + i * one);
      }
    });
    // (padded n * heads, length, length)
    const at::Tensor weights = BatchedProduct<T>(query, key.transpose(1, 2));
    const int64_t rows = scope.heads * shape.length;
    at::parallel_for(
        0, n, RowGrain(rows * shape.length), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            SoftmaxRows(rows, shape.length, tokens(i),
                        Data<T>(weights) + i * rows * shape.length);
          }
        });
    const at::Tensor context = BatchedProduct<T>(weights, value);
    at::parallel_for(0, n, RowGrain(one), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = scope.offsets[bucket.sequences[i]];
        MergeHeads(Data<T>(context) + i * one, tokens(i), shape,
                   Data<T>(out) + first * scope.hidden);
      }
    });
  }
}

}  // namespace

template <typename T>
at::Tensor Bert::ForwardOnCpu(const PackedInput& input) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t tokens = input.ids.size(0);
  const float epsilon = static_cast<float>(config_.layer_norm_eps);
  const std::vector<LengthBucket> buckets =
      GroupByLength(input.offsets, /*stretch=*/1.2, kLengthStep<T>);
  const Scope scope{input.offsets, buckets, config_.num_heads, hidden};

  // Made once: memory of this size comes from the kernel, page by page. Rows
  // from `tokens` on are zeros, or products of zeros.
  const int64_t rows = RoundUp(tokens, kRowStep<T>);
  const auto make = [&](int64_t width, at::ScalarType type) {
    at::Tensor out = at::empty({rows, width}, type);
    out.narrow(0, tokens, rows - tokens).zero_();
    return out;
  };
  // The stream, and the form of it that products read: itself, or bf16.
  const at::Tensor x = make(hidden, at::kFloat);
  const at::Tensor x_in = kType<T> == at::kFloat ? x : make(hidden, kType<T>);
  float* const stream = Data<float>(x);
  Bf16* const copy = kType<T> == at::kFloat ? nullptr : Data<Bf16>(x_in);
  const auto copy_at = [copy, hidden](int64_t row) {
    return copy == nullptr ? nullptr : copy + row * hidden;
  };

  at::parallel_for(
      0, tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
        const auto row = [&](const at::Tensor& table, const at::Tensor& ids,
                             int64_t t) {
          return Data<float>(table) + Data<int64_t>(ids)[t] * hidden;
        };
        for (int64_t t = begin; t < end; ++t) {
          EmbedAndNormalize({row(word_embeddings_, input.ids, t),
                             row(position_embeddings_, input.positions, t),
                             row(segment_embeddings_, input.segments, t)},
                            Data<float>(embeddings_norm_.weight),
                            Data<float>(embeddings_norm_.bias), epsilon, hidden,
                            stream + t * hidden, copy_at(t));
        }
      });
  const auto add_and_normalize = [&](const at::Tensor& y,
                                     const at::Tensor& y_bias,
                                     const LayerNorm& norm) {
    at::parallel_for(
        0, tokens, RowGrain(hidden), [&](int64_t begin, int64_t end) {
          AddAndNormalize(Data<T>(y) + begin * hidden, Data<float>(y_bias),
                          Data<float>(norm.weight), Data<float>(norm.bias),
                          epsilon, end - begin, hidden, stream + begin * hidden,
                          copy_at(begin));
        });
  };

  const Activation activation = ToActivation(config_.hidden_act);
  const int64_t inner = config_.intermediate_size;
  const at::Tensor qkv = make(3 * hidden, kType<T>);
  const at::Tensor context = make(hidden, kType<T>);
  const at::Tensor middle = make(inner, kType<T>);
  const at::Tensor y = make(hidden, kType<T>);
  for (const Layer& layer : layers_) {
    Product<T>(x_in, layer.query_key_value.weight, qkv);
    Attend<T>(qkv, layer.query_key_value.bias, scope, context);
    Product<T>(context, layer.attention_output.weight, y);
    add_and_normalize(y, layer.attention_output.bias, layer.attention_norm);
    Product<T>(x_in, layer.intermediate.weight, middle);
    at::parallel_for(
        0, tokens, RowGrain(inner), [&](int64_t begin, int64_t end) {
          AddBiasAndActivate(activation, Data<float>(layer.intermediate.bias),
                             end - begin, inner,
                             Data<T>(middle) + begin * inner);
        });
    Product<T>(middle, layer.output.weight, y);
    add_and_normalize(y, layer.output.bias, layer.output_norm);
  }
  return x.narrow(0, 0, tokens);
}

template at::Tensor Bert::ForwardOnCpu<float>(const PackedInput&) const;
template at::Tensor Bert::ForwardOnCpu<Bf16>(const PackedInput&) const;

}  // namespace vitrine
