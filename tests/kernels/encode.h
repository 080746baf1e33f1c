// Encoders, for tests only: floats in every format that is read; blocks as ggml's reference does it. And the way
// back, by the decoders of a kernel path.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/ops.h"
#include "kernels/tile.h"
#include "kernels/tile_math.h"

namespace quest {

// out[i] = element first + i of a row; of packed types first and count are multiples of 32.
inline void decode(Type type, const void* row, int64_t first, int64_t count, float* out,
                   const RowKernels& kernels = rows_portable) {
  kernels.decode[static_cast<int>(type)](row, first, count, out);
}

inline uint16_t to_f16(float f) {  // to the nearest, ties to even
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const double a = std::fabs(static_cast<double>(f));
  if (std::isnan(f)) return 0x7e00;
  if (a >= 65520) return sign | 0x7c00;
  const int exponent = a < 0x1p-14 ? -14 : std::ilogb(a);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(a, 10 - exponent)));  // of the last place
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + units));
}

inline BlockQ4_1 encode_q4_1(const float* x) {
  const auto [least, most] = std::minmax_element(x, x + block_size);
  BlockQ4_1 b{to_f16((*most - *least) / 15), to_f16(*least), {}};
  const float scale = *most > *least ? 15 / (*most - *least) : 0;
  for (int e = 0; e < 32; ++e) {
    const int nibble = std::min(15, static_cast<int>((x[e] - *least) * scale + 0.5f));
    b.nibbles[e % 16] = static_cast<uint8_t>(b.nibbles[e % 16] | nibble << (e / 16 * 4));
  }
  return b;
}

inline BlockQ8_0 encode_q8_0(const float* x) {
  float most = 0;
  for (int e = 0; e < 32; ++e) most = std::max(most, std::fabs(x[e]));
  BlockQ8_0 b{to_f16(most / 127), {}};
  const float scale = most > 0 ? 127 / most : 0;
  for (int e = 0; e < 32; ++e) b.values[e] = static_cast<int8_t>(std::round(x[e] * scale));
  return b;
}

constexpr Type stored_types[] = {Type::f32,  Type::f16,  Type::bf16, Type::q4_0, Type::q4_1, Type::q5_0,
                                 Type::q5_1, Type::q8_0, Type::q4_k, Type::q5_k, Type::q6_k};

// Where the f16 fields of a packed type's block stand.
inline std::vector<int64_t> halves_of(Type type) {
  if (type == Type::q6_k) return {208};
  const bool least = type == Type::q4_1 || type == Type::q5_1 || type == Type::q4_k || type == Type::q5_k;
  return least ? std::vector<int64_t>{0, 2} : std::vector<int64_t>{0};
}

// Blocks of bytes from a fixed generator; the high byte of every f16 field is `high`: 0x2c, small scales.
inline std::vector<uint8_t> random_blocks(Type type, int64_t count, uint32_t seed = 1, uint8_t high = 0x2c) {
  const Format f = format_of(type);
  std::vector<uint8_t> out(static_cast<size_t>(count / f.elements * f.bytes));
  for (uint8_t& byte : out) {
    seed = seed * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(seed >> 8);
  }
  for (size_t b = 0; b < out.size(); b += static_cast<size_t>(f.bytes))
    for (const int64_t at : halves_of(type)) out[b + static_cast<size_t>(at) + 1] = high;
  return out;
}

// count elements as bytes of the given type (a multiple of its block); of types that only others write, random
// blocks.
inline std::vector<uint8_t> encode(Type type, const float* x, int64_t count) {
  const int64_t block = format_of(type).elements;
  if (block > 1 && type != Type::q4_1 && type != Type::q8_0)
    return random_blocks(type, count, static_cast<uint32_t>(1e6f * x[0]), 0x20);
  std::vector<uint8_t> out(static_cast<size_t>(row_bytes(type, count)));
  for (int64_t i = 0; i < count; i += block) {
    uint8_t* to = out.data() + row_bytes(type, i);
    const uint16_t half = type == Type::f16 ? to_f16(x[i]) : to_bf16(x[i]);
    if (type == Type::f32) memcpy(to, x + i, 4);
    if (type == Type::f16 || type == Type::bf16) memcpy(to, &half, 2);
    if (type == Type::q4_1) *reinterpret_cast<BlockQ4_1*>(to) = encode_q4_1(x + i);
    if (type == Type::q8_0) *reinterpret_cast<BlockQ8_0*>(to) = encode_q8_0(x + i);
  }
  return out;
}

}  // namespace quest
