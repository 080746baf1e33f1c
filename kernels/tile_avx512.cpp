// A register tile in AVX-512: 8 rows x 48 outputs, 24 sums in registers. kernels/matmul.h says what it does.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/tile_rows.h"

namespace quest {

void tile_avx512(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int x_stride = 208, rows = 8, vectors = 3, columns = 16 * vectors;
  __m512 sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < vectors; ++j) sum[r][j] = _mm512_setzero_ps();
#pragma GCC unroll 2
  for (int64_t k = 0; k < steps; ++k) {
    __m512 weights[vectors];
    for (int j = 0; j < vectors; ++j) weights[j] = _mm512_load_ps(w + columns * k + 16 * j);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512 v = _mm512_set1_ps(x[r * x_stride + k]);
      for (int j = 0; j < vectors; ++j) sum[r][j] = _mm512_fmadd_ps(v, weights[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < vectors; ++j) {
      float* to = acc + r * columns + 16 * j;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), sum[r][j]));
    }
}

const RowKernels rows_avx512 = row_kernels;

}  // namespace quest
