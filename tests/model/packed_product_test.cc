#include "model/packed_product.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace vitrine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMaxRows = 512;

float ToFloat(Bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// oneDNN 2.6 multiplies bf16 from AVX-512 on.
bool Has(ProductType type) {
  return type != ProductType::kBf16 || EffectiveCpuIsa() >= CpuIsa::kAvx512;
}

// A product's inputs and what comes out of them, by plain loops.
class Example {
 public:
  explicit Example(const ProductShape& shape) : shape_(shape) {
    weights_.resize(shape.from * shape.to);
    if (shape.type == ProductType::kInt8) {
      std::uniform_int_distribution<int> steps(-127, 127);
      // What HasExactInt8 says may be multiplied.
      std::uniform_int_distribution<int> bytes(0, HasExactInt8() ? 255 : 127);
      for (float& w : weights_) w = static_cast<float>(steps(random_));
      bytes_.resize(kMaxRows * shape.from);
      for (uint8_t& x : bytes_) x = static_cast<uint8_t>(bytes(random_));
    } else {
      Fill(&weights_);
      floats_.resize(kMaxRows * shape.from);
      Fill(&floats_);
      if (shape.type == ProductType::kBf16) {
        for (const float x : floats_) bf16_.push_back(ToBf16(x));
      }
    }
    if (shape.bias) {
      bias_.resize(shape.to);
      Fill(&bias_);
    }
  }

  // All inputs and weights the same.
  void FillWith(int byte, int weight) {
    std::fill(bytes_.begin(), bytes_.end(), static_cast<uint8_t>(byte));
    std::fill(weights_.begin(), weights_.end(), static_cast<float>(weight));
  }

  absl::StatusOr<std::shared_ptr<const ProductCode>> MakeCode() const {
    return ProductCode::Create(shape_);
  }
  const std::vector<float>& weights() const { return weights_; }
  const std::vector<float>& bias() const { return bias_; }

  void Expect() {
    expected_.assign(kMaxRows * shape_.to, 0);
    magnitudes_.assign(kMaxRows * shape_.to, 0);
    for (int64_t r = 0; r < kMaxRows; ++r) {
      for (int64_t n = 0; n < shape_.to; ++n) {
        double sum = shape_.bias ? bias_[n] : 0, magnitude = 0;
        for (int64_t k = 0; k < shape_.from; ++k) {
          const double part =
              double{Input(r * shape_.from + k)} * Weight(n * shape_.from + k);
          sum += part;
          magnitude += std::abs(part);
        }
        expected_[r * shape_.to + n] = sum;
        magnitudes_[r * shape_.to + n] = magnitude;
      }
    }
  }

  // Multiplies the first `rows` rows and compares.
  void Check(const ProductCode& code, const ProductCode::Weights& weights,
             int64_t rows, ProductContext* context) const {
    std::vector<std::byte> y(rows * shape_.to * 4 + 64, std::byte{0x5a});
    const absl::Status status =
        code.Run(weights, Data(), y.data(), rows, context);
    ASSERT_TRUE(status.ok()) << status;
    Compare(y, rows, {0, shape_.to});
  }
  // The same for each part of the columns.
  void CheckParts(const ProductCode& code, const ProductCode::Weights& weights,
                  int64_t rows, ProductContext* context) const {
    for (size_t p = 0; p < code.parts().size(); ++p) {
      std::vector<std::byte> y(rows * shape_.to * 4 + 64, std::byte{0x5a});
      const absl::Status status = code.RunPart(static_cast<int>(p), weights,
                                               Data(), y.data(), rows, context);
      ASSERT_TRUE(status.ok()) << status;
      Compare(y, rows, code.parts()[p]);
    }
  }

 private:
  // `y` (rows, columns) with what is expected. fp32: within 1e-6 of what was
  // added up; bf16: half a step more, since the sum is rounded; int8: exactly.
  void Compare(const std::vector<std::byte>& y, int64_t rows,
               ProductCode::Columns columns) const {
    const int64_t width = columns.end - columns.begin;
    const bool half = shape_.type == ProductType::kBf16;
    for (int64_t at_y = 0; at_y < rows * width; ++at_y) {
      const int64_t i = at_y / width * shape_.to + columns.begin + at_y % width;
      const std::byte* const at = y.data() + at_y * (half ? 2 : 4);
      double value, tolerance = 0;
      if (shape_.type == ProductType::kInt8) {
        int32_t x;
        memcpy(&x, at, 4);
        value = x;
      } else {
        uint32_t bits = 0;
        memcpy(&bits, at, half ? 2 : 4);
        value = std::bit_cast<float>(half ? bits << 16 : bits);
        tolerance = 1e-6 * (1 + magnitudes_[i]);
        if (half) tolerance += std::abs(expected_[i]) * 0x1.02p-8;
      }
      ASSERT_NEAR(value, expected_[i], tolerance)
          << "row " << i / shape_.to << " of " << rows << ", column "
          << i % shape_.to;
    }
    for (size_t i = rows * width * (half ? 2 : 4); i < y.size(); ++i) {
      ASSERT_EQ(y[i], std::byte{0x5a}) << "beyond the output";
    }
  }

  void Fill(std::vector<float>* out) {
    std::normal_distribution<float> normal;
    for (float& x : *out) x = normal(random_);
  }
  const void* Data() const {
    switch (shape_.type) {
      case ProductType::kInt8:
        return bytes_.data();
      case ProductType::kBf16:
        return bf16_.data();
      default:
        return floats_.data();
    }
  }
  float Input(int64_t i) const {
    switch (shape_.type) {
      case ProductType::kInt8:
        return bytes_[i];
      case ProductType::kBf16:
        return ToFloat(bf16_[i]);
      default:
        return floats_[i];
    }
  }
  float Weight(int64_t i) const {
    return shape_.type == ProductType::kBf16 ? ToFloat(ToBf16(weights_[i]))
                                             : weights_[i];
  }

  const ProductShape shape_;
  std::mt19937 random_{7};
  std::vector<float> weights_, bias_, floats_;
  std::vector<Bf16> bf16_;
  std::vector<uint8_t> bytes_;
  std::vector<double> expected_, magnitudes_;
};

class PackedProductTest : public ::testing::TestWithParam<ProductType> {
 protected:
  void SetUp() override {
    if (!Has(GetParam())) {
      GTEST_SKIP() << "this processor has no products of bf16";
    }
  }
  ProductShape Shape(int64_t from, int64_t to) const {
    return {.type = GetParam(),
            .from = from,
            .to = to,
            .bias = GetParam() != ProductType::kInt8};
  }
};

std::string NameOf(const ::testing::TestParamInfo<ProductType>& info) {
  return info.param == ProductType::kF32    ? "f32"
         : info.param == ProductType::kBf16 ? "bf16"
                                            : "int8";
}

INSTANTIATE_TEST_SUITE_P(Types, PackedProductTest,
                         ::testing::Values(ProductType::kF32,
                                           ProductType::kBf16,
                                           ProductType::kInt8),
                         NameOf);

TEST_P(PackedProductTest, AgreesWithPlainLoopsForAnyRows) {
  for (const auto& [from, to] : std::vector<std::pair<int64_t, int64_t>>{
           {32, 32}, {96, 32}, {32, 96}, {160, 352}, {320, 1024}, {544, 96}}) {
    Example example(Shape(from, to));
    example.Expect();
    const auto code = example.MakeCode();
    ASSERT_TRUE(code.ok()) << code.status();
    const auto weights = (*code)->Pack(example.weights(), example.bias());
    ASSERT_TRUE(weights.ok()) << weights.status();
    ProductContext context;
    const int64_t step = from * to > 100000 ? 7 * kRowStep : kRowStep;
    for (int64_t rows = kRowStep; rows <= kMaxRows; rows += step) {
      SCOPED_TRACE(testing::Message() << from << " to " << to);
      example.Check(**code, **weights, rows, &context);
      if (HasFatalFailure()) return;
    }
    // What a product of no rows writes: nothing.
    example.Check(**code, **weights, 0, &context);
  }
}

TEST_P(PackedProductTest, PartsOfColumnsAreThoseOfTheWhole) {
  for (const auto& [from, to] : std::vector<std::pair<int64_t, int64_t>>{
           {32, 32}, {96, 96}, {160, 352}, {320, 1024}}) {
    for (const int wanted : {1, 2, 3, 8}) {
      ProductShape shape = Shape(from, to);
      shape.parts = wanted;
      Example example(shape);
      const auto code = example.MakeCode();
      ASSERT_TRUE(code.ok()) << code.status();
      const std::vector<ProductCode::Columns>& parts = (*code)->parts();
      SCOPED_TRACE(testing::Message()
                   << from << " to " << to << " in " << wanted);
      if (parts.empty()) {
        // Where oneDNN does not pack columns, and for a single part.
        EXPECT_TRUE(wanted == 1 || to <= 64 ||
                    EffectiveCpuIsa() < CpuIsa::kAvx512);
        continue;
      }
      EXPECT_LE(parts.size(), wanted);
      EXPECT_GE(parts.size(), std::min<int64_t>(wanted, (to + 63) / 64));
      int64_t next = 0;
      for (const ProductCode::Columns& part : parts) {
        EXPECT_EQ(part.begin, next);
        EXPECT_GT(part.end, part.begin);
        next = part.end;
      }
      EXPECT_EQ(next, to);
      example.Expect();
      const auto weights = (*code)->Pack(example.weights(), example.bias());
      ASSERT_TRUE(weights.ok()) << weights.status();
      ProductContext context;
      for (int64_t rows = kRowStep; rows <= kMaxPartRows; rows += kRowStep) {
        example.CheckParts(**code, **weights, rows, &context);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(PackedProductTest, SharesCodeAndWeightsAmongThreads) {
  Example example(Shape(96, 160));
  example.Expect();
  const auto code = example.MakeCode();
  ASSERT_TRUE(code.ok()) << code.status();
  const auto weights = (*code)->Pack(example.weights(), example.bias());
  ASSERT_TRUE(weights.ok()) << weights.status();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      ProductContext context;
      for (int64_t rows = kRowStep * (t + 1); rows <= 320; rows += 64) {
        example.Check(**code, **weights, rows, &context);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(PackedProductTest, OneContextServesProductsOfAllSizes) {
  ProductContext context;
  for (const int64_t size : {32, 320, 64, 352}) {
    Example example(Shape(size, 96));
    example.Expect();
    const auto code = example.MakeCode();
    ASSERT_TRUE(code.ok()) << code.status();
    const auto weights = (*code)->Pack(example.weights(), example.bias());
    ASSERT_TRUE(weights.ok()) << weights.status();
    example.Check(**code, **weights, 48, &context);
  }
}

TEST_P(PackedProductTest, RefusesWeightsOfAnotherShape) {
  const Example example(Shape(64, 96));
  const auto code = example.MakeCode();
  ASSERT_TRUE(code.ok()) << code.status();
  std::vector<float> weights = example.weights(), bias = example.bias();
  weights.pop_back();
  const absl::Status missing = (*code)->Pack(weights, bias).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(missing.message()),
              HasSubstr("a product of 64 to 96: 6143 weights"));
  bias.push_back(0);
  EXPECT_EQ((*code)->Pack(example.weights(), bias).status().code(),
            absl::StatusCode::kInternal);
}

TEST_P(PackedProductTest, SaysWhatPackedWeightsTake) {
  const Example example(Shape(320, 1024));
  const auto code = example.MakeCode();
  ASSERT_TRUE(code.ok()) << code.status();
  const auto weights = (*code)->Pack(example.weights(), example.bias());
  ASSERT_TRUE(weights.ok()) << weights.status();
  const int64_t bytes = GetParam() == ProductType::kF32    ? 4
                        : GetParam() == ProductType::kBf16 ? 2
                                                           : 1;
  EXPECT_GE(ProductCode::SizeBytes(**weights), 320 * 1024 * bytes);
  EXPECT_LE(ProductCode::SizeBytes(**weights),
            320 * 1024 * bytes + 8 * 1024 + 4096);
}

// Where pairs of products are added up in 16 bits, these are the first to be
// cut off: on such a processor inputs have 7 bits.
TEST(PackedInt8Test, IsExactOnTheLargestInputs) {
  const int most = HasExactInt8() ? 255 : 127;
  for (const int weight : {127, -127}) {
    Example example({ProductType::kInt8, 1056, 96});
    example.FillWith(most, weight);
    example.Expect();
    const auto code = example.MakeCode();
    ASSERT_TRUE(code.ok()) << code.status();
    const auto weights = (*code)->Pack(example.weights(), {});
    ASSERT_TRUE(weights.ok()) << weights.status();
    ProductContext context;
    for (const int64_t rows : {16, 48, 272}) {
      example.Check(**code, **weights, rows, &context);
    }
  }
}

// ONEDNN_MAX_CPU_ISA caps what oneDNN uses and what our kernels use.
TEST(CpuIsaTest, IsWhatTheProcessorHasAndOneDnnMayUse) {
  const CpuIsa isa = EffectiveCpuIsa();
  EXPECT_LE(isa, BestCpuIsa());
  const char* const variable = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string cap = variable == nullptr ? "ALL" : variable;
  if (cap == "AVX2") {
    EXPECT_LE(isa, CpuIsa::kAvx2);
    EXPECT_FALSE(HasFastBf16());
    EXPECT_FALSE(HasExactInt8());
  } else if (cap == "AVX512_CORE") {
    EXPECT_LE(isa, CpuIsa::kAvx512);
    EXPECT_FALSE(HasFastBf16());
    EXPECT_FALSE(HasExactInt8());
  } else if (cap == "AVX512_CORE_VNNI") {
    EXPECT_LE(isa, CpuIsa::kAvx512);
    EXPECT_FALSE(HasFastBf16());
  } else if (cap == "ALL") {
    EXPECT_EQ(isa, BestCpuIsa());
    EXPECT_EQ(HasFastBf16(), isa == CpuIsa::kAvx512Bf16);
  }
}

TEST(CpuIsaTest, HasNoProductsOfBf16WithoutAvx512) {
  const absl::Status status =
      ProductCode::Create({ProductType::kBf16, 64, 64}).status();
  if (Has(ProductType::kBf16)) {
    EXPECT_TRUE(status.ok()) << status;
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  }
}

}  // namespace
}  // namespace vitrine
