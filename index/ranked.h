// What every ranker returns and every metric reads: ranked lists and sparse truth.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace quest {

// Top labels of every query, best first by score, then by lower id; id -1, score 0 behind the last of a short
// list.
struct Ranked {
  int64_t queries = 0, k = 0;
  std::vector<int32_t> ids;   // [queries, k]
  std::vector<float> scores;  // [queries, k]

  Ranked() = default;
  Ranked(int64_t n, int64_t width) : queries(n), k(width), ids(n * width, -1), scores(n * width) {}
  std::span<const int32_t> row(int64_t query) const { return {ids.data() + query * k, size_t(k)}; }

  // Puts the label in its place, if it belongs to the k best (k > 0); a NaN never does. Queries may run at
  // once.
  void offer(int64_t query, float score, int32_t id) {
    const auto goes_before = [&](int64_t i) {
      return ids[i] < 0 || score > scores[i] || (score == scores[i] && id < ids[i]);
    };
    int64_t at = query * k + k - 1;
    if (std::isnan(score) || !goes_before(at)) return;
    for (; at > query * k && goes_before(at - 1); --at) ids[at] = ids[at - 1], scores[at] = scores[at - 1];
    ids[at] = id, scores[at] = score;
  }
};

// Sparse rows (CSR) owned by somebody else: row i is columns[offsets[i] .. offsets[i + 1]), ascending,
// distinct.
struct SparseRows {
  std::span<const int64_t> offsets;  // [rows + 1]
  std::span<const int32_t> columns;

  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> row(int64_t i) const {
    return columns.subspan(offsets[i], offsets[i + 1] - offsets[i]);
  }
};

// The first k of every list without the query's own label. own [queries], -1 none; empty: nobody has one.
// Lists of k + 1 thus serve both protocols: own labels dropped before ranking, and raw.
Ranked drop_own(const Ranked& lists, std::span<const int32_t> own, int64_t k);

// Percent of the labels in the exact lists that the other lists of the same queries hold.
double list_recall(const Ranked& lists, const Ranked& exact);

}  // namespace quest
