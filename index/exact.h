// The exact scan: every query against every label. The metrics come from here.
#pragma once
#include "index/ranked.h"

namespace quest {

class Threads;
class Progress;

// Dense vectors, one a row.
struct Vectors {
  const float* data = nullptr;  // [count, width]
  int64_t count = 0, width = 0;
  const float* row(int64_t i) const { return data + i * width; }
};

// Inner product in 16 partial sums: any compiler vectorises it, and the order of the sum is fixed.
inline float dot(const float* a, const float* b, int64_t n) {
  constexpr int lanes = 16;
  float sum[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int j = 0; j < lanes; ++j) sum[j] += a[i + j] * b[i + j];
  for (int j = 0; i + j < n; ++j) sum[j] += a[i + j] * b[i + j];
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

// The k labels of largest inner product (cosine, for unit vectors), ties by lower label. Left out are labels
// with allowed[label] == 0 (empty: none) and those whose score is NaN. Same bits for any number of threads.
// progress counts queries. Throws Error(input) when the widths differ.
Ranked exact_top_k(Vectors queries, Vectors labels, std::span<const uint8_t> allowed, int64_t k, Threads&,
                   Progress* progress = nullptr);

}  // namespace quest
