// The source of the AVX-512 BF16 tile, compiled for any machine: its intrinsics are replaced by plain loops.
// VDPBF16PS is fma(low, low, fma(high, high, sum)), each rounded once, denormal operands and results zero.
#pragma once
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace quest {

struct __attribute__((may_alias)) EmulatedLanes {
  uint32_t word[16];
  void operator+=(const EmulatedLanes& other) {
    for (int i = 0; i < 16; ++i)
      word[i] = std::bit_cast<uint32_t>(std::bit_cast<float>(word[i]) + std::bit_cast<float>(other.word[i]));
  }
};

inline float flushed(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? 0.0f : f; }

inline float emulated_dot(float sum, uint32_t a, uint32_t b) {
  const float low_a = std::bit_cast<float>(a << 16), low_b = std::bit_cast<float>(b << 16);
  const float high_a = std::bit_cast<float>(a & 0xffff0000), high_b = std::bit_cast<float>(b & 0xffff0000);
  const float high = flushed(std::fma(flushed(high_a), flushed(high_b), flushed(sum)));
  return flushed(std::fma(flushed(low_a), flushed(low_b), high));
}

inline EmulatedLanes emulated_set1(float f) {
  EmulatedLanes v;
  for (uint32_t& word : v.word) word = std::bit_cast<uint32_t>(f);
  return v;
}
inline EmulatedLanes emulated_dots(EmulatedLanes sum, EmulatedLanes a, EmulatedLanes b) {
  for (int i = 0; i < 16; ++i)
    sum.word[i] =
        std::bit_cast<uint32_t>(emulated_dot(std::bit_cast<float>(sum.word[i]), a.word[i], b.word[i]));
  return sum;
}

}  // namespace quest

#define __m512 EmulatedLanes
#define __m512bh EmulatedLanes
#define _mm512_set1_ps emulated_set1
#define _mm512_setzero_ps() EmulatedLanes{}
#define _mm512_dpbf16_ps emulated_dots
#define tile_avx512bf16 tile_emulated
#define peak_avx512bf16 peak_emulated
#define asm(...)  // which keeps registers apart
#include "kernels/tile_avx512bf16.cpp"
#undef asm
#undef peak_avx512bf16
#undef tile_avx512bf16
#undef _mm512_dpbf16_ps
#undef _mm512_setzero_ps
#undef _mm512_set1_ps
#undef __m512bh
#undef __m512
