#include "trainer/ngram_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/container/flat_hash_map.h"

namespace vitrine {
namespace {

constexpr size_t kMostRows = 1 << 20;
constexpr size_t kMostWeights = 1 << 24;
constexpr int kLeastTexts = 2;  // that have an n-gram

constexpr double kC = 0.5;
constexpr int kMostPasses = 200;
constexpr double kTolerance = 1e-3;  // of the projected gradients' range

constexpr size_t kMostMixtureRows = 4096;
// Of the n-grams' weight to the encoder's. A margin is about 1 where the
// machine is sure, a logit some 5.
constexpr double kRatios[] = {
    0, 0.25, 0.5, 1,  2,  3,
    4, 6,    8,   16, 32, std::numeric_limits<double>::infinity()};
constexpr double kRidge = 0.01;  // keeps what is always right finite
constexpr int kScaleSteps = 50;

// So many of `count`, evenly spread.
std::vector<size_t> Spread(size_t count, size_t most) {
  std::vector<size_t> out(std::min(count, most));
  for (size_t i = 0; i < out.size(); ++i) out[i] = i * count / out.size();
  return out;
}

void CountTexts(absl::Span<const Encoding* const> texts,
                absl::Span<const size_t> rows, int labels, NgramTable* table) {
  absl::flat_hash_map<Ngram, int32_t> counts;
  for (const size_t row : rows) {
    for (const auto& [ngram, count] : CountNgrams(texts[row]->ids)) {
      ++counts[ngram];
    }
  }
  std::vector<std::pair<Ngram, int32_t>> kept;
  for (const auto& [ngram, count] : counts) {
    if (count >= kLeastTexts) kept.emplace_back(ngram, count);
  }
  const size_t most = kMostWeights / labels;
  if (kept.size() > most) {
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) {
      return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    kept.resize(most);
  }
  std::sort(kept.begin(), kept.end());
  for (const auto& [ngram, count] : kept) {
    table->ngrams.push_back(ngram);
    table->idf.push_back(
        static_cast<float>(1 + std::log((1.0 + rows.size()) / (1.0 + count))));
  }
}

// Rows of features, one after the other.
struct SparseRows {
  std::vector<int64_t> begins = {0};
  std::vector<int32_t> columns;
  std::vector<float> values;

  size_t size() const { return begins.size() - 1; }
};

SparseRows FeaturesOf(absl::Span<const Encoding* const> texts,
                      absl::Span<const size_t> rows, const NgramTable& table) {
  NgramTable plain = table;
  plain.bias.assign(2, 0);
  plain.weights.assign(2 * plain.ngrams.size(), 0);
  const auto classifier = NgramClassifier::Create(std::move(plain));
  SparseRows out;
  for (const size_t row : rows) {
    for (const auto& [column, value] :
         (*classifier)->Features(texts[row]->ids)) {
      out.columns.push_back(column);
      out.values.push_back(value);
    }
    out.begins.push_back(static_cast<int64_t>(out.columns.size()));
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

  // Rows whose largest logit is that of their label.
  int Right() const {
    int right = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      const auto most = std::max_element(row(i).begin(), row(i).end());
      right += most - row(i).begin() == truth[i];
    }
    return right;
  }

  // The factor to all logits under which the labels are likeliest, by Newton's
  // method: the negative log-likelihood is convex in it. `*loss` is there.
  double LikeliestScale(double* loss) const {
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
    *loss = here.loss;
    return scale;
  }
};

}  // namespace

NgramTable FitNgrams(absl::Span<const Encoding* const> texts,
                     absl::Span<const int32_t> truth, int labels,
                     Workers* workers, const std::atomic<bool>* stop) {
  NgramTable table;
  const std::vector<size_t> numbers = Spread(texts.size(), kMostRows);
  CountTexts(texts, numbers, labels, &table);
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
  NgramMixture best;
  int most_right = -1;
  double least_loss = 0;
  for (const double ratio : kRatios) {
    const NgramMixture mixture{
        static_cast<float>(std::isinf(ratio) ? 0 : 1),
        static_cast<float>(std::isinf(ratio) ? 1 : ratio)};
    for (size_t r = 0; r < rows.size(); ++r) {
      const absl::Span<float> row =
          absl::MakeSpan(mixed.logits).subspan(r * labels, labels);
      std::copy_n(logits.begin() + rows[r] * labels, labels, row.begin());
      mixture.Combine(margins.subspan(rows[r] * labels, labels), row);
    }
    const int right = mixed.Right();
    if (right < most_right) continue;
    double loss = 0;
    const auto scale = static_cast<float>(mixed.LikeliestScale(&loss));
    if (right == most_right && loss >= least_loss) continue;
    most_right = right;
    least_loss = loss;
    best = {scale * mixture.encoder_weight, scale * mixture.ngram_weight};
  }
  // What the encoder says alone stays as it says it.
  return best.ngram_weight == 0 ? NgramMixture() : best;
}

}  // namespace vitrine
