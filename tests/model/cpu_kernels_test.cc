#include "model/cpu_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace vitrine {
namespace {

// Sizes with and without remainders of every vector width.
constexpr int kSizes[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 48, 100, 384};

float ToFloat(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
float ToFloat(float x) { return x; }

void Assign(float value, float* x) { *x = value; }
void Assign(float value, Bf16* x) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  x->bits = static_cast<uint16_t>(bits >> 16);  // a test's input: any rounding
}

// Half a unit in the last place of bf16 at `x`, and a little for fp32's noise.
double Bf16Rounding(double x) {
  return std::ldexp(1.02, std::ilogb(std::max(std::abs(x), 1e-30)) - 8);
}

template <typename T>
class CpuKernelsTest : public ::testing::Test {
 protected:
  std::vector<float> Floats(size_t n, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> out(n);
    for (float& x : out) x = normal(random_);
    return out;
  }
  std::vector<T> Values(size_t n, float scale = 1) {
    std::vector<T> out(n);
    for (T& x : out) Assign(Floats(1, scale)[0], &x);
    return out;
  }
  static double Tolerance(double x) {
    return std::is_same_v<T, float> ? 2e-6 + 2e-6 * std::abs(x)
                                    : 2e-6 + Bf16Rounding(x);
  }

  std::mt19937 random_{5};
};

using Types = ::testing::Types<float, Bf16>;
TYPED_TEST_SUITE(CpuKernelsTest, Types);

TYPED_TEST(CpuKernelsTest, ActivatesAsTheFormulasSay) {
  const std::vector<std::pair<Activation, double (*)(double)>> cases = {
      {Activation::kGelu,
       [](double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }},
      {Activation::kGeluTanh,
       [](double x) {
         return 0.5 * x *
                (1 +
                 std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
       }},
      {Activation::kRelu, [](double x) { return x > 0 ? x : 0; }}};
  for (const auto& [activation, formula] : cases) {
    // A sweep over what matters and far beyond.
    std::vector<TypeParam> x;
    for (double v = -30; v < 30; v += 0.003) {
      x.emplace_back();
      Assign(static_cast<float>(v), &x.back());
    }
    for (const float v : {-1e30f, -1e4f, 1e4f, 1e30f}) {
      x.emplace_back();
      Assign(v, &x.back());
    }
    const std::vector<TypeParam> before = x;
    const std::vector<float> bias(x.size(), 0.0f);
    AddBiasAndActivate(activation, bias.data(), 1, x.size(), x.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double in = ToFloat(before[i]);
      const double expected = formula(in);
      // Beyond 5 the polynomial's end leaves 3e-7 of x.
      const double slack = in < -5 ? 4e-7 * -in : 0;
      ASSERT_NEAR(ToFloat(x[i]), expected, this->Tolerance(expected) + slack)
          << "activation " << static_cast<int>(activation) << " of " << in;
    }
  }
}

TYPED_TEST(CpuKernelsTest, AddsTheBiasOfEachColumn) {
  for (const int size : kSizes) {
    std::vector<TypeParam> x = this->Values(3 * size);
    const std::vector<TypeParam> before = x;
    const std::vector<float> bias = this->Floats(size);
    AddBiasAndActivate(Activation::kRelu, bias.data(), 3, size, x.data());
    for (int i = 0; i < 3 * size; ++i) {
      const double expected =
          std::max(ToFloat(before[i]) + bias[i % size], 0.0f);
      ASSERT_NEAR(ToFloat(x[i]), expected, this->Tolerance(expected)) << size;
    }
  }
}

TYPED_TEST(CpuKernelsTest, AddsAndNormalizesEachRow) {
  for (const int size : kSizes) {
    if (size == 1) continue;  // its variance is none
    const int rows = 3;
    const std::vector<TypeParam> y = this->Values(rows * size);
    std::vector<float> x = this->Floats(rows * size);
    const std::vector<float> before = x;
    const std::vector<float> y_bias = this->Floats(size);
    const std::vector<float> weight = this->Floats(size);
    const std::vector<float> bias = this->Floats(size);
    std::vector<Bf16> copy(rows * size);
    AddAndNormalize(y.data(), y_bias.data(), weight.data(), bias.data(), 1e-5f,
                    rows, size, x.data(), copy.data());
    for (int r = 0; r < rows; ++r) {
      std::vector<double> sums(size);
      double mean = 0, variance = 0;
      for (int i = 0; i < size; ++i) {
        sums[i] =
            double{before[r * size + i]} + ToFloat(y[r * size + i]) + y_bias[i];
        mean += sums[i] / size;
      }
      for (const double sum : sums) {
        variance += (sum - mean) * (sum - mean) / size;
      }
      for (int i = 0; i < size; ++i) {
        const double expected =
            (sums[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
        ASSERT_NEAR(x[r * size + i], expected, 1e-4) << size;
        ASSERT_NEAR(ToFloat(copy[r * size + i]), x[r * size + i],
                    Bf16Rounding(x[r * size + i]));
      }
    }
    // Without a copy the same comes out.
    std::vector<float> again = before;
    AddAndNormalize(y.data(), y_bias.data(), weight.data(), bias.data(), 1e-5f,
                    rows, size, again.data(), nullptr);
    EXPECT_EQ(again, x);
  }
}

TYPED_TEST(CpuKernelsTest, SoftmaxSeesItsTokensOnly) {
  for (const int tokens : kSizes) {
    for (const int padding : {0, 1, 5, 20}) {
      const int length = tokens + padding;
      std::vector<TypeParam> x = this->Values(2 * length, 10);
      for (int i = tokens; i < length; ++i) Assign(NAN, &x[i]);
      const std::vector<TypeParam> before = x;
      SoftmaxRows(2, length, tokens, x.data());
      for (int r = 0; r < 2; ++r) {
        double most = -INFINITY, sum = 0;
        for (int i = 0; i < tokens; ++i) {
          most = std::max<double>(most, ToFloat(before[r * length + i]));
        }
        for (int i = 0; i < tokens; ++i) {
          sum += std::exp(ToFloat(before[r * length + i]) - most);
        }
        for (int i = 0; i < length; ++i) {
          const double expected =
              i < tokens
                  ? std::exp(ToFloat(before[r * length + i]) - most) / sum
                  : 0;
          ASSERT_NEAR(ToFloat(x[r * length + i]), expected,
                      this->Tolerance(expected))
              << tokens << " of " << length;
          if (i >= tokens) {
            ASSERT_EQ(ToFloat(x[r * length + i]), 0);
          }
        }
      }
    }
  }
}

TYPED_TEST(CpuKernelsTest, SoftmaxBearsAnySize) {
  for (const float value : {-3e38f, -1e4f, 0.0f, 1e4f, 3e38f}) {
    std::vector<TypeParam> x(20);
    for (TypeParam& v : x) Assign(value, &v);
    SoftmaxRows(1, 20, 20, x.data());
    for (const TypeParam v : x) {
      EXPECT_NEAR(ToFloat(v), 0.05, this->Tolerance(0.05));
    }
  }
}

TYPED_TEST(CpuKernelsTest, SplitsAndMergesHeads) {
  for (const int size : {3, 8, 32, 64}) {
    const HeadShape shape{/*heads=*/2, size, /*length=*/5};
    const int tokens = 3, hidden = 2 * size;
    const std::vector<TypeParam> qkv = this->Values(tokens * 3 * hidden);
    const std::vector<float> bias = this->Floats(3 * hidden);
    std::vector<TypeParam> parts[3];
    for (auto& part : parts) part = this->Values(2 * 5 * size);  // not zeros
    SplitHeads(qkv.data(), bias.data(), 0.25f, tokens, shape, parts[0].data(),
               parts[1].data(), parts[2].data());
    for (int p = 0; p < 3; ++p) {
      for (int h = 0; h < 2; ++h) {
        for (int t = 0; t < 5; ++t) {
          for (int i = 0; i < size; ++i) {
            const int column = p * hidden + h * size + i;
            const double expected =
                t >= tokens
                    ? 0
                    : (ToFloat(qkv[t * 3 * hidden + column]) + bias[column]) *
                          (p == 0 ? 0.25 : 1);
            ASSERT_NEAR(ToFloat(parts[p][(h * 5 + t) * size + i]), expected,
                        this->Tolerance(expected));
          }
        }
      }
    }
    std::vector<TypeParam> merged(tokens * hidden);
    MergeHeads(parts[1].data(), tokens, shape, merged.data());
    for (int t = 0; t < tokens; ++t) {
      for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < size; ++i) {
          ASSERT_EQ(ToFloat(merged[t * hidden + h * size + i]),
                    ToFloat(parts[1][(h * 5 + t) * size + i]));
        }
      }
    }
  }
}

TEST(EmbedAndNormalizeTest, NormalizesTheSumOfThree) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int size : {2, 16, 33, 384}) {
    std::vector<float> rows[5];
    for (auto& row : rows) {
      row.resize(size);
      for (float& x : row) x = normal(random);
    }
    std::vector<float> out(size);
    std::vector<Bf16> copy(size);
    EmbedAndNormalize({rows[0].data(), rows[1].data(), rows[2].data()},
                      rows[3].data(), rows[4].data(), 1e-12f, size, out.data(),
                      copy.data());
    double mean = 0, variance = 0;
    const auto sum = [&rows](int i) {
      return double{rows[0][i]} + rows[1][i] + rows[2][i];
    };
    for (int i = 0; i < size; ++i) mean += sum(i) / size;
    for (int i = 0; i < size; ++i) {
      variance += (sum(i) - mean) * (sum(i) - mean) / size;
    }
    for (int i = 0; i < size; ++i) {
      const double expected =
          (sum(i) - mean) / std::sqrt(variance) * rows[3][i] + rows[4][i];
      ASSERT_NEAR(out[i], expected, 1e-4);
      ASSERT_NEAR(ToFloat(copy[i]), out[i], Bf16Rounding(out[i]));
    }
  }
}

}  // namespace
}  // namespace vitrine
