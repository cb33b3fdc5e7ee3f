#include "trainer/lexical_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "trainer/mixture_ratio.h"
#include "trainer/ngram_counter.h"
#include "trainer/sparse_rows.h"

namespace vitrine {
namespace {

constexpr size_t kMostPairs = 1 << 19;
constexpr size_t kMostNgrams = 1 << 22;

constexpr double kRidge = 10;
// Larger features are held back less by the ridge.
constexpr float kOverlapScale = 5;
constexpr int kMostSteps = 200;
constexpr double kTolerance = 1e-5;  // of the first residual

// Of the linear model's weight to the encoder's. A value is some tenths, a
// logit some ones.
constexpr double kRatios[] = {
    0, 0.5, 1, 2, 3, 4, 6, 8, 16, 32, std::numeric_limits<double>::infinity()};
constexpr size_t kUsualRatio = 4;
constexpr int kDepth = 10;
// Rows of a query are much alike, and say less than their number: the scale is
// held to 1 as strongly as some five hundred rows would hold it, the bias to 0
// as strongly as some tens.
constexpr double kScaleRidge = 100, kBiasRidge = 5;
constexpr int kScaleSteps = 50;

// The columns: queries' n-grams, items' n-grams, overlaps.
SparseRows FeaturesOf(absl::Span<const TokenPair> pairs,
                      const LexicalTable& table) {
  const auto scorer = *LexicalScorer::Create(table);
  const auto ngrams = static_cast<int32_t>(table.ngrams.size());
  SparseRows rows;
  for (const TokenPair& pair : pairs) {
    const LexicalScorer::Query query = scorer->OfQuery(pair.query);
    const LexicalScorer::Features item = scorer->OfItem(pair.item);
    for (const auto& [place, value] : query.features) rows.Add(place, value);
    for (const auto& [place, value] : item) rows.Add(ngrams + place, value);
    const Overlap overlap = scorer->OverlapOf(query, pair.item, item);
    rows.Add(2 * ngrams, kOverlapScale * overlap.cosine);
    rows.Add(2 * ngrams + 1, kOverlapScale * overlap.share);
    rows.Add(2 * ngrams + 2, kOverlapScale * overlap.bm25);
    rows.EndRow();
  }
  return rows;
}

// Minimizes sum over rows of weight * (row · w + bias - target)^2 + kRidge *
// |w|^2 by conjugate gradients, preconditioned by the diagonal. Returns w, the
// bias last.
std::vector<double> FitRidge(const SparseRows& rows, size_t width,
                             absl::Span<const double> targets,
                             absl::Span<const float> weights,
                             const std::atomic<bool>* stop) {
  // A product of rows with a vector, and of their transpose.
  const auto times = [&](const std::vector<double>& w, size_t row) {
    double sum = w[width];
    for (int64_t k = rows.begins[row]; k < rows.begins[row + 1]; ++k) {
      sum += w[rows.columns[k]] * rows.values[k];
    }
    return sum;
  };
  const auto add = [&](double value, size_t row, std::vector<double>* out) {
    for (int64_t k = rows.begins[row]; k < rows.begins[row + 1]; ++k) {
      (*out)[rows.columns[k]] += value * rows.values[k];
    }
    (*out)[width] += value;
  };
  const auto dot = [](const std::vector<double>& a,
                      const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  std::vector<double> w(width + 1), residual(width + 1);
  std::vector<double> diagonal(width + 1, kRidge);
  diagonal[width] = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    add(weights[i] * targets[i], i, &residual);
    for (int64_t k = rows.begins[i]; k < rows.begins[i + 1]; ++k) {
      diagonal[rows.columns[k]] +=
          double{weights[i]} * rows.values[k] * rows.values[k];
    }
    diagonal[width] += weights[i];
  }
  const auto precondition = [&](const std::vector<double>& r) {
    std::vector<double> out(r.size());
    for (size_t i = 0; i < r.size(); ++i) out[i] = r[i] / diagonal[i];
    return out;
  };
  std::vector<double> direction = precondition(residual);
  double product = dot(residual, direction);
  const double enough = product * kTolerance * kTolerance;
  for (int step = 0; step < kMostSteps && product > enough; ++step) {
    if (stop != nullptr && *stop) break;
    std::vector<double> image(width + 1);
    for (size_t i = 0; i < rows.size(); ++i) {
      add(weights[i] * times(direction, i), i, &image);
    }
    for (size_t c = 0; c < width; ++c) image[c] += kRidge * direction[c];
    const double length = product / dot(direction, image);
    for (size_t c = 0; c <= width; ++c) {
      w[c] += length * direction[c];
      residual[c] -= length * image[c];
    }
    const std::vector<double> next = precondition(residual);
    const double after = dot(residual, next);
    for (size_t c = 0; c <= width; ++c) {
      direction[c] = next[c] + after / product * direction[c];
    }
    product = after;
  }
  return w;
}

// The scale and the bias under which sigmoid(scale * logit + bias) is nearest
// to the targets, by Newton's method on the cross-entropy, which is convex.
struct ScaleAndBias {
  double scale = 1, bias = 0;
};
ScaleAndBias FitScale(absl::Span<const double> logits,
                      absl::Span<const double> targets) {
  ScaleAndBias best;
  const auto loss_at = [&](const ScaleAndBias& at) {
    double loss = kScaleRidge / 2 * (at.scale - 1) * (at.scale - 1) +
                  kBiasRidge / 2 * at.bias * at.bias;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double z = at.scale * logits[i] + at.bias;
      // log(1 + e^z) - target * z
      loss += std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))) -
              targets[i] * z;
    }
    return loss;
  };
  double loss = loss_at(best);
  for (int step = 0; step < kScaleSteps; ++step) {
    double gs = kScaleRidge * (best.scale - 1), gb = kBiasRidge * best.bias;
    double ss = kScaleRidge, sb = 0, bb = kBiasRidge;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p =
          1 / (1 + std::exp(-(best.scale * logits[i] + best.bias)));
      const double error = p - targets[i], curve = p * (1 - p);
      gs += error * logits[i];
      gb += error;
      ss += curve * logits[i] * logits[i];
      sb += curve * logits[i];
      bb += curve;
    }
    const double determinant = ss * bb - sb * sb;
    double ds = (bb * gs - sb * gb) / determinant;
    double db = (ss * gb - sb * gs) / determinant;
    ScaleAndBias next{best.scale - ds, best.bias - db};
    double there = loss_at(next);
    while (!(there <= loss) && std::abs(ds) + std::abs(db) > 1e-9) {
      ds /= 2;
      db /= 2;
      next = {best.scale - ds, best.bias - db};
      there = loss_at(next);
    }
    if (!(there < loss - 1e-9)) break;
    best = next;
    loss = there;
  }
  return best;
}

// How well each query with two different grades is ranked.
std::vector<double> NdcgOfQueries(absl::Span<const int32_t> query,
                                  absl::Span<const RankedRow> rows) {
  std::vector<double> out;
  for (std::vector<RankedRow>& of : RowsByQuery(query, rows)) {
    if (GradesDiffer(of)) out.push_back(NdcgAt(kDepth, std::move(of)));
  }
  return out;
}

}  // namespace

LexicalTable FitLexical(absl::Span<const TokenPair> all_pairs,
                        absl::Span<const float> all_targets,
                        absl::Span<const float> all_weights,
                        const std::atomic<bool>* stop) {
  const size_t count = std::min(all_pairs.size(), kMostPairs);
  std::vector<TokenPair> pairs(count);
  std::vector<float> targets(count), weights(count);
  for (size_t i = 0; i < count; ++i) {
    const size_t row = i * all_pairs.size() / count;  // evenly spread
    pairs[i] = all_pairs[row];
    targets[i] = all_targets[row];
    weights[i] = all_weights[row];
  }
  LexicalTable table;
  NgramCounter counter;
  double item_tokens = 0, mean = 0, weight = 0;
  for (size_t i = 0; i < count; ++i) {
    counter.AddText({pairs[i].query, pairs[i].item});
    item_tokens += static_cast<double>(pairs[i].item.size());
    mean += weights[i] * targets[i];
    weight += weights[i];
  }
  mean /= weight;
  counter.Finish(kMostNgrams, &table.ngrams, &table.idf);
  table.unlisted_idf = counter.Idf(1);
  table.item_tokens = static_cast<float>(
      std::max(item_tokens / static_cast<double>(count), 1.0));
  const size_t ngrams = table.ngrams.size();
  table.query_weights.resize(ngrams);
  table.item_weights.resize(ngrams);

  std::vector<double> around(count);
  for (size_t i = 0; i < count; ++i) around[i] = targets[i] - mean;
  const std::vector<double> w =
      FitRidge(FeaturesOf(pairs, table), 2 * ngrams + 3, around, weights, stop);
  for (size_t i = 0; i < ngrams; ++i) {
    table.query_weights[i] = static_cast<float>(w[i]);
    table.item_weights[i] = static_cast<float>(w[ngrams + i]);
  }
  const auto overlap = [&](size_t i) {
    return static_cast<float>(kOverlapScale * w[2 * ngrams + i]);
  };
  table.overlap = {overlap(0), overlap(1), overlap(2)};
  table.bias = static_cast<float>(w.back());
  return table;
}

LexicalMixture FitLexicalMixture(const LexicalRows& held_out) {
  std::vector<RankedRow> rows = held_out.rows;
  const auto combine = [&](double ratio) {
    std::vector<double> sums(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      sums[i] = std::isinf(ratio)
                    ? held_out.values[i]
                    : held_out.logits[i] + ratio * held_out.values[i];
      rows[i].score = sums[i];
    }
    return sums;
  };
  std::vector<std::vector<double>> gains;
  for (const double ratio : kRatios) {
    combine(ratio);
    gains.push_back(NdcgOfQueries(held_out.query, rows));
  }
  const double ratio = kRatios[PickRatio(gains, kUsualRatio)];
  if (ratio == 0) return {};  // what the encoder says stays as it says it
  std::vector<double> targets;
  for (const RankedRow& row : rows) {
    targets.push_back(row.gain_grade / held_out.range);
  }
  const ScaleAndBias fit = FitScale(combine(ratio), targets);
  if (!(fit.scale > 0)) return {};
  return {static_cast<float>(std::isinf(ratio) ? 0 : fit.scale),
          static_cast<float>(std::isinf(ratio) ? fit.scale : fit.scale * ratio),
          static_cast<float>(fit.bias)};
}

}  // namespace vitrine
