#include "trainer/mixture_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace vitrine {
namespace {

constexpr double kDecays[] = {0.5, 0.6, 0.7, 0.8, 0.9, 1.0};
// Keeps what the rows do not tell near the default.
constexpr double kRidge = 1e-3;
constexpr int kSteps = 60;

// All numbers are above 0 by being powers of e: logarithms of text_weight,
// count_scale, count_power and popularity_power.
using Point = std::array<double, 4>;

Point PointOf(const Mixture& mixture) {
  return {std::log(mixture.text_weight), std::log(mixture.count_scale),
          std::log(mixture.count_power), std::log(mixture.popularity_power)};
}

double Dot(const Point& a, const Point& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

// What a candidate is told by.
struct Features {
  double cosine;
  double log_count;       // -infinity: none
  double log_popularity;  // log(1 + popularity)
  double log_copies;
};

struct Rows {
  std::vector<Features> features;
  std::vector<size_t> ends;  // of each row's
};

Rows FeaturesOf(const Cooccurrence& counts, absl::Span<const MixtureRow> rows,
                double decay) {
  Rows out;
  for (const MixtureRow& row : rows) {
    const HistoryCounts history(counts, row.history, decay);
    for (const MixtureRow::Candidate& candidate : row.candidates) {
      out.features.push_back({candidate.cosine,
                              std::log(history.Of(candidate.item)),
                              std::log1p(counts.popularity(candidate.item)),
                              std::log(candidate.copies)});
    }
    out.ends.push_back(out.features.size());
  }
  return out;
}

// The mean loss and its gradient.
double Loss(const Rows& rows, const Point& at, const Point& start,
            Point* gradient) {
  const double text = std::exp(at[0]), power = std::exp(at[2]);
  const double popularity_power = std::exp(at[3]);
  double loss = 0;
  *gradient = {};
  std::vector<double> logits;
  std::vector<Point> slopes;
  size_t begin = 0;
  for (const size_t end : rows.ends) {
    logits.clear();
    slopes.clear();
    for (size_t i = begin; i < end; ++i) {
      const Features& f = rows.features[i];
      const double popular = popularity_power * f.log_popularity;
      double evidence = popular, share = 0;  // of the counts in the evidence
      double counted = 0;
      if (std::isfinite(f.log_count)) {
        counted = power * f.log_count;
        const double by_counts = at[1] + counted;
        const double larger = std::max(by_counts, popular);
        evidence = larger + std::log(std::exp(by_counts - larger) +
                                     std::exp(popular - larger));
        share = std::exp(by_counts - evidence);
      }
      logits.push_back(text * f.cosine + evidence + f.log_copies);
      slopes.push_back(
          {text * f.cosine, share, share * counted, (1 - share) * popular});
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    Point mean = {};
    for (size_t i = 0; i < logits.size(); ++i) {
      const double weight = std::exp(logits[i] - largest);
      sum += weight;
      for (int k = 0; k < 4; ++k) mean[k] += weight * slopes[i][k];
    }
    loss += largest + std::log(sum) - logits[0];
    for (int k = 0; k < 4; ++k) {
      (*gradient)[k] += mean[k] / sum - slopes[0][k];
    }
    begin = end;
  }
  const auto n = static_cast<double>(rows.ends.size());
  loss /= n;
  for (int k = 0; k < 4; ++k) {
    const double off = at[k] - start[k];
    loss += kRidge * off * off;
    (*gradient)[k] = (*gradient)[k] / n + 2 * kRidge * off;
  }
  return loss;
}

// BFGS with steps cut until they help.
double Minimize(const Rows& rows, const Point& start, Point* at) {
  std::array<Point, 4> inverse = {};  // of the Hessian, about
  for (int k = 0; k < 4; ++k) inverse[k][k] = 1;
  Point gradient;
  double loss = Loss(rows, *at, start, &gradient);
  for (int step = 0; step < kSteps; ++step) {
    Point direction;
    for (int k = 0; k < 4; ++k) direction[k] = -Dot(inverse[k], gradient);
    const double slope = Dot(direction, gradient);
    if (!(slope < -1e-10)) break;
    // No step changes a number by more than the factor e.
    double largest = 1;
    for (const double d : direction) largest = std::max(largest, std::abs(d));
    double length = 1 / largest;
    Point next, next_gradient;
    double next_loss = 0;
    int cuts = 0;
    for (; cuts < 30; ++cuts, length /= 2) {
      for (int k = 0; k < 4; ++k) next[k] = (*at)[k] + length * direction[k];
      next_loss = Loss(rows, next, start, &next_gradient);
      if (next_loss <= loss + 1e-4 * length * slope) break;
    }
    if (cuts == 30) break;
    Point moved, turned;
    for (int k = 0; k < 4; ++k) {
      moved[k] = next[k] - (*at)[k];
      turned[k] = next_gradient[k] - gradient[k];
    }
    const double curvature = Dot(moved, turned);
    if (curvature > 1e-12) {
      Point product;  // inverse * turned
      for (int k = 0; k < 4; ++k) product[k] = Dot(inverse[k], turned);
      const double factor = 1 + Dot(turned, product) / curvature;
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
          inverse[i][j] += (factor * moved[i] * moved[j] -
                            product[i] * moved[j] - moved[i] * product[j]) /
                           curvature;
        }
      }
    }
    const double gain = loss - next_loss;
    *at = next;
    gradient = next_gradient;
    loss = next_loss;
    if (gain < 1e-7) break;
  }
  return loss;
}

}  // namespace

Mixture FitMixture(const Cooccurrence& counts,
                   absl::Span<const MixtureRow> rows) {
  const Point start = PointOf(Mixture());
  Mixture best;
  double best_loss = std::numeric_limits<double>::infinity();
  Point at = start;
  // The loss has one valley along the decay: past it, nothing better follows.
  for (const double decay : kDecays) {
    const double loss = Minimize(FeaturesOf(counts, rows, decay), start, &at);
    if (!(loss < best_loss)) break;
    best_loss = loss;
    best = {static_cast<float>(decay), static_cast<float>(std::exp(at[0])),
            static_cast<float>(std::exp(at[1])),
            static_cast<float>(std::exp(at[2])),
            static_cast<float>(std::exp(at[3]))};
  }
  return best;
}

}  // namespace vitrine
