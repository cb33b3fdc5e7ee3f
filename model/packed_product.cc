#include "model/packed_product.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace vitrine {
namespace {

using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;

// Rows of the calls that a product is made of, the largest first: a few that
// are made once, in place of code for every number of rows.
constexpr int64_t kCallRows[] = {256, 128, 64, 32, 16};
static_assert(kRowStep == 16);

bool Has(dnnl::cpu_isa wanted) {
  const auto have = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto mask = static_cast<unsigned>(wanted);
  return (have & mask) == mask;
}

const dnnl::engine& Cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

Type InputType(ProductType type) {
  return type == ProductType::kF32    ? Type::f32
         : type == ProductType::kBf16 ? Type::bf16
                                      : Type::u8;
}
Type WeightType(ProductType type) {
  return type == ProductType::kF32    ? Type::f32
         : type == ProductType::kBf16 ? Type::bf16
                                      : Type::s8;
}
Type OutputType(ProductType type) {
  return type == ProductType::kF32    ? Type::f32
         : type == ProductType::kBf16 ? Type::bf16
                                      : Type::s32;
}

// oneDNN's code is made for the threads that OpenMP has here, and runs with
// them: for one, since threads share rows out among themselves.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_;
};

absl::Status OneDnnError(const dnnl::error& error) {
  return absl::Status(error.status == dnnl_unimplemented
                          ? absl::StatusCode::kUnimplemented
                          : absl::StatusCode::kInternal,
                      absl::StrCat("oneDNN: ", error.what()));
}

}  // namespace

CpuIsa EffectiveCpuIsa() {
  if (Has(dnnl::cpu_isa::avx512_core_bf16)) return CpuIsa::kAvx512Bf16;
  if (Has(dnnl::cpu_isa::avx512_core)) return CpuIsa::kAvx512;
  if (Has(dnnl::cpu_isa::avx2)) return CpuIsa::kAvx2;
  return CpuIsa::kPlain;
}

bool HasFastBf16() { return Has(dnnl::cpu_isa::avx512_core_bf16); }

bool HasExactInt8() {
  return Has(dnnl::cpu_isa::avx512_core_vnni) || Has(dnnl::cpu_isa::avx2_vnni);
}

struct ProductContext::Parts {
  dnnl::stream stream{Cpu()};
  std::vector<std::byte> scratch;
  std::vector<std::byte> x, y;  // copies of rows
};

ProductContext::ProductContext() : parts_(std::make_unique<Parts>()) {}
ProductContext::~ProductContext() = default;
ProductContext::ProductContext(ProductContext&&) noexcept = default;
ProductContext& ProductContext::operator=(ProductContext&&) noexcept = default;

struct ProductCode::Parts {
  ProductShape shape;
  struct Call {
    int64_t rows;
    dnnl::matmul::primitive_desc description;
    dnnl::matmul code;
  };
  std::vector<Call> calls;     // the largest first
  dnnl::memory::desc weights;  // packed
  dnnl::memory::desc bias;
  int64_t scratch_bytes = 0;
};

struct ProductCode::Weights {
  dnnl::memory weights, bias;
};

ProductCode::ProductCode(std::unique_ptr<const Parts> parts)
    : parts_(std::move(parts)) {}
ProductCode::~ProductCode() = default;

const ProductShape& ProductCode::shape() const { return parts_->shape; }

absl::StatusOr<std::shared_ptr<const ProductCode>> ProductCode::Create(
    const ProductShape& shape) {
  const OneThread one;
  auto parts = std::make_unique<Parts>();
  parts->shape = shape;
  try {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::memory::dims weight_dims = {shape.from, shape.to};
    const dnnl::memory::desc any(weight_dims, WeightType(shape.type), Tag::any);
    parts->bias = dnnl::memory::desc({1, shape.to}, Type::f32, Tag::ab);
    for (const int64_t rows : kCallRows) {
      if (rows < shape.least_rows) break;
      const dnnl::memory::desc x({rows, shape.from}, InputType(shape.type),
                                 Tag::ab);
      const dnnl::memory::desc y({rows, shape.to}, OutputType(shape.type),
                                 Tag::ab);
      // What suits the most rows is what all get.
      const bool first = parts->calls.empty();
      const dnnl::memory::desc& weights = first ? any : parts->weights;
      const dnnl::matmul::desc wanted =
          shape.bias ? dnnl::matmul::desc(x, weights, parts->bias, y)
                     : dnnl::matmul::desc(x, weights, y);
      const dnnl::matmul::primitive_desc description(wanted, attributes, Cpu(),
                                                     /*allow_empty=*/!first);
      // Not with these weights, or not fast: Run has a way around.
      if (!first && (description.get(true) == nullptr ||
                     parts->calls.front().description.impl_info_str() !=
                         std::string(description.impl_info_str()))) {
        break;
      }
      if (first) parts->weights = description.weights_desc();
      parts->scratch_bytes = std::max<int64_t>(
          parts->scratch_bytes,
          static_cast<int64_t>(description.scratchpad_desc().get_size()));
      parts->calls.push_back({rows, description, dnnl::matmul(description)});
    }
  } catch (const dnnl::error& error) {
    return OneDnnError(error);
  }
  return std::shared_ptr<const ProductCode>(new ProductCode(std::move(parts)));
}

absl::StatusOr<std::shared_ptr<const ProductCode::Weights>> ProductCode::Pack(
    absl::Span<const float> weights, absl::Span<const float> bias) const {
  const OneThread one;
  const ProductShape& shape = parts_->shape;
  const int64_t size = shape.from * shape.to;
  if (static_cast<int64_t>(weights.size()) != size ||
      static_cast<int64_t>(bias.size()) != (shape.bias ? shape.to : 0)) {
    return absl::InternalError(
        absl::StrCat("a product of ", shape.from, " to ", shape.to, ": ",
                     weights.size(), " weights, ", bias.size(), " biases"));
  }
  try {
    const dnnl::memory::desc plain({shape.from, shape.to},
                                   WeightType(shape.type), Tag::ba);
    auto packed = std::make_shared<Weights>();
    packed->weights = dnnl::memory(parts_->weights, Cpu());
    dnnl::memory source(plain, Cpu());
    switch (shape.type) {
      case ProductType::kF32:
        std::copy(weights.begin(), weights.end(),
                  static_cast<float*>(source.get_data_handle()));
        break;
      case ProductType::kBf16: {
        auto* const out = static_cast<Bf16*>(source.get_data_handle());
        for (int64_t i = 0; i < size; ++i) out[i] = ToBf16(weights[i]);
        break;
      }
      case ProductType::kInt8: {
        auto* const out = static_cast<int8_t*>(source.get_data_handle());
        for (int64_t i = 0; i < size; ++i) {
          out[i] = static_cast<int8_t>(std::lrint(weights[i]));
        }
        break;
      }
    }
    dnnl::stream stream(Cpu());
    dnnl::reorder(source, packed->weights)
        .execute(stream, source, packed->weights);
    if (shape.bias) {
      packed->bias = dnnl::memory(parts_->bias, Cpu());
      std::copy(bias.begin(), bias.end(),
                static_cast<float*>(packed->bias.get_data_handle()));
    }
    stream.wait();
    return std::shared_ptr<const Weights>(std::move(packed));
  } catch (const dnnl::error& error) {
    return OneDnnError(error);
  }
}

absl::Status ProductCode::Run(const Weights& weights, const void* x, void* y,
                              int64_t rows, ProductContext* context) const {
  const Parts& parts = *parts_;
  ProductContext::Parts& own = *context->parts_;
  const int64_t x_row =
      parts.shape.from * static_cast<int64_t>(dnnl::memory::data_type_size(
                             InputType(parts.shape.type)));
  const int64_t y_row =
      parts.shape.to * static_cast<int64_t>(dnnl::memory::data_type_size(
                           OutputType(parts.shape.type)));
  if (static_cast<int64_t>(own.scratch.size()) < parts.scratch_bytes) {
    own.scratch.resize(parts.scratch_bytes);
  }
  const auto run = [&](const Parts::Call& call, void* in, void* out) {
    const dnnl::memory x_memory(call.description.src_desc(), Cpu(), in);
    const dnnl::memory y_memory(call.description.dst_desc(), Cpu(), out);
    const dnnl::memory scratch(call.description.scratchpad_desc(), Cpu(),
                               own.scratch.data());
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, x_memory.get()},
        {DNNL_ARG_WEIGHTS, weights.weights.get()},
        {DNNL_ARG_DST, y_memory.get()},
        {DNNL_ARG_SCRATCHPAD, scratch.get()},
        {DNNL_ARG_BIAS, weights.bias.get(true)},
    };
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(call.code.get(), own.stream.get(),
                               parts.shape.bias ? 5 : 4, args),
        "could not multiply");
  };
  auto* in = static_cast<std::byte*>(const_cast<void*>(x));
  auto* out = static_cast<std::byte*>(y);
  try {
    for (const Parts::Call& call : parts.calls) {
      for (; rows >= call.rows; rows -= call.rows) {
        run(call, in, out);
        in += call.rows * x_row;
        out += call.rows * y_row;
      }
    }
    if (rows == 0) return absl::OkStatus();
    // Fewer than the smallest call takes: by way of memory that is large
    // enough.
    const Parts::Call& call = parts.calls.back();
    own.x.resize(std::max<size_t>(own.x.size(), call.rows * x_row));
    own.y.resize(std::max<size_t>(own.y.size(), call.rows * y_row));
    std::copy_n(in, rows * x_row, own.x.data());
    run(call, own.x.data(), own.y.data());
    std::copy_n(own.y.data(), rows * y_row, out);
  } catch (const dnnl::error& error) {
    return OneDnnError(error);
  }
  return absl::OkStatus();
}

int64_t ProductCode::SizeBytes(const Weights& weights) {
  return static_cast<int64_t>(weights.weights.get_desc().get_size());
}

}  // namespace vitrine
