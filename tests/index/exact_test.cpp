// The exact scan against sums in double, its order, what it leaves out, and that threads change nothing.
#include "index/exact.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/tile_math.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"

namespace quest {
namespace {

std::vector<float> random_vectors(int64_t count, int64_t width, uint64_t seed) {
  std::vector<float> v;
  for (int64_t i = 0; i < count * width; ++i) v.push_back(float(random_uniform(seed, 0, i)) - 0.5f);
  return v;
}

TEST(Exact, DotEqualsDoubleAtEveryLength) {
  for (int64_t n = 0; n <= 70; ++n) {
    const auto a = random_vectors(1, n, 1), b = random_vectors(1, n, 2);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
    EXPECT_TRUE(std::abs(dot(a.data(), b.data(), n) - sum) <= 1e-6) << n;
  }
}

TEST(Exact, EqualsASortedScanAtAwkwardSizes) {
  Threads threads(2);
  for (const int64_t width : {1, 2, 3, 7, 15, 16, 17, 31, 33})
    for (const int64_t queries : {1, 15, 17, 33})
      for (const int64_t labels : {1, 2, 63, 64, 65, 131})
        for (const int64_t k : {1, 3, 100}) {
          const auto q = random_vectors(queries, width, 3), l = random_vectors(labels, width, 4);
          const Vectors left{q.data(), queries, width}, right{l.data(), labels, width};
          const Ranked lists = exact_top_k(left, right, k, threads);
          ASSERT_EQ(lists.queries, queries);
          ASSERT_EQ(lists.k, k);
          for (int64_t i = 0; i < queries; ++i) {
            std::vector<std::pair<float, int32_t>> all;
            for (int32_t j = 0; j < labels; ++j)
              all.push_back({-dot(q.data() + i * width, l.data() + j * width, width), j});
            std::sort(all.begin(), all.end());
            for (int64_t j = 0; j < k; ++j) {
              const bool there = j < labels;
              ASSERT_EQ(lists.ids[i * k + j], there ? all[j].second : -1);
              ASSERT_EQ(lists.scores[i * k + j], there ? -all[j].first : 0);
            }
          }
        }
}

TEST(Exact, TiesGoToTheLowerLabel) {
  Threads threads(1);
  const std::vector<float> query = {1}, labels = {2, 3, 3, 1, 3, 2};
  EXPECT_EQ(exact_top_k({query.data(), 1, 1}, {labels.data(), 6, 1}, 4, threads).ids,
            (std::vector<int32_t>{1, 2, 4, 0}));
}

TEST(Exact, NanIsNeverRanked) {
  Threads threads(1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> queries = {1, 0, nan, 0}, labels = {nan, 1, 0.5f, 0, 0.7f, nan, 0.1f, 0};
  const Ranked lists = exact_top_k({queries.data(), 2, 2}, {labels.data(), 4, 2}, 3, threads);
  EXPECT_EQ(lists.ids, (std::vector<int32_t>{1, 3, -1, -1, -1, -1}));
  for (const float s : lists.scores) EXPECT_TRUE(std::isfinite(s));
}

TEST(Exact, ThreadsChangeNothingAcrossReports) {
  const int64_t n = 1024 + 40, m = 70, width = 19;  // more than one report
  const auto q = random_vectors(n, width, 5), l = random_vectors(m, width, 6);
  Threads one(1), seven(7);
  const Ranked a = exact_top_k({q.data(), n, width}, {l.data(), m, width}, 9, one);
  const Ranked b = exact_top_k({q.data(), n, width}, {l.data(), m, width}, 9, seven);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(std::count(a.ids.begin(), a.ids.end(), -1), 0);
  EXPECT_THROW(exact_top_k({q.data(), n, width}, {l.data(), m, width - 1}, 9, one), Error);
}

}  // namespace
}  // namespace quest
