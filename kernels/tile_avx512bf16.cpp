// A register tile in AVX-512 BF16: 8 rows x 48 outputs. Each 32-bit word of x and w holds the bf16 elements
// of inner index 2k (low half) and 2k + 1.
#include <immintrin.h>

#include "kernels/tile_product.h"

namespace quest {

constexpr auto multiply_add = [](__m512 sum, float a, __m512 b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
};

void tile_avx512bf16(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_tile<8, 3>(x, w, acc, steps, _mm512_setzero_ps(), multiply_add);
}
void peak_avx512bf16(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_peak<24>(x, w, acc, steps, _mm512_setzero_ps(), multiply_add);
}

}  // namespace quest
