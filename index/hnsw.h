// The approximate index: hierarchical navigable small worlds (Malkov & Yashunin 2018) through hnswlib, which
// checks nothing when it loads a file: our sidecar and a check of every link come before first use.
#pragma once
#include <memory>
#include <string>

#include "index/exact.h"

namespace quest {

struct HnswOptions {
  int64_t links = 16;             // M: links a label and level, twice as many on level 0
  int64_t ef_construction = 200;  // candidates kept while building
  int64_t ef = 100;               // candidates kept while searching (at least as many as asked for)
};

class Hnsw {
 public:
  // Builds with one thread: two builds are identical. Labels with allowed[label] == 0 stay out. progress counts
  // labels. Throws Error(machine) when memory runs out.
  Hnsw(Vectors labels, std::span<const uint8_t> allowed, HnswOptions = {}, Progress* progress = nullptr);

  // Loads what save wrote for so many labels of this width; throws Error(input) for anything else.
  Hnsw(const std::string& path, int64_t labels, int64_t width);
  ~Hnsw();

  // Writes PATH, the graph as hnswlib writes it, and PATH.meta, the sidecar.
  void save(const std::string& path) const;

  // The k nearest labels it finds, in the order and with the scores, to the bit, of exact_top_k. Same bits for any
  // number of threads. Throws Error(input) for another width, Error(machine) when memory runs out.
  Ranked search(Vectors queries, int64_t k, Threads&) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quest
