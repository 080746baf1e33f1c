// The field's metrics, in percent, and the paired bootstrap. Definitions as in the Extreme Classification
// Repository's pyxclib; coverage as in Schultheis et al. 2022.
#pragma once
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "index/exact.h"
#include "kernels/base/json.h"
#include "kernels/base/random.h"

namespace quest {

inline constexpr std::array<std::string_view, 13> metric_names = {
    "P@1",   "P@3",    "P@5",   "R@1",   "R@3",   "R@5",     "R@10",
    "R@100", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "coverage"};

// Of each of metric_names: which of the sums in evaluate() it is, and over how many places.
constexpr int metric_kinds[] = {0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3, 4};
constexpr int metric_places[] = {1, 3, 5, 1, 3, 5, 10, 100, 5, 1, 3, 5, 5};
constexpr int coverage_depth = metric_places[12];  // of coverage

// Jain et al. 2016: 0.6, 2.6 for Amazon; 0.5, 0.4 for Wikipedia; 0.55, 1.5 for all others.
struct Propensity {
  double A = 0.55, B = 1.5;
};

struct Metrics {
  std::array<double, 13> percent{};  // by metric_names
  Propensity propensity;
  std::vector<double> p1, r10;  // P@1 and R@10 of each query with a true label, in order, in percent
};

// 1 + C (N_l + B)^-A with C = (ln N - 1)(B + 1)^A; N_l: training queries with label l, N: all of them.
inline std::vector<double> inverse_propensities(std::span<const int64_t> counts, int64_t training_queries,
                                                Propensity p) {
  const double C = (std::log(training_queries) - 1) * std::pow(p.B + 1, p.A);
  std::vector<double> w;
  for (const int64_t n : counts) w.push_back(1 + C * std::pow(n + p.B, -p.A));
  return w;
}

// P@k: hits in the top k / k. R@k: hits / |Y|. nDCG@5: gains 1/log2(rank + 1), ideal over min(5, |Y|). PSP@k:
// the hits' mean inverse propensity over the largest mean that could be had (a ratio of two means). coverage:
// share of the labels true of some query that stand in such a query's top 5.
// Queries without a true label are left out of everything; places behind a list's end are misses.
// label_counts [labels]: N_l. truth: columns in [0, labels), a row for each list, or Error(usage).
inline Metrics evaluate(const Ranked& lists, SparseRows truth, std::span<const int64_t> label_counts,
                        int64_t training_queries, Propensity propensity = {}) {
  if (truth.rows() != lists.queries)
    fail(Exit::usage, "metrics: expected the truth of %ld lists, found that of %ld; rank the same queries",
         lists.queries, truth.rows());
  Metrics m;
  m.propensity = propensity;
  const std::vector<double> w = inverse_propensities(label_counts, training_queries, propensity);
  double part[13] = {}, whole[13] = {};  // each metric is a sum over queries of one over a sum of the other
  std::vector<bool> present(w.size()), covered(w.size());
  for (int64_t q = 0; q < lists.queries; ++q) {
    const auto labels = truth.row(q);
    if (labels.empty()) continue;
    std::vector<double> best_first;  // inverse propensities of the true labels
    double hits = 0, gain = 0, best = 0, dcg = 0, ideal = 0, seen = 0, found = 0;
    for (const int32_t label : labels) {
      best_first.push_back(w[label]);
      seen += !present[label], present[label] = true;
    }
    std::ranges::sort(best_first, std::greater<>());
    for (int64_t rank = 1; rank <= 100; ++rank) {  // sums over the first `rank` places
      const int32_t label = rank <= lists.k ? lists.row(q)[rank - 1] : -1;
      const double discount = 1 / std::log2(rank + 1);
      if (std::ranges::binary_search(labels, label)) {
        hits += 1, gain += w[label], dcg += discount;
        if (rank <= coverage_depth) found += !covered[label], covered[label] = true;
      }
      if (rank <= std::ssize(labels)) best += best_first[rank - 1], ideal += discount;
      if (rank == 1) m.p1.push_back(100 * hits);
      if (rank == 10) m.r10.push_back(100 * hits / std::ssize(labels));
      const double recalled = hits / std::ssize(labels);
      const std::pair<double, double> sums[] = {
          {hits / rank, 1}, {recalled, 1}, {dcg / ideal, 1}, {gain, best}, {found, seen}};
      for (size_t i = 0; i < metric_names.size(); ++i)
        if (metric_places[i] == rank)
          part[i] += sums[metric_kinds[i]].first, whole[i] += sums[metric_kinds[i]].second;
    }
  }
  for (size_t i = 0; i < metric_names.size(); ++i) m.percent[i] = whole[i] > 0 ? 100 * part[i] / whole[i] : 0;
  return m;
}

// One object: every metric by its name, PSP_A, PSP_B, and the number of queries in the means.
inline void write_json(JsonWriter& json, const Metrics& m) {
  json.object();
  for (size_t i = 0; i < metric_names.size(); ++i) json.field(metric_names[i], m.percent[i]);
  json.field("PSP_A", m.propensity.A).field("PSP_B", m.propensity.B);
  json.field("queries", m.p1.size()).end();
}

// A text table for stdout, one row a method.
inline std::string metrics_table(std::span<const std::pair<std::string, Metrics>> methods) {
  size_t width = 0;
  for (const auto& [name, m] : methods) width = std::max(width, name.size());
  std::string table(width, ' '), protocol;
  for (const auto name : metric_names) table += format(" %8s", name.data());  // literals: they end in a zero
  for (const auto& [name, m] : methods) {
    table += "\n" + name + std::string(width - name.size(), ' ');
    for (const double value : m.percent) table += format(" %8.2f", value);
    protocol = format("\npercent; %zu queries; PSP with A %g, B %g; coverage at %d", m.p1.size(),
                      m.propensity.A, m.propensity.B, coverage_depth);
  }
  return table + protocol + "\n";
}

// 95 % interval of mean(b - a): percentiles of the mean over resampled queries (Efron 1979).
struct Interval {
  double mean = 0, low = 0, high = 0;
};
// a, b: values of the same queries in the same order, or Error(usage). The seed alone decides the resamples.
inline Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, uint64_t seed,
                                 Threads& threads, int64_t resamples = 10000) {
  const size_t n = a.size();
  if (b.size() != n || n == 0)
    fail(Exit::usage,
         "bootstrap: expected two lists of as many queries, found %zu and %zu; rank the same queries", n,
         b.size());
  std::vector<double> difference(n), means(resamples);
  double total = 0;
  for (size_t i = 0; i < n; ++i) total += difference[i] = b[i] - a[i];
  threads.each(resamples, [&](int64_t r, int) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += difference[(random_bits(seed, r, i) >> 32) * n >> 32];  // in [0, n)
    means[r] = sum / n;
  });
  std::ranges::sort(means);
  const int64_t outside = resamples / 40;  // 2.5 % on each side
  return {total / n, means[outside], means[resamples - 1 - outside]};
}

}  // namespace quest
