// Scalar pieces of the CPU ops, written so that the compiler vectorises them at any width with the same bits.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/quant.h"

namespace quest {

inline float load(float x) { return x; }
inline float load(uint16_t bf16) { return from_bf16(bf16); }
inline void store(float& to, float x) { to = x; }
inline void store(uint16_t& to, float x) { to = to_bf16(x); }

template <class A>
A* row_as(const View& v, int64_t i) {
  return static_cast<A*>(v.data) + i * v.stride;
}

// Sum of a_i b_i: 16 running sums (index i goes to sum i mod 16), added pairwise at the end. The order is
// fixed by n.
inline float dot(const float* a, const float* b, int64_t n) {
  float sum[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) sum[j] += a[i + j] * b[i + j];
  for (int j = 0; i < n; ++i, ++j) sum[j] += a[i] * b[i];
  for (int width = 8; width; width /= 2)
    for (int j = 0; j < width; ++j) sum[j] += sum[j + width];
  return sum[0];
}

inline void axpy(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (remainder < 6e-9), scaled
// by 2^n through the exponent bits. Relative error below 2e-7; below -87 it is e^-87, above 88 e^88; NaN
// stays NaN.
inline float exp_f32(float x) {
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
  return p * std::bit_cast<float>((std::bit_cast<int32_t>(z) - 0x4b400000 + 127) << 23);
}

}  // namespace quest
