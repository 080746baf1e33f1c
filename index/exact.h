// What every ranker returns and every metric reads, ranked lists and sparse truth; and the exact scan, every
// query against every label, which the metrics come from.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"
#include "kernels/matmul.h"

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

  int64_t rows() const { return std::ssize(offsets) - 1; }
  std::span<const int32_t> row(int64_t i) const {
    return columns.subspan(offsets[i], offsets[i + 1] - offsets[i]);
  }
  // Without any row, nothing does.
  bool holds(int64_t i, int32_t column) const {
    return !offsets.empty() && std::ranges::binary_search(row(i), column);
  }
};

// The first k of every list without the labels that are dropped for its query. Lists longer than k by as many
// thus serve both protocols: dropped before ranking, and raw.
inline Ranked drop_labels(const Ranked& lists, SparseRows dropped, int64_t k) {
  Ranked out(lists.queries, k);
  for (int64_t i = 0; i < lists.queries * lists.k; ++i) {
    const int64_t query = i / lists.k;
    if (lists.ids[i] >= 0 && !dropped.holds(query, lists.ids[i]))
      out.offer(query, lists.scores[i], lists.ids[i]);
  }
  return out;
}

// Percent of the labels in the exact lists that the other lists of the same queries hold.
inline double list_recall(const Ranked& lists, const Ranked& exact) {
  double found = 0, wanted = 0;
  for (int64_t q = 0; q < exact.queries; ++q)
    for (const int32_t id : exact.row(q))
      if (id >= 0) wanted += 1, found += std::ranges::count(lists.row(q), id);
  return wanted > 0 ? 100 * found / wanted : 100;
}

// Dense vectors, one a row.
struct Vectors {
  const float* data = nullptr;  // [count, width]
  int64_t count = 0, width = 0;
  const float* row(int64_t i) const { return data + i * width; }
};

// Throws Error(input) unless the queries have this width.
inline void require_width(Vectors queries, int64_t width) {
  if (queries.width != width)
    fail(Exit::input,
         "query vectors: expected width %ld as the labels have, found %ld; use one model for both", width,
         queries.width);
}

// The k labels of largest inner product (cosine, for unit vectors), ties by lower label; those whose score is
// NaN are left out. Same bits for any number of threads. Throws Error(input) when the widths differ.
inline Ranked exact_top_k(Vectors queries, Vectors labels, int64_t k, Threads& threads) {
  // A block of labels stays in the first-level cache while a block of queries passes over it; a few queries
  // are shared out evenly.
  constexpr int64_t label_block = 8;
  const int64_t query_block = std::clamp<int64_t>((queries.count - 1) / threads.count() + 1, 1, 64);
  const auto dots = kernel_paths()[0].row->dots;
  require_width(queries, labels.width);
  Ranked lists(queries.count, k);
  threads.each((queries.count + query_block - 1) / query_block, [&](int64_t item, int) {
    const int64_t first = item * query_block, end = std::min(first + query_block, queries.count);
    float scores[label_block];
    for (int64_t block = 0; block < labels.count; block += label_block)
      for (int64_t q = first; q < end; ++q) {
        const int64_t count = std::min(label_block, labels.count - block);
        dots(queries.row(q), labels.row(block), count, labels.width, scores);
        for (int64_t l = 0; l < count; ++l) lists.offer(q, scores[l], block + l);
      }
  });
  return lists;
}

}  // namespace quest
