// A register tile in AVX2: 6 rows x 16 outputs, 12 sums in registers. kernels/matmul.h says what it does.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/tile_rows.h"

namespace quest {

void tile_avx2(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int x_stride = 208, rows = 6;
  __m256 sum[rows][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < 2; ++j) sum[r][j] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int64_t k = 0; k < steps; ++k) {
    const __m256 w0 = _mm256_load_ps(w + 16 * k), w1 = _mm256_load_ps(w + 16 * k + 8);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      const __m256 v = _mm256_broadcast_ss(x + r * x_stride + k);
      sum[r][0] = _mm256_fmadd_ps(v, w0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(v, w1, sum[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < 2; ++j) {
      float* to = acc + r * 16 + j * 8;
      _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), sum[r][j]));
    }
}

const RowKernels rows_avx2 = row_kernels;

}  // namespace quest
