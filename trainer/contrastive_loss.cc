#include "trainer/contrastive_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <vector>

namespace vitrine {
namespace {

// (pairs, pairs): minus a lot where the column's key is the row's own but the
// place is not.
at::Tensor ForbidEqual(absl::Span<const uint64_t> keys) {
  const auto n = static_cast<int64_t>(keys.size());
  std::vector<float> shift(n * n);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      if (r != c && keys[r] == keys[c]) shift[r * n + c] = -1e9f;
    }
  }
  return at::tensor(shift).view({n, n});
}

int64_t CountFound(const at::Tensor& logits) {
  const at::NoGradGuard no_grad;
  const at::Tensor own = logits.diagonal();
  return own.ge(std::get<0>(logits.max(1))).sum().item<int64_t>();
}

}  // namespace

at::Tensor ContrastiveLoss(const at::Tensor& vectors,
                           absl::Span<const uint64_t> keys, double temperature,
                           int64_t* found) {
  const int64_t pairs = vectors.size(0) / 2;
  const at::Tensor cosines =
      at::mm(vectors.narrow(0, 0, pairs), vectors.narrow(0, pairs, pairs).t()) /
      temperature;
  const at::Tensor rows = cosines + ForbidEqual(keys.subspan(pairs));
  const at::Tensor columns = cosines.t() + ForbidEqual(keys.subspan(0, pairs));
  if (found != nullptr) *found = CountFound(rows) + CountFound(columns);
  return -(at::log_softmax(rows, 1).diagonal().sum() +
           at::log_softmax(columns, 1).diagonal().sum());
}

}  // namespace vitrine
