// A register tile in AVX2: 6 rows x 16 outputs, 12 sums in registers.
#include <immintrin.h>

#include "kernels/tile_product.h"
#include "kernels/tile_rows.h"

namespace quest {

constexpr auto multiply_add = [](__m256 sum, float a, __m256 b) {
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, sum);
};

void tile_avx2(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_tile<6, 2>(x, w, acc, steps, _mm256_setzero_ps(), multiply_add);
}
void quads_avx2(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_quads<6, 16>(x, w, acc, steps);
}
void peak_avx2(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_peak<12>(x, w, acc, steps, _mm256_setzero_ps(), multiply_add);
}

const RowKernels rows_avx2 = row_kernels;

}  // namespace quest
