// A register tile in AVX-512 VNNI: 8 rows x 48 outputs of int8, 24 sums of int32 in registers.
#include <immintrin.h>

#include "kernels/tile_product.h"

namespace quest {

typedef int32_t Integers __attribute__((vector_size(64)));

// The unsigned bytes are those of w. g++ 12 copies and spills every sum around the intrinsic.
constexpr auto multiply_add = [](__m512i sum, float a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(_mm512_set1_epi32(__builtin_bit_cast(int, a))));
  return sum;
};

void quads_avx512vnni(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int rows = 8, vectors = 3, words = quad_block / 4;
  const auto* weights = reinterpret_cast<const __m512i*>(w);
  const auto* scales = reinterpret_cast<const __m512*>(w + quad_words * 16 * vectors);
  auto* stored = reinterpret_cast<__m512*>(acc);
  for (int64_t block = 0; block < steps / words; ++block) {
    const float* row_scales = x + quad_words + block;
    __m512i sum[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < vectors; ++j)
        sum[r][j] = _mm512_set1_epi32(__builtin_bit_cast(int, row_scales[r * panel_inner + quad_blocks]));
    multiply_steps(x + block * words, weights + block * words * vectors, words, sum, multiply_add);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < vectors; ++j) {
        const __m512 scale = _mm512_set1_ps(row_scales[r * panel_inner]) * scales[block * vectors + j];
        stored[r * vectors + j] += __builtin_convertvector((Integers)sum[r][j], __m512) * scale;
      }
  }
}
void peak_avx512vnni(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_peak<24>(x, w, acc, steps, _mm512_setzero_si512(), multiply_add);
}

}  // namespace quest
