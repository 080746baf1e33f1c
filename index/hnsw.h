// The approximate index: hierarchical navigable small worlds (Malkov & Yashunin 2018) through hnswlib, which
// checks nothing that it loads: a sidecar of ours and a check of every link come before first use.
#pragma once
#include <memory>
#include <string>

#include "index/exact.h"

namespace quest {

class Hnsw {
 public:
  static constexpr int64_t links = 16;             // M: links a label and level, twice as many on level 0
  static constexpr int64_t ef_construction = 200;  // candidates kept while building
  static constexpr int64_t ef = 100;               // candidates kept while searching, at least k

  // Builds with one thread: two builds are identical. progress counts labels.
  explicit Hnsw(Vectors labels, class Progress* progress = nullptr);
  // What hnswlib takes for so many labels, and while so many threads search.
  static int64_t bytes(int64_t labels, int64_t width, int threads);

  // Loads what save wrote for so many labels of this width; throws Error(input) for anything else.
  Hnsw(const std::string& path, int64_t labels, int64_t width);

  // Writes PATH, the graph, and PATH.meta, the sidecar.
  void save(const std::string& path) const;

  // The k nearest labels it finds, in the order and with the scores of exact_top_k, to the bit, for any
  // number of threads. Throws Error(input) for another width.
  Ranked search(Vectors queries, int64_t k, Threads&) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace quest
