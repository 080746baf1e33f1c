// Numbers one by one: stored formats, exponential, sums. Only C headers, and all is static, because every
// tile_*.cpp compiles its own copy for its instruction set and no copy may leak into another path.
// Loops over these give the same bits at any vector width: products and sums are rounded apart.
#pragma once
#include <stdint.h>

namespace quest {

// ggml's blocks of 32 elements; d and m are f16, little endian.
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t nibbles[16];
};  // element e: d * nibble + m; low nibbles are 0..15
struct BlockQ8_0 {
  uint16_t d;
  int8_t values[32];
};  // element e: d * value
static_assert(sizeof(BlockQ4_1) == 20 && sizeof(BlockQ8_0) == 34);

static inline uint32_t bits_of(float f) { return __builtin_bit_cast(uint32_t, f); }
static inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

static inline float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

// The bits of the nearest bf16 in the upper half of a word, ties to even; NaN stays NaN, made quiet.
static inline uint32_t bf16_bits(float f) {
  const uint32_t u = bits_of(f), rounded = u + 0x7fff + ((u >> 16) & 1);
  return ((u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : rounded) & 0xffff0000;
}
static inline uint16_t to_bf16(float f) { return static_cast<uint16_t>(bf16_bits(f) >> 16); }
static inline float round_bf16(float f) { return float_of(bf16_bits(f)); }

// Exact. The exponent is re-biased by a product, which also makes f16's subnormals normal.
static inline float from_f16(uint16_t h) {
  const float magnitude = float_of((h & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t infinity = magnitude >= 65536.0f ? 0x7f800000u : 0u;  // or NaN: the fraction stays
  return float_of(bits_of(magnitude) | infinity | (h & 0x8000u) << 16);
}

// Sum of a_i b_i: 16 running sums (index i goes to sum i mod 16), added pairwise at the end. The order is
// fixed by n.
static inline float dot(const float* a, const float* b, int64_t n) {
  float sum[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) sum[j] += a[i + j] * b[i + j];
  for (int j = 0; i < n; ++i, ++j) sum[j] += a[i] * b[i];
  for (int width = 8; width; width /= 2)
    for (int j = 0; j < width; ++j) sum[j] += sum[j + width];
  return sum[0];
}

static inline void axpy(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (remainder < 6e-9), scaled
// by 2^n through the exponent bits. Relative error below 2e-7; below -87 it is e^-87, above 88 e^88; NaN
// stays NaN.
static inline float exp_f32(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float z = x * 1.44269504f + shifter, n = z - shifter;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_of((bits_of(z) - 0x4b400000 + 127) << 23);
}

}  // namespace quest
