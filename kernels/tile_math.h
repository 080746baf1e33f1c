// Numbers one by one: stored formats, exponential, sums. Only C headers, and all is static, because every
// tile_*.cpp compiles its own copy for its instruction set and no copy may leak into another path.
// Loops over these give the same bits at any vector width: products and sums are rounded apart.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels/blocks.h"

namespace quest {

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

// A register of the instruction set that a file is compiled for (by g++; clang says 16 bytes everywhere).
typedef float Lanes __attribute__((vector_size(__BIGGEST_ALIGNMENT__), aligned(4), may_alias));
constexpr int lanes = sizeof(Lanes) / 4;
static inline const Lanes& lanes_at(const float* x) { return *reinterpret_cast<const Lanes*>(x); }

// a[first], b[first], a[first + 1], b[first + 1], ...: as many as one has.
template <int first, class V>
static inline V interleave(V a, V b) {
  constexpr int f = first;
  if constexpr (sizeof a == 64)
    return __builtin_shufflevector(a, b, f, f + 16, f + 1, f + 17, f + 2, f + 18, f + 3, f + 19, f + 4,
                                   f + 20, f + 5, f + 21, f + 6, f + 22, f + 7, f + 23);
  else if constexpr (sizeof a == 32)
    return __builtin_shufflevector(a, b, f, f + 8, f + 1, f + 9, f + 2, f + 10, f + 3, f + 11);
  else
    return __builtin_shufflevector(a, b, f, f + 4, f + 1, f + 5);
}

// The elements of a vector, its halves added until there is one: i and i + n/2, then i and i + n/4, ...
template <class V>
static inline float total(V s) {
  if constexpr (sizeof s == 64)
    return total(__builtin_shufflevector(s, s, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15));
  else if constexpr (sizeof s == 32)
    return total(__builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7));
  else
    return (s[0] + s[2]) + (s[1] + s[3]);
}

// out[row], row < rows: the sum of term(row, i) over i < n, 16 sums side by side (i goes to sum i mod 16),
// halves added as above; then the last n mod 16 terms, one by one. The order is fixed by n, not by the
// registers. terms(row, i): `lanes` terms from i on. Rows hide each other's latency.
template <int rows = 1>
static inline void add_up(int64_t n, float* out, auto&& terms, auto&& term) {
  constexpr int parts = 16 / lanes;
  Lanes s[rows][parts] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
#pragma GCC unroll 4
    for (int row = 0; row < rows; ++row)
      for (int part = 0; part < parts; ++part) s[row][part] += terms(row, i + part * lanes);
#pragma GCC unroll 4
  for (int row = 0; row < rows; ++row) {
    for (int width = parts / 2; width; width /= 2)
      for (int part = 0; part < width; ++part) s[row][part] += s[row][part + width];
    out[row] = total(s[row][0]);
    for (int64_t last = i; last < n; ++last) out[row] += term(row, last);
  }
}

// out[row] = sum of a_i b[row]_i, the b[row] `stride` apart.
template <int rows>
static inline void dot_rows(const float* a, const float* b, int64_t stride, int64_t n, float* out) {
  add_up<rows>(
      n, out, [&](int row, int64_t i) { return lanes_at(a + i) * lanes_at(b + row * stride + i); },
      [&](int row, int64_t i) { return a[i] * b[row * stride + i]; });
}
static inline float dot(const float* a, const float* b, int64_t n) {
  float out;
  dot_rows<1>(a, b, 0, n, &out);
  return out;
}

static inline float sum(const float* x, int64_t n) {
  float out;
  add_up(
      n, &out, [&](int, int64_t i) { return lanes_at(x + i); }, [&](int, int64_t i) { return x[i]; });
  return out;
}

static inline void axpy(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// y (n floats) = sum over j < count, ascending, of p_j x_j; the x_j are `stride` apart.
template <int columns>
static inline void mix_columns(const float* p, const float* x, int64_t stride, int64_t count, float* y) {
  Lanes sum[columns / lanes] = {};
  for (int64_t j = 0; j < count; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < columns / lanes; ++i) sum[i] += p[j] * lanes_at(x + j * stride + i * lanes);
  memcpy(y, sum, sizeof sum);
}
static inline void mix(const float* p, const float* x, int64_t n, int64_t stride, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) mix_columns<64>(p, x + i, stride, count, y + i);
  for (; i + 16 <= n; i += 16) mix_columns<16>(p, x + i, stride, count, y + i);
  for (; i < n; ++i) {
    y[i] = 0;
    for (int64_t j = 0; j < count; ++j) y[i] += p[j] * x[j * stride + i];
  }
}

// y_j += p_j x (n floats) for j < count; the y_j are `stride` apart.
template <int columns>
static inline void spread_columns(const float* p, const float* x, int64_t stride, int64_t count, float* y) {
  Lanes row[columns / lanes];
  memcpy(row, x, sizeof row);
  for (int64_t j = 0; j < count; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < columns / lanes; ++i)
      *reinterpret_cast<Lanes*>(y + j * stride + i * lanes) += p[j] * row[i];
}
static inline void spread(const float* p, const float* x, int64_t n, int64_t stride, int64_t count,
                          float* y) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) spread_columns<64>(p, x + i, stride, count, y + i);
  for (; i + 16 <= n; i += 16) spread_columns<16>(p, x + i, stride, count, y + i);
  for (int64_t j = 0; j < count; ++j)
    for (int64_t k = i; k < n; ++k) y[j * stride + k] += p[j] * x[k];
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
