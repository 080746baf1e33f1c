// The field's metrics, in percent, and the paired bootstrap. Definitions as in the Extreme Classification
// Repository's pyxclib; coverage as in Schultheis et al. 2022.
#pragma once
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "index/ranked.h"
#include "kernels/base/json.h"

namespace quest {

class Threads;

inline constexpr std::array<std::string_view, 13> metric_names = {
    "P@1",   "P@3",    "P@5",   "R@1",   "R@3",   "R@5",     "R@10",
    "R@100", "nDCG@5", "PSP@1", "PSP@3", "PSP@5", "coverage"};

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
std::vector<double> inverse_propensities(std::span<const int64_t> counts, int64_t training_queries,
                                         Propensity);

// P@k: hits in the top k / k. R@k: hits / |Y|. nDCG@5: gains 1/log2(rank + 1), ideal over min(5, |Y|). PSP@k:
// the hits' mean inverse propensity over the largest mean that could be had (a ratio of two means). coverage:
// share of the labels true of some query that stand in such a query's top 5.
// Queries without a true label are left out of everything; places behind a list's end are misses.
// label_counts [labels]: N_l. truth: columns in [0, labels), a row for each list, or Error(usage).
Metrics evaluate(const Ranked& lists, SparseRows truth, std::span<const int64_t> label_counts,
                 int64_t training_queries, Propensity = {});

// One object: every metric by its name, PSP_A, PSP_B, and the number of queries in the means.
void write_json(JsonWriter&, const Metrics&);

// A text table for stdout, one row a method.
std::string metrics_table(std::span<const std::pair<std::string, Metrics>> methods);

// 95 % interval of mean(b - a): percentiles of the mean over resampled queries (Efron 1979).
struct Interval {
  double mean = 0, low = 0, high = 0;
};
// a, b: values of the same queries in the same order, or Error(usage). The seed alone decides the resamples.
Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, uint64_t seed, Threads&,
                          int64_t resamples = 10000);

}  // namespace quest
