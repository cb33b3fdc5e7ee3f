#include "trainer/ngram_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "trainer/mixture_ratio.h"
#include "trainer/ngram_counter.h"
#include "trainer/sparse_rows.h"

namespace vitrine {
namespace {

constexpr size_t kMostRows = 1 << 20;
constexpr size_t kMostWeights = 1 << 24;

constexpr double kC = 0.5;
constexpr int kMostPasses = 200;
constexpr double kTolerance = 1e-3;  // of the projected gradients' range

constexpr size_t kMostMixtureRows = 4096;
// Of the n-grams' weight to that of the encoder, once its logits are
// calibrated: few rows gone through often make it surer than it should be. A
// margin is about 1 where the machine is sure, such a logit some 4.
constexpr double kRatios[] = {
    0, 0.25, 0.5, 1,  2,  3,
    4, 6,    8,   16, 32, std::numeric_limits<double>::infinity()};
constexpr size_t kUsualRatio = 6;
constexpr double kRidge = 0.01;  // keeps what is always right finite
constexpr int kScaleSteps = 50;

// So many of `count`, evenly spread.
std::vector<size_t> Spread(size_t count, size_t most) {
  std::vector<size_t> out(std::min(count, most));
  for (size_t i = 0; i < out.size(); ++i) out[i] = i * count / out.size();
  return out;
}

SparseRows FeaturesOf(absl::Span<const Encoding* const> texts,
                      absl::Span<const size_t> rows, const NgramTable& table) {
  const NgramIndex index(table.ngrams, table.idf, &table.splits);
  SparseRows out;
  for (const size_t row : rows) {
    for (const auto& [column, value] : index.Features(texts[row]->ids)) {
      out.Add(column, value);
    }
    out.EndRow();
  }
  return out;
}

// L2-regularized squared hinge loss by dual coordinate descent (Hsieh et al.,
// A Dual Coordinate Descent Method for Large-scale Linear SVM, 2008), the rows
// with a 1 appended for the bias. signs[i] is 1 or -1. Returns the weights,
// the bias last.
std::vector<double> FitMachine(const SparseRows& rows, size_t width,
                               absl::Span<const int8_t> signs) {
  constexpr double kDiagonal = 1 / (2 * kC);
  std::vector<double> w(width + 1), alpha(rows.size()), norms(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    norms[i] = kDiagonal + 1;
    for (int64_t k = rows.begins[i]; k < rows.begins[i + 1]; ++k) {
      norms[i] += double{rows.values[k]} * rows.values[k];
    }
  }
  std::vector<int32_t> active(rows.size());
  std::iota(active.begin(), active.end(), 0);
  std::mt19937_64 random(1);
  // A row at 0 whose gradient is above this will stay there: it is left out
  // until the others are done.
  double bound = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kMostPasses; ++pass) {
    double highest = -std::numeric_limits<double>::infinity();
    double lowest = std::numeric_limits<double>::infinity();
    for (size_t i = active.size(); i > 1; --i) {
      std::swap(active[i - 1], active[random() % i]);
    }
    for (size_t a = 0; a < active.size();) {
      const int32_t i = active[a];
      double product = w[width];
      for (int64_t k = rows.begins[i]; k < rows.begins[i + 1]; ++k) {
        product += w[rows.columns[k]] * rows.values[k];
      }
      const double gradient = signs[i] * product - 1 + kDiagonal * alpha[i];
      if (alpha[i] == 0 && gradient > bound) {
        active[a] = active.back();
        active.pop_back();
        continue;
      }
      ++a;
      const double projected =
          alpha[i] == 0 ? std::min(gradient, 0.0) : gradient;
      highest = std::max(highest, projected);
      lowest = std::min(lowest, projected);
      if (std::abs(projected) < 1e-12) continue;
      const double next = std::max(alpha[i] - gradient / norms[i], 0.0);
      const double step = (next - alpha[i]) * signs[i];
      alpha[i] = next;
      for (int64_t k = rows.begins[i]; k < rows.begins[i + 1]; ++k) {
        w[rows.columns[k]] += step * rows.values[k];
      }
      w[width] += step;
    }
    if (highest - lowest <= kTolerance) {
      if (active.size() == rows.size()) break;
      active.resize(rows.size());
      std::iota(active.begin(), active.end(), 0);
      bound = std::numeric_limits<double>::infinity();
      continue;
    }
    bound = highest > 0 ? highest : std::numeric_limits<double>::infinity();
  }
  return w;
}

// Rows of `labels` logits, and which one it is.
struct MixtureRows {
  std::vector<int32_t> truth;
  std::vector<float> logits;
  int labels = 0;

  absl::Span<const float> row(size_t i) const {
    return absl::MakeConstSpan(logits).subspan(i * labels, labels);
  }

  // 1 where the largest logit is the label's, else 0.
  std::vector<double> Right() const {
    std::vector<double> right;
    for (size_t i = 0; i < truth.size(); ++i) {
      const auto most = std::max_element(row(i).begin(), row(i).end());
      right.push_back(most - row(i).begin() == truth[i]);
    }
    return right;
  }

  // The factor to all logits under which the labels are likeliest, by Newton's
  // method: the negative log-likelihood is convex in it.
  double LikeliestScale() const {
    struct Point {
      double loss, slope, curve;
    };
    const auto at = [this](double scale) {
      Point out{kRidge / 2 * scale * scale, kRidge * scale, kRidge};
      for (size_t i = 0; i < truth.size(); ++i) {
        const double most = *std::max_element(row(i).begin(), row(i).end());
        double sum = 0, first = 0, second = 0;
        for (const float logit : row(i)) {
          const double share = std::exp(scale * (logit - most));
          sum += share;
          first += share * logit;
          second += share * logit * logit;
        }
        const double mean = first / sum, own = row(i)[truth[i]];
        out.loss += scale * (most - own) + std::log(sum);
        out.slope += mean - own;
        out.curve += second / sum - mean * mean;
      }
      return out;
    };
    double scale = 1;
    Point here = at(scale);
    for (int step = 0; step < kScaleSteps; ++step) {
      // A tenth of it at least, so that it stays above 0.
      double next = std::max(scale - here.slope / here.curve, scale / 10);
      Point there = at(next);
      while (there.loss > here.loss && std::abs(next - scale) > 1e-6 * scale) {
        next = (next + scale) / 2;
        there = at(next);
      }
      if (!(there.loss < here.loss - 1e-9)) break;
      scale = next;
      here = there;
    }
    return scale;
  }
};

}  // namespace

NgramTable FitNgrams(absl::Span<const Encoding* const> texts,
                     absl::Span<const int32_t> truth, int labels,
                     TokenSplits splits, Workers* workers,
                     const std::atomic<bool>* stop) {
  NgramTable table;
  table.splits = std::move(splits);
  const std::vector<size_t> numbers = Spread(texts.size(), kMostRows);
  NgramCounter counter;
  for (const size_t row : numbers)
    counter.AddText({texts[row]->ids}, table.splits);
  counter.Finish(kMostWeights / labels, &table.ngrams, &table.idf);
  const SparseRows rows = FeaturesOf(texts, numbers, table);
  const size_t width = table.ngrams.size();
  table.bias.resize(labels);
  table.weights.resize(width * labels);
  const auto fit = [&](int label) {
    if (stop != nullptr && *stop) return;
    std::vector<int8_t> signs(rows.size());
    for (size_t i = 0; i < signs.size(); ++i) {
      signs[i] = truth[numbers[i]] == label ? 1 : -1;
    }
    const std::vector<double> w = FitMachine(rows, width, signs);
    table.bias[label] = static_cast<float>(w[width]);
    for (size_t i = 0; i < width; ++i) {
      table.weights[i * labels + label] = static_cast<float>(w[i]);
    }
  };
  if (workers != nullptr) {
    workers->Run(labels, fit);
  } else {
    for (int label = 0; label < labels; ++label) fit(label);
  }
  return table;
}

NgramMixture FitNgramMixture(absl::Span<const float> logits,
                             absl::Span<const float> margins,
                             absl::Span<const int32_t> truth, int labels) {
  const std::vector<size_t> rows = Spread(truth.size(), kMostMixtureRows);
  MixtureRows mixed{.truth = {}, .logits = {}, .labels = labels};
  for (const size_t i : rows) mixed.truth.push_back(truth[i]);
  mixed.logits.resize(rows.size() * labels);
  const auto combine = [&](const NgramMixture& mixture) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const absl::Span<float> row =
          absl::MakeSpan(mixed.logits).subspan(r * labels, labels);
      std::copy_n(logits.begin() + rows[r] * labels, labels, row.begin());
      mixture.Combine(margins.subspan(rows[r] * labels, labels), row);
    }
  };
  combine({1, 0});
  const auto calibrated = static_cast<float>(mixed.LikeliestScale());
  const auto of_ratio = [calibrated](double ratio) {
    return std::isinf(ratio)
               ? NgramMixture{0, 1}
               : NgramMixture{calibrated, static_cast<float>(ratio)};
  };
  std::vector<std::vector<double>> right;
  for (const double ratio : kRatios) {
    combine(of_ratio(ratio));
    right.push_back(mixed.Right());
  }
  const double ratio = kRatios[PickRatio(right, kUsualRatio)];
  // What the encoder says alone stays as it says it.
  if (ratio == 0) return {};
  const NgramMixture best = of_ratio(ratio);
  combine(best);
  const auto scale = static_cast<float>(mixed.LikeliestScale());
  return {scale * best.encoder_weight, scale * best.ngram_weight};
}

}  // namespace vitrine
