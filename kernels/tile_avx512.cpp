// A register tile in AVX-512: 8 rows x 48 outputs, 24 sums in registers.
#include <immintrin.h>

#include "kernels/tile_product.h"
#include "kernels/tile_rows.h"

namespace quest {

constexpr auto multiply_add = [](__m512 sum, float a, __m512 b) {
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, sum);
};

void tile_avx512(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_tile<8, 3>(x, w, acc, steps, _mm512_setzero_ps(), multiply_add);
}
void quads_avx512(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_quads<8, 48>(x, w, acc, steps);
}
void peak_avx512(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_peak<24>(x, w, acc, steps, _mm512_setzero_ps(), multiply_add);
}

const RowKernels rows_avx512 = row_kernels;

}  // namespace quest
