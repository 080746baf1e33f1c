// The metrics by hand, the bootstrap against theory, and plain numpy's numbers on real labels.
#include "index/metrics.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <map>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"

namespace quest {
namespace {

double value(const Metrics& m, std::string_view name) {
  for (size_t i = 0; i < metric_names.size(); ++i)
    if (metric_names[i] == name) return m.percent[i];
  ADD_FAILURE() << "no metric " << name;
  return NAN;
}

void expect_near(double found, double expected, double tolerance, std::string_view what) {
  EXPECT_TRUE(std::abs(found - expected) <= tolerance) << what << ": " << found << ", expected " << expected;
}

// Truth that owns its rows.
struct Truth {
  using Rows = std::vector<std::vector<int32_t>>;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> columns;
  explicit Truth(const Rows& rows) {
    for (const auto& row : rows) {
      columns.insert(columns.end(), row.begin(), row.end());
      offsets.push_back(static_cast<int64_t>(columns.size()));
    }
  }
  operator SparseRows() const { return {offsets, columns}; }
};

Ranked lists_of(const std::vector<std::vector<int32_t>>& rows, int64_t k) {
  Ranked lists(static_cast<int64_t>(rows.size()), k);
  for (size_t q = 0; q < rows.size(); ++q)
    for (size_t j = 0; j < rows[q].size(); ++j) lists.ids[q * k + j] = rows[q][j];
  return lists;
}

// A list of 100 labels from 1000 on that are never true, with some labels at given ranks (from 1).
std::vector<int32_t> list_with(const std::map<int, int32_t>& hits) {
  std::vector<int32_t> list;
  for (int rank = 1; rank <= 100; ++rank) list.push_back(hits.contains(rank) ? hits.at(rank) : 1000 + rank);
  return list;
}

const std::vector<int64_t> no_counts(1200, 7);

TEST(Metrics, InversePropensityByHand) {
  // C = (ln 1000 - 1) 2.5^0.55; w = 1 + C (N + 1.5)^-0.55
  const auto w = inverse_propensities(std::vector<int64_t>{0, 1, 10}, 1000, {});
  ASSERT_EQ(w.size(), 3u);
  expect_near(w[0], 8.8241885777, 1e-9, "N 0");
  expect_near(w[1], 6.9077552790, 1e-9, "N 1: 1 + (ln 1000 - 1)");
  expect_near(w[2], 3.5521470235, 1e-9, "N 10");
  const auto amazon = inverse_propensities(std::vector<int64_t>{4}, 1000, {0.6, 2.6});
  expect_near(amazon[0], 1 + 5.907755279 * std::pow(3.6 / 6.6, 0.6), 1e-9, "A 0.6, B 2.6");
}

// One hit at one rank: which of the metrics see it tells every cutoff.
TEST(Metrics, EveryCutoffSeesExactlyItsRanks) {
  const std::map<std::string_view, int> cutoffs = {{"P@1", 1}, {"P@3", 3},   {"P@5", 5},      {"R@1", 1},
                                                   {"R@3", 3}, {"R@5", 5},   {"R@10", 10},    {"R@100", 100},
                                                   {"nDCG@5", 5}, {"PSP@1", 1}, {"PSP@3", 3}, {"PSP@5", 5},
                                                   {"coverage", 5}};
  const Truth truth(Truth::Rows{{4}});
  for (int rank = 1; rank <= 100; ++rank) {
    const Metrics m = evaluate(lists_of({list_with({{rank, 4}})}, 100), truth, no_counts, 500);
    for (const auto& [name, cutoff] : cutoffs)
      EXPECT_EQ(value(m, name) > 0, rank <= cutoff) << name << " with the hit at rank " << rank;
    EXPECT_EQ(m.p1.at(0), rank == 1 ? 100 : 0);
    EXPECT_EQ(m.r10.at(0), rank <= 10 ? 100 : 0);
  }
}

TEST(Metrics, ByHandOnThreeQueries) {
  // Query 0: Y {2, 5, 9, 11, 20, 30, 40}, hits at 1, 3, 4, 7, 60. Query 1: no truth. Query 2: Y {3, 5}, hits
  // at 2, 5.
  const Truth truth({{2, 5, 9, 11, 20, 30, 40}, {}, {3, 5}});
  const Ranked lists = lists_of({list_with({{1, 5}, {3, 2}, {4, 9}, {7, 11}, {60, 20}}), list_with({{1, 3}}),
                                 list_with({{2, 5}, {5, 3}})}, 100);
  std::vector<int64_t> counts(1200, 1);
  counts[5] = 50, counts[2] = 4, counts[9] = 9, counts[3] = 0;
  const Metrics m = evaluate(lists, truth, counts, 200, {0.55, 1.5});
  EXPECT_EQ(m.p1, (std::vector<double>{100, 0}));
  ASSERT_EQ(m.r10.size(), 2u);
  expect_near(m.r10[0], 400.0 / 7, 1e-9, "R@10 of query 0");
  expect_near(m.r10[1], 100, 1e-9, "R@10 of query 2");
  expect_near(value(m, "P@1"), 100 * (1.0 + 0) / 2, 1e-9, "P@1");
  expect_near(value(m, "P@3"), 100 * (2.0 + 1) / 3 / 2, 1e-9, "P@3");
  expect_near(value(m, "P@5"), 100 * (3.0 + 2) / 5 / 2, 1e-9, "P@5");
  expect_near(value(m, "R@1"), 100 * (1.0 / 7 + 0) / 2, 1e-9, "R@1");
  expect_near(value(m, "R@3"), 100 * (2.0 / 7 + 0.5) / 2, 1e-9, "R@3");
  expect_near(value(m, "R@5"), 100 * (3.0 / 7 + 1) / 2, 1e-9, "R@5");
  expect_near(value(m, "R@10"), 100 * (4.0 / 7 + 1) / 2, 1e-9, "R@10");
  expect_near(value(m, "R@100"), 100 * (5.0 / 7 + 1) / 2, 1e-9, "R@100");
  const double d2 = 1 / std::log2(3.0), d4 = 1 / std::log2(5.0), d5 = 1 / std::log2(6.0);
  const double ndcg0 = (1 + 0.5 + d4) / (1 + d2 + 0.5 + d4 + d5), ndcg2 = (d2 + d5) / (1 + d2);
  expect_near(value(m, "nDCG@5"), 100 * (ndcg0 + ndcg2) / 2, 1e-9, "nDCG@5");
  const double C = (std::log(200.0) - 1) * std::pow(2.5, 0.55);
  const auto w = [&](double n) { return 1 + C * std::pow(n + 1.5, -0.55); };
  // Best sums: query 0 has four labels of count 1, then 4, 9, 50; query 2 has counts 0 and 50.
  expect_near(value(m, "PSP@1"), 100 * w(50) / (w(1) + w(0)), 1e-9, "PSP@1");
  expect_near(value(m, "PSP@3"), 100 * (w(50) + w(4) + w(50)) / (3 * w(1) + w(0) + w(50)), 1e-9, "PSP@3");
  const double gained = w(50) + w(4) + w(9) + w(50) + w(0), attainable = 4 * w(1) + w(4) + w(0) + w(50);
  expect_near(value(m, "PSP@5"), 100 * gained / attainable, 1e-9, "PSP@5");
  // True somewhere: 2 3 5 9 11 20 30 40. In a top 5 where they are true: 5, 2, 9, 3.
  expect_near(value(m, "coverage"), 100 * 4.0 / 8, 1e-9, "coverage");
}

TEST(Metrics, ShortListsAndNothingTrue) {
  const Truth truth(Truth::Rows{{0, 1}});
  const Metrics m = evaluate(lists_of({{1}}, 2), truth, no_counts, 500);  // the second place is -1
  EXPECT_EQ(value(m, "P@1"), 100);
  EXPECT_EQ(value(m, "P@5"), 20);
  EXPECT_EQ(value(m, "R@100"), 50);
  const Metrics none = evaluate(lists_of({{1}}, 2), Truth(Truth::Rows{{}}), no_counts, 500);
  for (const double p : none.percent) EXPECT_EQ(p, 0);
  EXPECT_TRUE(none.p1.empty());
  EXPECT_THROW(evaluate(lists_of({{1}, {2}}, 2), truth, no_counts, 500), Error);
}

TEST(Metrics, DroppedLabelsEqualRankingWithoutThem) {
  Ranked lists = lists_of({{7, 3, 5}, {4, 9, -1}, {1, 2, 3}}, 3);
  lists.scores = {3, 2, 1, 6, 5, 0, 9, 8, 7};
  const Truth dropped(Truth::Rows{{3}, {}, {0, 8}});
  const Ranked out = drop_labels(lists, dropped, 2);
  EXPECT_EQ(out.ids, (std::vector<int32_t>{7, 5, 4, 9, 1, 2}));
  EXPECT_EQ(out.scores, (std::vector<float>{3, 1, 6, 5, 9, 8}));
  EXPECT_EQ(drop_labels(lists, {}, 2).ids, (std::vector<int32_t>{7, 3, 4, 9, 1, 2}));
  EXPECT_EQ(drop_labels(lists, dropped, 3).ids, (std::vector<int32_t>{7, 5, -1, 4, 9, -1, 1, 2, 3}));
  const Truth more(Truth::Rows{{3, 5, 7}, {4}, {1, 3}});  // as by a filter file
  EXPECT_EQ(drop_labels(lists, more, 2).ids, (std::vector<int32_t>{-1, -1, 9, -1, 2, -1}));
}

TEST(Metrics, ListRecall) {
  EXPECT_EQ(list_recall(lists_of({{1, 2, 3}, {5, 4, -1}}, 3), lists_of({{3, 2, 8}, {4, -1, -1}}, 3)), 75);
  EXPECT_EQ(list_recall(lists_of({{-1}}, 1), lists_of({{-1}}, 1)), 100);
}

TEST(Metrics, JsonAndTableNameEverything) {
  const Ranked lists = lists_of({list_with({{1, 4}})}, 100);
  const Metrics m = evaluate(lists, Truth(Truth::Rows{{4}}), no_counts, 500, {0.6, 2.6});
  JsonWriter json(true);
  write_json(json, m);
  EXPECT_EQ(json.text(),
            "{\"P@1\": 100, \"P@3\": 33.33333333333333, \"P@5\": 20, \"R@1\": 100, \"R@3\": 100, "
            "\"R@5\": 100, \"R@10\": 100, \"R@100\": 100, \"nDCG@5\": 100, \"PSP@1\": 100, "
            "\"PSP@3\": 100, \"PSP@5\": 100, "
            "\"coverage\": 100, \"PSP_A\": 0.6, \"PSP_B\": 2.6, \"queries\": 1}");
  const std::pair<std::string, Metrics> methods[] = {{"tfidf", m}, {"untrained", m}};
  const std::string table = metrics_table(methods);
  EXPECT_NE(table.find("\ntfidf       100.00    33.33    20.00"), std::string::npos) << table;
  EXPECT_NE(table.find("\nuntrained   100.00    33.33    20.00"), std::string::npos) << table;
  EXPECT_NE(table.find("1 queries; PSP with A 0.6, B 2.6; coverage at 5"), std::string::npos) << table;
  EXPECT_EQ(table.find("P@1"), 9u + 1 + 5) << table;
  EXPECT_FALSE(metrics_table({}).empty());
}

TEST(Bootstrap, IntervalOfANormalMean) {
  // Differences of mean 3 and deviation 10 over 2,500 queries: the interval is 3 +- 1.96 * 10 / 50.
  std::vector<double> a, b;
  for (int i = 0; i < 2500; ++i) {
    const double u = random_uniform(1, 2, i), v = random_uniform(1, 3, i);
    a.push_back(100 * random_uniform(1, 4, i));
    b.push_back(a.back() + 10 * std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
  }
  double shift = 0;
  for (int i = 0; i < 2500; ++i) shift += (b[i] - a[i]) / 2500;
  for (double& x : b) x += 3 - shift;
  Threads threads(2);
  const Interval interval = paired_bootstrap(a, b, 7, threads);
  expect_near(interval.mean, 3, 1e-9, "mean");
  expect_near(interval.low, 3 - 0.392, 0.03, "low");
  expect_near(interval.high, 3 + 0.392, 0.03, "high");
}

// The resamples as their definition draws them: the 26th from each end of 1,000.
TEST(Bootstrap, IntervalIsOfTheSortedMeans) {
  constexpr size_t n = 37, resamples = 1000;
  std::vector<double> a(n), b(n), means;
  for (size_t i = 0; i < n; ++i) a[i] = random_uniform(2, 1, i), b[i] = random_uniform(2, 2, i);
  for (size_t r = 0; r < resamples; ++r) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      const size_t at = (random_bits(9, r, i) >> 32) * n >> 32;
      sum += b[at] - a[at];
    }
    means.push_back(sum / n);
  }
  std::sort(means.begin(), means.end());
  Threads threads(2);
  const Interval interval = paired_bootstrap(a, b, 9, threads, resamples);
  expect_near(interval.low, means[25], 1e-15, "low");
  expect_near(interval.high, means[resamples - 26], 1e-15, "high");
  EXPECT_TRUE(means[24] < means[25] - 1e-12 && means[25] < means[26] - 1e-12);
}

// With one query in two of difference 1, a resample's mean is binomial(n, 1/2) / n: its tails are known
// exactly.
TEST(Bootstrap, BinomialTails) {
  const std::vector<double> a(100, 0);
  std::vector<double> b(100, 0);
  for (int i = 0; i < 50; ++i) b[i] = 1;
  Threads threads(1);
  const Interval interval = paired_bootstrap(a, b, 3, threads);
  EXPECT_EQ(interval.mean, 0.5);
  EXPECT_EQ(interval.low, 0.40);   // P(X <= 39) = 1.8 %, P(X <= 40) = 2.8 %
  EXPECT_EQ(interval.high, 0.60);
}

TEST(Bootstrap, ReachesEveryQueryAndBothEnds) {
  // One resample of 1,000 queries: its mean is a sample of i / 1000 drawn with replacement.
  std::vector<double> a(1000, 0), b(1000);
  for (int i = 0; i < 1000; ++i) b[i] = i;
  Threads threads(1);
  const Interval all = paired_bootstrap(a, b, 5, threads, 40);
  EXPECT_TRUE(all.low < 499.5 && all.low > 450) << all.low;
  EXPECT_TRUE(all.high > 499.5 && all.high < 550) << all.high;
  const Interval one = paired_bootstrap(std::vector<double>{1}, std::vector<double>{4}, 5, threads, 1);
  EXPECT_TRUE(one.mean == 3 && one.low == 3 && one.high == 3);
}

TEST(Bootstrap, SameBitsForAnyThreadsOtherForOtherSeeds) {
  std::vector<double> a, b;
  for (int i = 0; i < 333; ++i) a.push_back(random_uniform(9, 0, i)), b.push_back(random_uniform(9, 1, i));
  Threads one(1), seven(7);
  const Interval x = paired_bootstrap(a, b, 11, one, 1000), y = paired_bootstrap(a, b, 11, seven, 1000);
  EXPECT_TRUE(x.low == y.low && x.high == y.high && x.mean == y.mean);
  EXPECT_NE(x.low, paired_bootstrap(a, b, 12, one, 1000).low);
  EXPECT_THROW(paired_bootstrap(a, std::span(b).first(332), 1, one), Error);
  EXPECT_THROW(paired_bootstrap({}, {}, 1, one), Error);
}

// The other half is tests/peers/metrics.py, which printed the numbers below: real labels, lists by random
// scores.
TEST(Metrics, EqualsNumpyOnRealLabels) {
  FILE* in = fopen("../shared/data/lf-amazontitles-131k-partial/tst_X_Y.txt", "r");
  if (!in) GTEST_SKIP() << "needs ../shared/data/lf-amazontitles-131k-partial";
  int rows = 0, labels = 0, label = 0;
  char line[4096];
  ASSERT_EQ(fscanf(in, "%d %d ", &rows, &labels), 2);
  Truth::Rows truth;
  std::vector<int64_t> counts(labels);
  while (fgets(line, sizeof line, in)) {
    truth.emplace_back();
    for (int at = 0, used; sscanf(line + at, "%d:%*f%n", &label, &used) == 1; at += used) {
      truth.back().push_back(label);
      ++counts[label];
    }
  }
  fclose(in);
  ASSERT_EQ(static_cast<int>(truth.size()), rows);
  Ranked lists(rows, 100);
  for (int64_t q = 0; q < rows; ++q) {
    std::vector<int32_t> candidates = truth[q];  // and 150 random labels; all scored by 24 random bits
    for (uint64_t j = 0; j < 150; ++j) candidates.push_back(int32_t(random_bits(1, q, j) % labels));
    std::sort(candidates.begin(), candidates.end());
    candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
    for (const int32_t c : candidates) lists.offer(q, static_cast<float>(random_bits(2, q, c) >> 40), c);
  }
  const std::pair<Propensity, std::array<double, 13>> golden[] = {
#include "tests/index/metrics_golden.inc"
  };
  for (const auto& [propensity, expected] : golden) {
    const Metrics m = evaluate(lists, Truth(truth), counts, 294805, propensity);
    for (size_t i = 0; i < metric_names.size(); ++i)
      expect_near(m.percent[i], expected[i], 1e-9, metric_names[i]);
  }
}

}  // namespace
}  // namespace quest
