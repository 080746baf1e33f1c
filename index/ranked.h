// What every ranker returns and every metric reads: ranked lists and sparse truth.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

namespace quest {

// Top labels of every query, best first; id -1, score 0 behind the last of a short list.
struct Ranked {
  int64_t queries = 0, k = 0;
  std::vector<int32_t> ids;   // [queries, k]
  std::vector<float> scores;  // [queries, k]

  Ranked() = default;
  Ranked(int64_t n, int64_t width) : queries(n), k(width), ids(n * width, -1), scores(n * width) {}
  std::span<const int32_t> row(int64_t query) const { return {ids.data() + query * k, size_t(k)}; }
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

// Keeps the k best of the labels offered, by score, ties by lower id. A NaN is never kept.
class TopK {
 public:
  struct Entry {
    float score;
    int32_t id;
  };

  explicit TopK(size_t k) : k_(k) { heap_.reserve(k + 1); }

  void offer(float score, int32_t id) {
    const Entry entry{score, id};
    if (std::isnan(score) || (heap_.size() == k_ && !better(entry, heap_.front()))) return;
    heap_.push_back(entry);
    std::push_heap(heap_.begin(), heap_.end(), better);
    if (heap_.size() <= k_) return;
    std::pop_heap(heap_.begin(), heap_.end(), better);
    heap_.pop_back();
  }

  std::span<const Entry> sorted() {  // best first; clear() before the next offer
    std::sort(heap_.begin(), heap_.end(), better);
    return heap_;
  }
  void clear() { heap_.clear(); }

  // Moves the entries to row `query` of lists at least k wide.
  void take_into(Ranked& lists, int64_t query) {
    int64_t at = query * lists.k;
    for (const Entry& e : sorted()) lists.ids[at] = e.id, lists.scores[at++] = e.score;
    clear();
  }

 private:
  static bool better(const Entry& a, const Entry& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  }
  size_t k_;
  std::vector<Entry> heap_;  // the worst one in front
};

}  // namespace quest
