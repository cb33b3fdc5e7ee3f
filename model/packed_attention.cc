#include "model/packed_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "model/attention_kernels.h"

namespace vitrine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename T>
T* Data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls f(shape, column of the head, first row, place of its log sums).
template <typename F>
void ForEachHead(const std::vector<int32_t>& offsets, int64_t heads,
                 int64_t hidden, const F& f) {
  AttentionShape shape;
  shape.size = hidden / heads;
  shape.qkv_stride = 3 * hidden;
  shape.out_stride = hidden;
  shape.scale = static_cast<float>(1 / std::sqrt(shape.size));
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    shape.tokens = offsets[s + 1] - offsets[s];
    for (int64_t h = 0; h < heads; ++h) {
      f(shape, h * shape.size, int64_t{offsets[s]},
        offsets[s] * heads + h * shape.tokens);
    }
  }
}

template <typename T>
void Forward(const at::Tensor& qkv, const std::vector<int32_t>& offsets,
             int64_t heads, const at::Tensor& out, const at::Tensor& sums) {
  const int64_t hidden = qkv.size(1) / 3;
  thread_local AttentionBuffers scratch;
  ForEachHead(offsets, heads, hidden,
              [&](const AttentionShape& shape, int64_t column, int64_t row,
                  int64_t place) {
                const T* const query = Data<T>(qkv) + row * 3 * hidden + column;
                AttendForward(shape, query, query + hidden, query + 2 * hidden,
                              &scratch, Data<T>(out) + row * hidden + column,
                              Data<float>(sums) + place);
              });
}

template <typename T>
void Backward(const at::Tensor& qkv, const std::vector<int32_t>& offsets,
              int64_t heads, const at::Tensor& by_out, const at::Tensor& sums,
              const at::Tensor& by_qkv) {
  const int64_t hidden = qkv.size(1) / 3;
  thread_local AttentionBuffers scratch;
  ForEachHead(offsets, heads, hidden,
              [&](const AttentionShape& shape, int64_t column, int64_t row,
                  int64_t place) {
                const T* const query = Data<T>(qkv) + row * 3 * hidden + column;
                T* const by_query = Data<T>(by_qkv) + row * 3 * hidden + column;
                AttendBackward(shape, query, query + hidden, query + 2 * hidden,
                               Data<float>(sums) + place,
                               Data<T>(by_out) + row * hidden + column,
                               &scratch, by_query, by_query + hidden,
                               by_query + 2 * hidden);
              });
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const std::vector<int32_t>& offsets,
                            int64_t heads) {
    const at::Tensor qkv = input.contiguous();
    const at::Tensor out =
        at::empty({qkv.size(0), qkv.size(1) / 3}, qkv.options());
    const at::Tensor sums = at::empty({qkv.size(0) * heads}, at::kFloat);
    if (qkv.scalar_type() == at::kBFloat16) {
      Forward<Bf16>(qkv, offsets, heads, out, sums);
    } else {
      Forward<float>(qkv, offsets, heads, out, sums);
    }
    context->save_for_backward({qkv, sums});
    context->saved_data["heads"] = heads;
    context->saved_data["offsets"] =
        std::vector<int64_t>(offsets.begin(), offsets.end());
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list by) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> kept =
        context->saved_data["offsets"].toIntVector();
    const std::vector<int32_t> offsets(kept.begin(), kept.end());
    const int64_t heads = context->saved_data["heads"].toInt();
    const at::Tensor& qkv = saved[0];
    const at::Tensor by_out = by[0].to(qkv.scalar_type()).contiguous();
    const at::Tensor by_qkv = at::empty_like(qkv);
    if (qkv.scalar_type() == at::kBFloat16) {
      Backward<Bf16>(qkv, offsets, heads, by_out, saved[1], by_qkv);
    } else {
      Backward<float>(qkv, offsets, heads, by_out, saved[1], by_qkv);
    }
    return {by_qkv, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor PackedAttention(const at::Tensor& query_key_value,
                           const std::vector<int32_t>& offsets, int64_t heads) {
  return Attention::apply(query_key_value, offsets, heads);
}

}  // namespace vitrine
