#include "trainer/engine_inference.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/status_macros.h"

namespace vitrine {
namespace {

// Enough to fill the matrix products.
constexpr int kBatchTokens = 4096;

}  // namespace

absl::StatusOr<std::vector<std::vector<float>>> RunHeads(
    const Engine& engine, absl::Span<const int> heads,
    absl::Span<const Encoding* const> sequences) {
  HeadMask mask = 0;
  std::vector<std::vector<float>> out;
  for (const int h : heads) {
    mask |= HeadMask{1} << h;
    out.emplace_back(sequences.size() * engine.width(h));
  }
  std::vector<int> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&sequences](int a, int b) {
    return sequences[a]->ids.size() < sequences[b]->ids.size();
  });
  for (size_t begin = 0; begin < order.size();) {
    Batch batch;
    size_t end = begin;
    for (; end < order.size() && batch.tokens() < kBatchTokens; ++end) {
      batch.Add(*sequences[order[end]], mask);
    }
    ASSIGN_OR_RETURN(const Outputs outputs, engine.Run(batch));
    for (size_t i = begin; i < end; ++i) {
      const float* from = outputs.Of(static_cast<int>(i - begin)).data();
      for (size_t k = 0; k < heads.size(); ++k) {
        const int width = engine.width(heads[k]);
        std::copy_n(from, width, out[k].begin() + int64_t{order[i]} * width);
        from += width;
      }
    }
    begin = end;
  }
  return out;
}

std::vector<float> EngineInference::Infer(
    int h, absl::Span<const Encoding* const> sequences) const {
  absl::StatusOr<std::vector<std::vector<float>>> outputs =
      RunHeads(engine_, {h}, sequences);
  if (outputs.ok()) return std::move(outputs->front());
  status_.Update(outputs.status());
  return std::vector<float>(sequences.size() * engine_.width(h));
}

}  // namespace vitrine
