#include "model/packed_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace vitrine {
namespace {

constexpr int64_t kHeads = 2, kSize = 32, kHidden = kHeads * kSize;

// Sequence by sequence and head by head, with LibTorch's own functions.
at::Tensor Reference(const at::Tensor& qkv,
                     const std::vector<int32_t>& offsets) {
  std::vector<at::Tensor> sequences;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const at::Tensor rows =
        qkv.narrow(0, offsets[s], offsets[s + 1] - offsets[s]);
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto part = [&](int64_t which) {
        return rows.narrow(1, which * kHidden + h * kSize, kSize);
      };
      const at::Tensor weights =
          at::softmax(at::mm(part(0), part(1).t()) / std::sqrt(kSize), 1);
      heads.push_back(at::mm(weights, part(2)));
    }
    sequences.push_back(at::cat(heads, 1));
  }
  return at::cat(sequences);
}

class PackedAttentionTest : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  // One token, odd lengths, and more than a tile of the kernels.
  const std::vector<int32_t> offsets_ = {0, 1, 8, 41, 41 + 130};
};

TEST_P(PackedAttentionTest, IsAttentionWithItsGradient) {
  at::manual_seed(3);
  const at::Tensor values = at::randn({offsets_.back(), 3 * kHidden});
  const at::Tensor by_out = at::randn({offsets_.back(), kHidden});
  const at::Tensor rounded = values.to(GetParam());
  at::Tensor ours = rounded.clone().requires_grad_();
  at::Tensor reference = rounded.to(at::kFloat).clone().requires_grad_();

  const at::Tensor out = PackedAttention(ours, offsets_, kHeads);
  out.backward(by_out.to(GetParam()));
  const at::Tensor expected = Reference(reference, offsets_);
  expected.backward(by_out.to(GetParam()).to(at::kFloat));

  EXPECT_EQ(out.scalar_type(), GetParam());
  // bf16 is what memory holds; sums are in fp32.
  const double tolerance = GetParam() == at::kFloat ? 1e-5 : 1e-2;
  const auto relative = [](const at::Tensor& a, const at::Tensor& b) {
    return ((a.to(at::kFloat) - b).abs().max() / b.abs().max()).item<double>();
  };
  EXPECT_LT(relative(out.detach(), expected.detach()), tolerance);
  EXPECT_LT(relative(ours.grad(), reference.grad()), tolerance);
}

TEST_P(PackedAttentionTest, NeighboursChangeNothing) {
  at::manual_seed(4);
  const at::Tensor values =
      at::randn({offsets_.back(), 3 * kHidden}).to(GetParam());
  const at::Tensor all = PackedAttention(values, offsets_, kHeads);
  for (size_t s = 0; s + 1 < offsets_.size(); ++s) {
    const int32_t length = offsets_[s + 1] - offsets_[s];
    const at::Tensor alone = PackedAttention(
        values.narrow(0, offsets_[s], length), {0, length}, kHeads);
    EXPECT_TRUE(all.narrow(0, offsets_[s], length).equal(alone))
        << "sequence " << s;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PackedAttentionTest,
                         ::testing::Values(at::kFloat, at::kBFloat16));

}  // namespace
}  // namespace vitrine
