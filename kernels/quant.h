// Stored number formats. A format is one decoder: nothing else knows its bytes.
#pragma once
#include <bit>
#include <cstdint>

#include "kernels/ops.h"

namespace quest {

// ggml's blocks of 32 elements; d and m are f16, little endian.
struct BlockQ4_1 { uint16_t d, m; uint8_t nibbles[16]; };  // element e: d * nibble + m; low nibbles are 0..15
struct BlockQ8_0 { uint16_t d; int8_t values[32]; };       // element e: d * value
static_assert(sizeof(BlockQ4_1) == 20 && sizeof(BlockQ8_0) == 34);

constexpr int64_t block_size = 32;  // elements of a block of every packed type

inline float from_bf16(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }

// The bits of the nearest bf16 in the upper half of a word, ties to even; NaN stays NaN, made quiet.
inline uint32_t bf16_bits(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
  return ((u & 0x7fffffff) > 0x7f800000 ? u | 0x400000 : rounded) & 0xffff0000;
}
inline uint16_t to_bf16(float f) { return static_cast<uint16_t>(bf16_bits(f) >> 16); }
inline float round_bf16(float f) { return std::bit_cast<float>(bf16_bits(f)); }

// Exact. The exponent is re-biased by a product, which also makes f16's subnormals normal.
inline float from_f16(uint16_t h) {
  const float magnitude = std::bit_cast<float>((h & 0x7fffu) << 13) * 0x1p112f;
  const uint32_t infinity = magnitude >= 65536.0f ? 0x7f800000u : 0u;  // or NaN: the fraction stays
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | infinity | (h & 0x8000u) << 16);
}

// out[i] = element first + i of a row of type f32, f16, bf16, q4_1 or q8_0, i in [0, count). For packed types
// first and count are multiples of block_size. Products and sums are rounded apart, which gives ggml's bits.
void decode(Type type, const void* row, int64_t first, int64_t count, float* out);

}  // namespace quest
