#include "model/packed_product.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
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
// oneDNN packs columns by 64.
constexpr int64_t kPartStep = 64;

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
  // What a call reads and writes, made once: oneDNN allocates for each.
  struct Operands {
    dnnl::memory x, y, scratch;
  };

  dnnl::stream stream{Cpu()};
  std::unordered_map<int64_t, Operands> operands;  // by the call's number
  std::vector<std::byte> scratch;
  std::vector<std::byte> x, y;  // copies of rows
};

ProductContext::ProductContext() : parts_(std::make_unique<Parts>()) {}
ProductContext::~ProductContext() = default;
ProductContext::ProductContext(ProductContext&&) noexcept = default;
ProductContext& ProductContext::operator=(ProductContext&&) noexcept = default;

// Products of up to so many rows with the same weights.
struct ProductCode::Calls {
  struct Call {
    int64_t number;  // no other has it
    int64_t rows;
    dnnl::matmul::primitive_desc description;
    dnnl::matmul code;
  };
  std::vector<Call> calls;  // the largest first
  Columns columns;
  int64_t offset = 0;  // of its weights, in elements
  dnnl::memory::desc bias;

  // The calls of `shape` for `weights`, which may be of any layout at first.
  static Calls Make(const ProductShape& shape, dnnl::memory::desc weights,
                    Columns columns, int64_t most_rows);

  dnnl::memory::desc weights() const {
    return calls.front().description.weights_desc();
  }
  std::string implementation() const {
    return calls.front().description.impl_info_str();
  }
  int64_t ScratchBytes() const {
    int64_t most = 0;
    for (const Call& call : calls) {
      most = std::max(most, static_cast<int64_t>(
                                call.description.scratchpad_desc().get_size()));
    }
    return most;
  }
};

struct ProductCode::Members {
  ProductShape shape;
  Calls whole;
  std::vector<Columns> parts;
  std::vector<Calls> part_calls;
  int64_t scratch_bytes = 0;
};

struct ProductCode::PackedColumns {
  dnnl::memory weights, bias;
};

struct ProductCode::Weights {
  PackedColumns whole;
  std::vector<PackedColumns> parts;  // views of the whole
};

ProductCode::ProductCode(std::unique_ptr<const Members> members)
    : members_(std::move(members)) {}
ProductCode::~ProductCode() = default;

const ProductShape& ProductCode::shape() const { return members_->shape; }

const std::vector<ProductCode::Columns>& ProductCode::parts() const {
  return members_->parts;
}

ProductCode::Calls ProductCode::Calls::Make(const ProductShape& shape,
                                            dnnl::memory::desc weights,
                                            Columns columns,
                                            int64_t most_rows) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const int64_t to = columns.end - columns.begin;
  Calls out;
  out.columns = columns;
  out.bias = {{1, to}, Type::f32, Tag::ab};
  for (const int64_t rows : kCallRows) {
    if (rows > most_rows) continue;
    const dnnl::memory::desc x({rows, shape.from}, InputType(shape.type),
                               Tag::ab);
    const dnnl::memory::desc y({rows, to}, OutputType(shape.type), Tag::ab);
    const dnnl::matmul::desc wanted =
        shape.bias ? dnnl::matmul::desc(x, weights, out.bias, y)
                   : dnnl::matmul::desc(x, weights, y);
    const bool first = out.calls.empty();
    const dnnl::matmul::primitive_desc description(wanted, attributes, Cpu(),
                                                   /*allow_empty=*/!first);
    // Not with these weights, or not fast: Run has a way around.
    if (!first && (description.get(true) == nullptr ||
                   description.impl_info_str() != out.implementation())) {
      break;
    }
    // What suits the most rows is what all get.
    if (first) weights = description.weights_desc();
    static std::atomic<int64_t> numbers{0};
    out.calls.push_back(
        {numbers++, rows, description, dnnl::matmul(description)});
  }
  return out;
}

absl::StatusOr<std::shared_ptr<const ProductCode>> ProductCode::Create(
    const ProductShape& shape) {
  const OneThread one;
  auto members = std::make_unique<Members>();
  members->shape = shape;
  try {
    const dnnl::memory::desc any({shape.from, shape.to}, WeightType(shape.type),
                                 Tag::any);
    members->whole = Calls::Make(shape, any, {0, shape.to}, kCallRows[0]);
    members->scratch_bytes = members->whole.ScratchBytes();
  } catch (const dnnl::error& error) {
    return OneDnnError(error);
  }
  try {
    const int64_t steps = (shape.to + kPartStep - 1) / kPartStep;
    const int64_t parts = std::min<int64_t>(shape.parts, steps);
    for (int64_t p = 0; parts > 1 && p < parts; ++p) {
      const Columns columns = {
          steps * p / parts * kPartStep,
          std::min(steps * (p + 1) / parts * kPartStep, shape.to)};
      // oneDNN's products do not look at where a view begins: it has to begin
      // where the memory does.
      dnnl::memory::desc weights = members->whole.weights().submemory_desc(
          {shape.from, columns.end - columns.begin}, {0, columns.begin});
      const int64_t offset = std::exchange(weights.data.offset0, 0);
      Calls calls = Calls::Make(shape, weights, columns, kMaxPartRows);
      calls.offset = offset;
      if (calls.implementation() != members->whole.implementation()) {
        throw dnnl::error(dnnl_unimplemented, "slow for a part");
      }
      members->scratch_bytes =
          std::max(members->scratch_bytes, calls.ScratchBytes());
      members->parts.push_back(columns);
      members->part_calls.push_back(std::move(calls));
    }
  } catch (const dnnl::error&) {
    // Then there are none.
    members->parts.clear();
    members->part_calls.clear();
  }
  return std::shared_ptr<const ProductCode>(
      new ProductCode(std::move(members)));
}

absl::StatusOr<std::shared_ptr<const ProductCode::Weights>> ProductCode::Pack(
    absl::Span<const float> weights, absl::Span<const float> bias) const {
  const OneThread one;
  const ProductShape& shape = members_->shape;
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
    dnnl::memory& whole = packed->whole.weights;
    whole = dnnl::memory(members_->whole.weights(), Cpu());
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
    dnnl::reorder(source, whole).execute(stream, source, whole);
    stream.wait();
    float* added = nullptr;
    if (shape.bias) {
      packed->whole.bias = dnnl::memory(members_->whole.bias, Cpu());
      added = static_cast<float*>(packed->whole.bias.get_data_handle());
      std::copy(bias.begin(), bias.end(), added);
    }
    for (const Calls& part : members_->part_calls) {
      PackedColumns& view = packed->parts.emplace_back();
      view.weights = dnnl::memory(
          part.weights(), Cpu(),
          static_cast<std::byte*>(whole.get_data_handle()) +
              part.offset * static_cast<int64_t>(dnnl::memory::data_type_size(
                                WeightType(shape.type))));
      if (shape.bias) {
        view.bias = dnnl::memory(part.bias, Cpu(), added + part.columns.begin);
      }
    }
    return std::shared_ptr<const Weights>(std::move(packed));
  } catch (const dnnl::error& error) {
    return OneDnnError(error);
  }
}

absl::Status ProductCode::Run(const Weights& weights, const void* x, void* y,
                              int64_t rows, ProductContext* context) const {
  return RunCalls(members_->whole, weights.whole, x, y, rows, context);
}

absl::Status ProductCode::RunPart(int part, const Weights& weights,
                                  const void* x, void* y, int64_t rows,
                                  ProductContext* context) const {
  return RunCalls(members_->part_calls[part], weights.parts[part], x, y, rows,
                  context);
}

absl::Status ProductCode::RunCalls(const Calls& calls,
                                   const PackedColumns& weights, const void* x,
                                   void* y, int64_t rows,
                                   ProductContext* context) const {
  const Members& members = *members_;
  ProductContext::Parts& own = *context->parts_;
  const int64_t x_row =
      members.shape.from * static_cast<int64_t>(dnnl::memory::data_type_size(
                               InputType(members.shape.type)));
  const int64_t y_row = (calls.columns.end - calls.columns.begin) *
                        static_cast<int64_t>(dnnl::memory::data_type_size(
                            OutputType(members.shape.type)));
  if (static_cast<int64_t>(own.scratch.size()) < members.scratch_bytes) {
    own.scratch.resize(members.scratch_bytes);
  }
  const auto run = [&](const Calls::Call& call, void* in, void* out) {
    ProductContext::Parts::Operands& operands = own.operands[call.number];
    if (!operands.x) {
      operands.x = dnnl::memory(call.description.src_desc(), Cpu(), nullptr);
      operands.y = dnnl::memory(call.description.dst_desc(), Cpu(), nullptr);
      operands.scratch =
          dnnl::memory(call.description.scratchpad_desc(), Cpu(), nullptr);
    }
    operands.x.set_data_handle(in);
    operands.y.set_data_handle(out);
    operands.scratch.set_data_handle(own.scratch.data());
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, operands.x.get()},
        {DNNL_ARG_WEIGHTS, weights.weights.get()},
        {DNNL_ARG_DST, operands.y.get()},
        {DNNL_ARG_SCRATCHPAD, operands.scratch.get()},
        {DNNL_ARG_BIAS, weights.bias.get(true)},
    };
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(call.code.get(), own.stream.get(),
                               members.shape.bias ? 5 : 4, args),
        "could not multiply");
  };
  auto* in = static_cast<std::byte*>(const_cast<void*>(x));
  auto* out = static_cast<std::byte*>(y);
  try {
    for (const Calls::Call& call : calls.calls) {
      for (; rows >= call.rows; rows -= call.rows) {
        run(call, in, out);
        in += call.rows * x_row;
        out += call.rows * y_row;
      }
    }
    if (rows == 0) return absl::OkStatus();
    // Fewer than the smallest call takes: by way of memory that is large
    // enough.
    const Calls::Call& call = calls.calls.back();
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
  return static_cast<int64_t>(weights.whole.weights.get_desc().get_size());
}

}  // namespace vitrine
