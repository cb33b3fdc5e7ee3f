#include "model/vector_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace vitrine {
namespace {

// Of a row, really: with and without remainders of every vector width.
constexpr int64_t kSizes[] = {2, 7, 16, 31, 32, 33, 48, 100, 320, 384};

constexpr Element kOutputTypes[] = {Element::kF32, Element::kBf16,
                                    Element::kS32};

int64_t Width(int64_t size) {
  return (size + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
}

float ToFloat(Bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Half a unit in the last place of bf16 at `x`, and a little for fp32's noise.
double Bf16Rounding(double x) {
  return std::ldexp(1.02, std::ilogb(std::max(std::abs(x), 1e-30)) - 8);
}

double Gelu(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double GeluTanh(double x) {
  return 0.5 * x *
         (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double Relu(double x) { return x > 0 ? x : 0; }

std::vector<CpuIsa> Isas() {
  std::vector<CpuIsa> out = {CpuIsa::kPlain};
  for (const CpuIsa isa :
       {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (isa <= BestCpuIsa()) out.push_back(isa);
  }
  return out;
}

std::string NameOf(const ::testing::TestParamInfo<CpuIsa>& info) {
  static constexpr const char* kNames[] = {"plain", "avx2", "avx512",
                                           "avx512_bf16"};
  return kNames[static_cast<int>(info.param)];
}

// A kernel's input as a product would have written it.
struct Product {
  ProductOutput view;
  std::vector<double> values;  // (rows, width), what it stands for

  std::vector<float> floats, bias, row_scales, column_scales;
  std::vector<Bf16> bf16;
  std::vector<int32_t> whole, corrections;
};

// How a kernel is asked to write.
struct Format {
  const char* name;
  Element type;
  int zero = 128;
  float bound = 0;
};
constexpr Format kFormats[] = {
    {"f32", Element::kF32},
    {"bf16", Element::kBf16},
    {"u8", Element::kU8, 128},
    {"u8 of 7 bits", Element::kU8, 64},
    {"u8, bound", Element::kU8, 128, 0.75f},
    {"u8 of 7 bits, bound", Element::kU8, 64, 0.75f},
};

// Where a kernel writes to, as the next product would read it.
class Written {
 public:
  Written(const Format& format, int64_t rows, int64_t width)
      : width_(width), bytes_(rows * width * 4, 0xee), scales_(rows, NAN) {
    view.type = format.type;
    view.data = bytes_.data();
    if (format.type == Element::kU8) view.scales = scales_.data();
    view.zero = format.zero;
    view.bound = format.bound;
  }

  double Value(int64_t row, int64_t column) const {
    const int64_t i = row * width_ + column;
    switch (view.type) {
      case Element::kBf16: {
        Bf16 x;
        memcpy(&x, bytes_.data() + 2 * i, 2);
        return ToFloat(x);
      }
      case Element::kU8:
        return (bytes_[i] - view.zero) * double{scales_[row]};
      default: {
        float x;
        memcpy(&x, bytes_.data() + 4 * i, 4);
        return x;
      }
    }
  }

  // `expected` (rows, width): values within `tolerance` before they are rounded
  // to the format.
  void Check(const std::vector<double>& expected, double tolerance) const {
    const auto rows = static_cast<int64_t>(expected.size()) / width_;
    for (int64_t r = 0; r < rows; ++r) {
      const double* const wanted = expected.data() + r * width_;
      double most = 0;
      for (int64_t i = 0; i < width_; ++i) {
        most = std::max(most, std::abs(wanted[i]));
      }
      double step = 0;
      if (view.type == Element::kU8) {
        if (view.bound > 0) most = std::min<double>(most, view.bound);
        step = most / (view.zero - 1);
        ASSERT_NEAR(scales_[r], step, tolerance / (view.zero - 1) + step * 1e-6)
            << "row " << r;
      }
      for (int64_t i = 0; i < width_; ++i) {
        double rounding = 0, value = wanted[i];
        if (view.type == Element::kBf16) {
          rounding = Bf16Rounding(std::abs(value) + tolerance);
        } else if (view.type == Element::kU8) {
          value = std::clamp(value, -most, most);
          rounding = 0.501 * step;
          const int q = bytes_[r * width_ + i];
          ASSERT_GE(q, 1);
          ASSERT_LE(q, 2 * view.zero - 1);
        }
        ASSERT_NEAR(Value(r, i), value, tolerance + rounding)
            << "row " << r << ", column " << i << " of " << width_;
      }
    }
  }
  // That columns from `size` on are zero, exactly.
  void CheckPadding(int64_t rows, int64_t size) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = size; i < width_; ++i) ASSERT_EQ(Value(r, i), 0);
    }
  }

  ProductInput view;

 private:
  const int64_t width_;
  std::vector<uint8_t> bytes_;
  std::vector<float> scales_;
};

class VectorKernelsTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  const VectorKernels& kernels() const { return VectorKernelsFor(GetParam()); }

  // (rows, width), zero from `size` on.
  std::vector<float> Floats(int64_t rows, int64_t size, float deviation = 1,
                            float mean = 0) {
    std::normal_distribution<float> normal(mean, deviation);
    std::vector<float> out(rows * Width(size));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < size; ++i) {
        out[r * Width(size) + i] = normal(random_);
      }
    }
    return out;
  }

  Product MakeProduct(Element type, int64_t rows, int64_t size, bool bias,
                      float deviation = 1) {
    const int64_t width = Width(size);
    Product out;
    out.view.type = type;
    out.values.resize(rows * width);
    out.floats = Floats(rows, size, deviation);
    if (bias) {
      out.bias = Floats(1, size, deviation);
      out.view.bias = out.bias.data();
    }
    switch (type) {
      case Element::kBf16:
        for (const float x : out.floats) out.bf16.push_back(ToBf16(x));
        out.view.data = out.bf16.data();
        for (size_t i = 0; i < out.values.size(); ++i) {
          out.values[i] = ToFloat(out.bf16[i]);
        }
        break;
      case Element::kS32: {
        // As of 8 bits times 8 bits, `width` times.
        std::uniform_int_distribution<int32_t> any(-4000000, 4000000);
        out.whole.resize(rows * width);
        out.corrections.resize(width);
        for (int64_t i = 0; i < size; ++i) out.corrections[i] = any(random_);
        out.row_scales.resize(rows);
        for (float& x : out.row_scales) x = 1e-3f + 1e-9f * any(random_) / 8;
        out.column_scales.assign(width, 1);
        for (int64_t i = 0; i < size; ++i) {
          out.column_scales[i] =
              deviation * (7e-4f + 1e-10f * static_cast<float>(any(random_)));
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t i = 0; i < size; ++i) {
            const int64_t at = r * width + i;
            out.whole[at] = out.corrections[i] + any(random_);
            out.values[at] = double{static_cast<double>(out.whole[at]) -
                                    out.corrections[i]} *
                             out.row_scales[r] * out.column_scales[i];
          }
        }
        out.view.data = out.whole.data();
        out.view.row_scales = out.row_scales.data();
        out.view.column_scales = out.column_scales.data();
        out.view.corrections = out.corrections.data();
        break;
      }
      default:
        out.view.data = out.floats.data();
        std::copy(out.floats.begin(), out.floats.end(), out.values.begin());
    }
    if (bias) {
      for (size_t i = 0; i < out.values.size(); ++i) {
        out.values[i] += out.bias[i % width];
      }
    }
    return out;
  }

  // LayerNorm of each row of `sums` (rows, width), in place.
  static void Normalize(const Norm& norm, std::vector<double>* sums) {
    for (size_t begin = 0; begin < sums->size(); begin += norm.width) {
      double* const row = sums->data() + begin;
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < norm.size; ++i) mean += row[i];
      mean /= static_cast<double>(norm.size);
      for (int64_t i = 0; i < norm.size; ++i) {
        variance += (row[i] - mean) * (row[i] - mean);
      }
      variance /= static_cast<double>(norm.size);
      for (int64_t i = 0; i < norm.size; ++i) {
        row[i] = (row[i] - mean) / std::sqrt(variance + norm.epsilon) *
                     norm.weight[i] +
                 norm.bias[i];
      }
    }
  }

  std::mt19937 random_{5};
};

INSTANTIATE_TEST_SUITE_P(Isas, VectorKernelsTest, ::testing::ValuesIn(Isas()),
                         NameOf);

// LayerNorm in fp32 of values around 1 to 3.
constexpr double kNormTolerance = 2e-5;

TEST_P(VectorKernelsTest, EmbedNormalizesTheSumOfThree) {
  constexpr int64_t kRows = 5, kVocabulary = 11, kPositions = 7;
  for (const int64_t size : kSizes) {
    const int64_t width = Width(size);
    const std::vector<float> words = Floats(kVocabulary, size);
    std::vector<Bf16> words_bf16;
    for (const float x : words) words_bf16.push_back(ToBf16(x));
    const std::vector<float> positions = Floats(kPositions, size);
    const std::vector<float> segments = Floats(2, size);
    const std::vector<float> weight = Floats(1, size, 0.3f, 1);
    const std::vector<float> bias = Floats(1, size, 0.3f);
    const Norm norm = {weight.data(), bias.data(), 1e-5f, size, width};
    const TokenIds tokens[kRows] = {
        {10, 0, 0}, {3, 1, 0}, {0, 6, 1}, {3, 1, 1}, {7, 5, 0}};
    for (const Element type : {Element::kF32, Element::kBf16}) {
      EmbeddingTables tables;
      tables.type = type;
      tables.words = type == Element::kF32
                         ? static_cast<const void*>(words.data())
                         : words_bf16.data();
      tables.positions = positions.data();
      tables.segments = segments.data();
      std::vector<double> expected;
      for (const TokenIds& token : tokens) {
        for (int64_t i = 0; i < width; ++i) {
          const int64_t word = token.word * width + i;
          expected.push_back(double{type == Element::kF32
                                        ? words[word]
                                        : ToFloat(words_bf16[word])} +
                             positions[token.position * width + i] +
                             segments[token.segment * width + i]);
        }
      }
      Normalize(norm, &expected);
      for (const Format& format : kFormats) {
        SCOPED_TRACE(testing::Message() << format.name << ", size " << size);
        std::vector<float> x(kRows * width, NAN);
        const Written next(format, kRows, width);
        kernels().embed(tables, tokens, kRows, norm, x.data(), next.view);
        for (size_t i = 0; i < x.size(); ++i) {
          ASSERT_NEAR(x[i], expected[i], kNormTolerance) << i;
        }
        next.Check(expected, kNormTolerance);
        next.CheckPadding(kRows, size);
      }
    }
  }
}

TEST_P(VectorKernelsTest, AddAndNormalizeTakesEveryProduct) {
  constexpr int64_t kRows = 3;
  for (const int64_t size : kSizes) {
    const int64_t width = Width(size);
    const std::vector<float> weight = Floats(1, size, 0.3f, 1);
    const std::vector<float> bias = Floats(1, size, 0.3f);
    const Norm norm = {weight.data(), bias.data(), 1e-5f, size, width};
    for (const Element type : kOutputTypes) {
      for (const bool with_bias : {false, true}) {
        const Product y = MakeProduct(type, kRows, size, with_bias);
        const std::vector<float> before = Floats(kRows, size);
        std::vector<double> expected(before.begin(), before.end());
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += y.values[i];
        Normalize(norm, &expected);
        for (const Format& format : kFormats) {
          SCOPED_TRACE(testing::Message()
                       << "type " << static_cast<int>(type) << " to "
                       << format.name << ", size " << size);
          std::vector<float> x = before;
          const Written next(format, kRows, width);
          kernels().add_and_normalize(y.view, kRows, norm, x.data(), next.view);
          for (size_t i = 0; i < x.size(); ++i) {
            ASSERT_NEAR(x[i], expected[i], kNormTolerance) << i;
            if (static_cast<int64_t>(i) % width >= size) {
              ASSERT_EQ(x[i], 0);
            }
          }
          next.Check(expected, kNormTolerance);
          next.CheckPadding(kRows, size);
        }
      }
    }
  }
}

TEST_P(VectorKernelsTest, AddAndNormalizeWritesToTheRowsThemselves) {
  constexpr int64_t kRows = 3, kSize = 100;
  const std::vector<float> weight = Floats(1, kSize), bias = Floats(1, kSize);
  const Norm norm = {weight.data(), bias.data(), 1e-5f, kSize, Width(kSize)};
  const Product y = MakeProduct(Element::kF32, kRows, kSize, true);
  std::vector<float> x = Floats(kRows, kSize), other = x;
  ProductInput same;
  same.data = x.data();
  kernels().add_and_normalize(y.view, kRows, norm, x.data(), same);
  const Written apart({"", Element::kF32}, kRows, Width(kSize));
  kernels().add_and_normalize(y.view, kRows, norm, other.data(), apart.view);
  EXPECT_EQ(x, other);
}

TEST_P(VectorKernelsTest, NormalizesRowsThatDoNotVary) {
  constexpr int64_t kSize = 40;
  const std::vector<float> weight = Floats(1, kSize), bias = Floats(1, kSize);
  const Norm norm = {weight.data(), bias.data(), 1e-12f, kSize, Width(kSize)};
  Product y = MakeProduct(Element::kF32, 1, kSize, false);
  std::fill_n(y.floats.begin(), kSize, 0.5f);
  std::vector<float> x(Width(kSize));
  const Written next({"", Element::kU8, 128}, 1, Width(kSize));
  kernels().add_and_normalize(y.view, 1, norm, x.data(), next.view);
  for (int64_t i = 0; i < Width(kSize); ++i) EXPECT_EQ(x[i], bias[i]);
  next.CheckPadding(1, kSize);
}

// Every value on its own, far ones too, in all formats.
TEST_P(VectorKernelsTest, ActivatesAsTheFormulasSay) {
  std::vector<float> in;
  for (double v = -30; v < 30; v += 0.003) in.push_back(static_cast<float>(v));
  for (const float v :
       {-1e30f, -1e10f, -1e4f, -0.0f, 1e-30f, 1e4f, 1e10f, 1e30f}) {
    in.push_back(v);
  }
  in.resize(Width(static_cast<int64_t>(in.size())));
  const auto width = static_cast<int64_t>(in.size());
  const struct {
    Activation activation;
    double (*formula)(double);
    double exact, rough;  // tolerances, of fp32 outputs and of others
  } cases[] = {{Activation::kGelu, Gelu, 2e-6, 3e-4},
               {Activation::kGeluTanh, GeluTanh, 2e-6, 2e-6},
               {Activation::kRelu, Relu, 0, 0}};
  for (const auto& c : cases) {
    for (const Element type : {Element::kF32, Element::kBf16}) {
      std::vector<float> row(width);
      ProductOutput y;
      y.data = in.data();
      const Written next({"", type}, 1, width);
      kernels().activate(c.activation, y, 1, width, row.data(), next.view);
      for (int64_t i = 0; i < width; ++i) {
        const double x = in[i], expected = c.formula(x);
        double tolerance = type == Element::kF32 ? c.exact : c.rough;
        // fp32's own, of x and of the product; beyond 5, Phi is within 4e-7.
        tolerance += 4e-7 * std::abs(x);
        if (type == Element::kBf16) {
          tolerance += Bf16Rounding(std::abs(expected) + tolerance);
        }
        ASSERT_NEAR(next.Value(0, i), expected, tolerance)
            << "activation " << static_cast<int>(c.activation) << " of " << x;
      }
    }
  }
}

TEST_P(VectorKernelsTest, ActivatesEveryProduct) {
  constexpr int64_t kRows = 3;
  const struct {
    Activation activation;
    double (*formula)(double);
  } cases[] = {{Activation::kGelu, Gelu},
               {Activation::kGeluTanh, GeluTanh},
               {Activation::kRelu, Relu}};
  for (const int64_t size : kSizes) {
    const int64_t width = Width(size);
    std::vector<float> row(width);
    for (const auto& c : cases) {
      for (const Element type : kOutputTypes) {
        for (const bool bias : {false, true}) {
          const Product y = MakeProduct(type, kRows, size, bias, 2);
          std::vector<double> expected;
          for (const double x : y.values) expected.push_back(c.formula(x));
          for (const Format& format : kFormats) {
            SCOPED_TRACE(testing::Message()
                         << "activation " << static_cast<int>(c.activation)
                         << ", type " << static_cast<int>(type) << " to "
                         << format.name << ", size " << size);
            const Written next(format, kRows, width);
            kernels().activate(c.activation, y.view, kRows, width, row.data(),
                               next.view);
            next.Check(expected, format.type == Element::kF32 ? 5e-6 : 3e-4);
            next.CheckPadding(kRows, size);
          }
        }
      }
    }
  }
}

// As the engine has it where a product's output and the next one's input are
// of one type.
TEST_P(VectorKernelsTest, ActivatesInPlace) {
  constexpr int64_t kRows = 3, kSize = 100, kWidth = 128;
  std::vector<float> row(kWidth);
  for (const Element type : {Element::kF32, Element::kBf16}) {
    Product y = MakeProduct(type, kRows, kSize, true);
    const Written apart({"", type}, kRows, kWidth);
    kernels().activate(Activation::kGelu, y.view, kRows, kWidth, row.data(),
                       apart.view);
    ProductInput same;
    same.type = type;
    same.data = const_cast<void*>(y.view.data);
    kernels().activate(Activation::kGelu, y.view, kRows, kWidth, row.data(),
                       same);
    EXPECT_EQ(memcmp(same.data, apart.view.data,
                     kRows * kWidth * (type == Element::kF32 ? 4 : 2)),
              0);
  }
}

TEST_P(VectorKernelsTest, ConvertsEveryProduct) {
  constexpr int64_t kRows = 3;
  for (const int64_t size : kSizes) {
    const int64_t width = Width(size);
    std::vector<float> row(width);
    for (const Element type : kOutputTypes) {
      for (const bool bias : {false, true}) {
        const Product y = MakeProduct(type, kRows, size, bias);
        for (const Format& format : kFormats) {
          SCOPED_TRACE(testing::Message()
                       << "type " << static_cast<int>(type) << " to "
                       << format.name << ", size " << size);
          const Written next(format, kRows, width);
          kernels().convert(y.view, kRows, width, row.data(), next.view);
          next.Check(y.values, 5e-6);
          next.CheckPadding(kRows, size);
        }
      }
    }
  }
}

TEST_P(VectorKernelsTest, ConvertsRowsOfZerosAndOfTinyValues) {
  constexpr int64_t kWidth = 32;
  std::vector<float> row(kWidth);
  for (const float value : {0.0f, 1e-38f, 1e-20f, 1e30f}) {
    std::vector<float> in(kWidth, value);
    in[7] = -value;
    ProductOutput y;
    y.data = in.data();
    for (const int zero : {64, 128}) {
      const Written next({"", Element::kU8, zero}, 1, kWidth);
      kernels().convert(y, 1, kWidth, row.data(), next.view);
      for (int64_t i = 0; i < kWidth; ++i) {
        EXPECT_NEAR(next.Value(0, i), in[i], 1e-30 + 1e-6 * value) << value;
      }
    }
  }
}

// To nearest, ties to even, as ToBf16 has it.
TEST_P(VectorKernelsTest, RoundsToBf16AsTheRestOfTheCode) {
  constexpr int64_t kWidth = 1024;
  std::vector<float> in(kWidth), row(kWidth);
  for (int64_t i = 0; i < kWidth; ++i) {
    // All halves between neighbours, and what lies just beside them.
    in[i] = std::bit_cast<float>(static_cast<uint32_t>(
        0x3f800000 + i / 3 * 0x8000 + static_cast<uint32_t>(i % 3) - 1));
    if (i % 2 == 1) in[i] = -in[i];
  }
  ProductOutput y;
  y.data = in.data();
  const Written next({"", Element::kBf16}, 1, kWidth);
  kernels().convert(y, 1, kWidth, row.data(), next.view);
  for (int64_t i = 0; i < kWidth; ++i) {
    ASSERT_EQ(next.Value(0, i), ToFloat(ToBf16(in[i]))) << i;
  }
}

TEST_P(VectorKernelsTest, TanhIsWithinAMillionth) {
  std::vector<float> x;
  for (double v = -20; v < 20; v += 0.001) x.push_back(static_cast<float>(v));
  for (const float v : {-1e30f, -1e4f, 0.0f, 1e-20f, 1e4f, 1e30f}) {
    x.push_back(v);
  }
  x.resize(Width(static_cast<int64_t>(x.size())));
  const std::vector<float> before = x;
  kernels().tanh(static_cast<int64_t>(x.size()), x.data());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(x[i], std::tanh(double{before[i]}), 1e-6) << before[i];
  }
}

// ---------------------------------------------------------------- attention

struct AttentionShape {
  int64_t length, heads, head_width;
  Element type = Element::kF32;

  int64_t width() const { return heads * head_width; }
};

// One sequence's queries, keys and values, with NaN before and after them, and
// its context, with a mark before and after.
class Attention {
 public:
  Attention(const AttentionShape& shape, std::vector<float> qkv)
      : shape_(shape),
        qkv_(std::move(qkv)),
        scratch_(AttentionScratch(shape.length, shape.head_width) + 1, NAN) {
    if (shape.type == Element::kBf16) {
      for (float& x : qkv_) x = ToFloat(ToBf16(x));
    }
    const int64_t guard = kGuardRows * 3 * shape.width();
    guarded_.resize((guard * 2 + qkv_.size()) * Bytes(), 0xff);  // NaN
    for (size_t i = 0; i < qkv_.size(); ++i) {
      Put(qkv_[i], guarded_.data() + (guard + i) * Bytes());
    }
    scratch_.back() = kMark;
  }

  void Run(const VectorKernels& kernels, int64_t first_query, int64_t queries) {
    first_query_ = first_query;
    const int64_t before = kGuardRows * shape_.width();
    const int64_t inside = queries * shape_.width();
    std::vector<uint8_t> context((2 * before + inside) * Bytes(), 0xff);
    AttentionTask task;
    task.type = shape_.type;
    task.qkv = guarded_.data() + kGuardRows * 3 * shape_.width() * Bytes();
    task.length = shape_.length;
    task.first_query = first_query;
    task.queries = queries;
    task.heads = shape_.heads;
    task.head_width = shape_.head_width;
    task.context = context.data() + before * Bytes();
    task.scratch = scratch_.data();
    kernels.attend(task);
    EXPECT_EQ(scratch_.back(), kMark);
    context_.clear();
    for (int64_t i = 0; i < 2 * before + inside; ++i) {
      const float value = Get(context.data() + i * Bytes());
      if (i < before || i >= before + inside) {
        ASSERT_TRUE(std::isnan(value)) << "beyond the context";
      } else {
        context_.push_back(value);
      }
    }
  }

  // Of the last Run, (queries, width).
  const std::vector<float>& context() const { return context_; }

  // Against the formula in double precision. fp32: within 1e-5 of values of
  // around 1. bf16: each weight is rounded (2^-8) and of a rough exponential
  // (8e-5), and so is the sum.
  void Check() const {
    const int64_t width = shape_.width();
    const auto queries = static_cast<int64_t>(context_.size()) / width;
    std::vector<double> weights(shape_.length);
    for (int64_t h = 0; h < shape_.heads; ++h) {
      const float* const head = qkv_.data() + h * shape_.head_width;
      for (int64_t q = 0; q < queries; ++q) {
        const float* const query = head + (first_query_ + q) * 3 * width;
        double most = -INFINITY, sum = 0;
        for (int64_t k = 0; k < shape_.length; ++k) {
          const float* const key = head + k * 3 * width + width;
          double score = 0;
          for (int64_t i = 0; i < shape_.head_width; ++i) {
            score += double{query[i]} * key[i];
          }
          weights[k] = score;
          most = std::max(most, score);
        }
        for (double& weight : weights) {
          weight = std::exp2(weight - most);
          sum += weight;
        }
        for (int64_t i = 0; i < shape_.head_width; ++i) {
          double value = 0, magnitude = 0;
          for (int64_t k = 0; k < shape_.length; ++k) {
            const double part =
                weights[k] / sum * head[k * 3 * width + 2 * width + i];
            value += part;
            magnitude += std::abs(part);
          }
          const double tolerance =
              shape_.type == Element::kF32
                  ? 1e-5
                  : 1e-5 + (0x1p-8 + 2e-4) * magnitude + Bf16Rounding(value);
          ASSERT_NEAR(context_[q * width + h * shape_.head_width + i], value,
                      tolerance)
              << "head " << h << ", query " << first_query_ + q << ", column "
              << i;
        }
      }
    }
  }

 private:
  static constexpr int64_t kGuardRows = 40;
  static constexpr float kMark = 42;

  int64_t Bytes() const { return shape_.type == Element::kF32 ? 4 : 2; }
  void Put(float x, uint8_t* at) const {
    const Bf16 half = ToBf16(x);
    memcpy(at,
           shape_.type == Element::kF32 ? static_cast<const void*>(&x) : &half,
           Bytes());
  }
  float Get(const uint8_t* at) const {
    uint32_t bits = 0;
    memcpy(&bits, at, Bytes());
    return std::bit_cast<float>(shape_.type == Element::kF32 ? bits
                                                             : bits << 16);
  }

  const AttentionShape shape_;
  std::vector<float> qkv_;  // (length, 3 width), as rounded
  std::vector<uint8_t> guarded_;
  std::vector<float> scratch_;
  int64_t first_query_ = 0;
  std::vector<float> context_;
};

class VectorAttentionTest : public VectorKernelsTest {
 protected:
  // Queries are scaled so that scores vary by `spread`.
  std::vector<float> Rows(const AttentionShape& shape, float spread) {
    std::normal_distribution<float> normal;
    const auto factor = static_cast<float>(
        spread / std::sqrt(static_cast<double>(shape.head_width)));
    std::vector<float> out(shape.length * 3 * shape.width());
    for (size_t i = 0; i < out.size(); ++i) {
      const bool is_query =
          static_cast<int64_t>(i) % (3 * shape.width()) < shape.width();
      out[i] = normal(random_) * (is_query ? factor : 1);
    }
    return out;
  }
};

INSTANTIATE_TEST_SUITE_P(Isas, VectorAttentionTest, ::testing::ValuesIn(Isas()),
                         NameOf);

TEST_P(VectorAttentionTest, WeighsTheValuesOfItsSequenceAlone) {
  for (const Element type : {Element::kF32, Element::kBf16}) {
    for (const int64_t head_width : {32, 64, 96}) {
      for (const int64_t length :
           {1, 2, 3, 8, 15, 16, 17, 31, 33, 100, 128, 512}) {
        if (length > 128 && head_width != 64) continue;
        const AttentionShape shape = {length, length > 128 ? 1 : 3, head_width,
                                      type};
        Attention attention(shape, Rows(shape, 2));
        // All queries, the first one, and some in the middle and at the end.
        for (const auto& [first, queries] :
             std::vector<std::pair<int64_t, int64_t>>{
                 {0, length > 128 ? 21 : length},
                 {0, 1},
                 {length / 2, length > 128 ? 35 : length - length / 2},
                 {length / 3, std::min<int64_t>(length - length / 3, 7)},
                 {length - 1, 1}}) {
          SCOPED_TRACE(testing::Message()
                       << "type " << static_cast<int>(type) << ", length "
                       << length << ", heads of " << head_width << ", queries "
                       << first << " + " << queries);
          attention.Run(kernels(), first, queries);
          attention.Check();
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(VectorAttentionTest, GivesAQueryTheSameBitsInAnyRange) {
  for (const Element type : {Element::kF32, Element::kBf16}) {
    const AttentionShape shape = {37, 2, 32, type};
    Attention attention(shape, Rows(shape, 2));
    attention.Run(kernels(), 0, shape.length);
    const std::vector<float> all = attention.context();
    for (int64_t first = 0; first < shape.length; ++first) {
      for (const int64_t queries : {1, 2, 3, 9, 17}) {
        if (first + queries > shape.length) continue;
        attention.Run(kernels(), first, queries);
        for (size_t i = 0; i < attention.context().size(); ++i) {
          ASSERT_EQ(attention.context()[i], all[first * shape.width() + i])
              << first << " + " << queries;
        }
      }
    }
  }
}

// Scores of which 2 to the power of is no float.
TEST_P(VectorAttentionTest, BearsHugeScores) {
  for (const Element type : {Element::kF32, Element::kBf16}) {
    for (const int64_t length : {1, 2, 17, 33}) {
      for (const float size : {-1e15f, -3e3f, 3e3f, 1e15f}) {
        const AttentionShape shape = {length, 2, 32, type};
        std::vector<float> rows = Rows(shape, 1);
        for (int64_t r = 0; r < length; ++r) {
          // All keys alike: scores are equal, about `size` squared.
          for (int64_t i = 0; i < 2 * shape.width(); ++i) {
            rows[r * 3 * shape.width() + i] =
                i < shape.width() ? size : std::abs(size);
          }
        }
        Attention attention(shape, rows);
        attention.Run(kernels(), 0, length);
        attention.Check();
        if (HasFatalFailure()) return;
        // One key that takes all of the weight.
        for (int64_t i = 0; i < shape.width(); ++i) {
          rows[length / 2 * 3 * shape.width() + shape.width() + i] *=
              size > 0 ? 2 : 0.5f;
        }
        Attention chosen(shape, rows);
        chosen.Run(kernels(), 0, length);
        chosen.Check();
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace vitrine
