// The register tile of kernels/tile.h, once for all paths: rows x vectors sums stay in registers.
#pragma once
#include "kernels/tile.h"

namespace quest {

// sum[r][n] += x[r][k] * w[k][n], k ascending. multiply_add(sum, x, w): to a vector of sums the word x times
// a vector of words of w.
template <int rows, int vectors, class Vector, class MultiplyAdd>
static inline __attribute__((always_inline)) void multiply_steps(const float* x, const Vector* weights,
                                                                 int64_t steps, Vector (&sum)[rows][vectors],
                                                                 MultiplyAdd multiply_add) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < steps; ++k) {
    Vector row[vectors];
    for (int j = 0; j < vectors; ++j) row[j] = weights[k * vectors + j];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < vectors; ++j) sum[r][j] = multiply_add(sum[r][j], x[r * panel_inner + k], row[j]);
  }
}

// zero: of the vector's type.
template <int rows, int vectors, class Vector, class MultiplyAdd>
static inline void multiply_tile(const float* x, const float* w, float* acc, int64_t steps, Vector zero,
                                 MultiplyAdd multiply_add) {
  auto* stored = reinterpret_cast<Vector*>(acc);
  Vector sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < vectors; ++j) sum[r][j] = zero;
  multiply_steps(x, reinterpret_cast<const Vector*>(w), steps, sum, multiply_add);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < vectors; ++j) stored[r * vectors + j] += sum[r][j];
}

// The tile of quads, one by one.
template <int rows, int columns>
static inline void multiply_quads(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int64_t words = quad_block / 4;
  for (int64_t block = 0; block < steps / words; ++block)
    for (int64_t r = 0; r < rows; ++r) {
      const float *row = x + r * panel_inner, *scales = w + (quad_words + block) * columns;
      const auto* bytes = reinterpret_cast<const signed char*>(row + block * words);
      int32_t sums[columns];
      for (int n = 0; n < columns; ++n)
        sums[n] = __builtin_bit_cast(int32_t, row[quad_words + quad_blocks + block]);
      for (int64_t k = 0; k < quad_block; ++k) {
        const auto* weights = reinterpret_cast<const unsigned char*>(w + (block * words + k / 4) * columns);
        for (int n = 0; n < columns; ++n) sums[n] += bytes[k] * weights[4 * n + k % 4];
      }
      for (int n = 0; n < columns; ++n)
        acc[r * columns + n] += static_cast<float>(sums[n]) * (row[quad_words + block] * scales[n]);
    }
}

// As many multiply-adds of the first word of x and the first vector of w, from registers alone: what no tile
// can exceed.
template <int sums, class Vector, class MultiplyAdd>
static inline void multiply_peak(const float* x, const float* w, float* acc, int64_t steps, Vector zero,
                                 MultiplyAdd multiply_add) {
  Vector row = *reinterpret_cast<const Vector*>(w), sum[sums];
#pragma GCC unroll 24
  for (int i = 0; i < sums; ++i) sum[i] = zero;
  for (int64_t k = 0; k < steps; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < sums; ++i) {
      asm("" : "+v"(row), "+v"(sum[i]));  // nothing is known of either: no sum is another's, no product stays
      sum[i] = multiply_add(sum[i], *x, row);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < sums; ++i) reinterpret_cast<Vector*>(acc)[i] = sum[i];
}

}  // namespace quest
