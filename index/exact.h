// The exact scan: every query against every label. The metrics come from here.
#pragma once
#include "index/ranked.h"
#include "kernels/tile_math.h"

namespace quest {

class Threads;

// Dense vectors, one a row.
struct Vectors {
  const float* data = nullptr;  // [count, width]
  int64_t count = 0, width = 0;
  const float* row(int64_t i) const { return data + i * width; }
};

// The k labels of largest inner product (cosine, for unit vectors), ties by lower label. Left out are labels
// with allowed[label] == 0 (empty: none) and those whose score is NaN. Same bits for any number of threads.
// Throws Error(input) when the widths differ.
Ranked exact_top_k(Vectors queries, Vectors labels, std::span<const uint8_t> allowed, int64_t k, Threads&);

// Throws Error(input) unless the queries have this width.
void require_width(Vectors queries, int64_t width);

}  // namespace quest
