#include "kernels/tile_math.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "tests/kernels/encode.h"

using namespace quest;

namespace {

unsigned long crc(const void* data, size_t size) {
  return crc32(0, static_cast<const Bytef*>(data), static_cast<uInt>(size));
}

// 64 blocks of bytes from a fixed generator; the high byte of every f16 header field is 0x2c: small scales.
std::vector<uint8_t> golden_blocks(size_t block_bytes, std::vector<size_t> high_bytes) {
  std::vector<uint8_t> out(64 * block_bytes);
  uint32_t s = 1;
  for (size_t i = 0; i < out.size(); ++i) {
    s = s * 1664525 + 1013904223;
    out[i] = static_cast<uint8_t>(s >> 8);
  }
  for (size_t b = 0; b < 64; ++b)
    for (size_t at : high_bytes) out[b * block_bytes + at] = 0x2c;
  return out;
}

TEST(Quant, BlocksDecodeToTheBitsOfGgml) {  // sums of ggml-quants.c's own bytes and floats
  std::vector<float> out(64 * 32);
  const std::vector<uint8_t> q4 = golden_blocks(sizeof(BlockQ4_1), {1, 3});
  EXPECT_EQ(crc(q4.data(), q4.size()), 0xe7514038u);
  decode(Type::q4_1, q4.data(), 0, 64 * 32, out.data());
  EXPECT_EQ(crc(out.data(), out.size() * 4), 0x4dabc32eu);
  const std::vector<uint8_t> q8 = golden_blocks(sizeof(BlockQ8_0), {1});
  EXPECT_EQ(crc(q8.data(), q8.size()), 0x57fa8a11u);
  decode(Type::q8_0, q8.data(), 0, 64 * 32, out.data());
  EXPECT_EQ(crc(out.data(), out.size() * 4), 0xd77dc628u);
}

TEST(Quant, EveryHalfHasItsValue) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    const float got = from_f16(static_cast<uint16_t>(h));
    if (exponent == 31 && fraction) {
      EXPECT_TRUE(std::isnan(got)) << h;
      continue;
    }
    const double value = exponent == 31 ? INFINITY
                         : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                        : std::ldexp(fraction, -24);
    EXPECT_EQ(got, sign * value) << h;
    EXPECT_EQ(std::signbit(got), sign < 0) << h;
    EXPECT_EQ(to_f16(got), h);
  }
}

TEST(Quant, Bf16RoundsToTheNearestTiesToEven) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float exact = from_bf16(static_cast<uint16_t>(h));
    EXPECT_EQ(std::bit_cast<uint32_t>(exact), h << 16);
    if (std::isnan(exact)) EXPECT_TRUE(std::isnan(from_bf16(to_bf16(exact)))) << h;
    else EXPECT_EQ(to_bf16(exact), h);
  }
  for (uint64_t i = 0; i < 100000; ++i) {  // ties and their neighbours by force
    uint32_t u = static_cast<uint32_t>(random_bits(1, 0, i));
    if (i % 4 == 0) u = (u & 0xffff0000) | 0x8000;
    if (i % 4 == 1) u = (u & 0xffff0000) | (i % 8 == 1 ? 0x8001 : 0x7fff);
    const float f = std::bit_cast<float>(u);
    if (!std::isfinite(f)) continue;
    const uint32_t down = u >> 16, lost = u & 0xffff;
    const uint32_t expected = down + (lost > 0x8000 || (lost == 0x8000 && down % 2 == 1));
    EXPECT_EQ(to_bf16(f), expected) << u;
    EXPECT_EQ(std::bit_cast<uint32_t>(round_bf16(f)), expected << 16) << u;
  }
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x7f7fffffu)), 0x7f80);  // the largest float rounds to infinity
  for (uint32_t nan : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
    EXPECT_TRUE(std::isnan(round_bf16(std::bit_cast<float>(nan)))) << nan;
    EXPECT_TRUE(std::isnan(from_bf16(to_bf16(std::bit_cast<float>(nan))))) << nan;
  }
}

TEST(Quant, APartOfARowDecodesLikeTheWholeAndWritesNoMore) {
  constexpr int64_t cols = 7 * block_size;
  std::vector<float> values(cols);
  for (size_t i = 0; i < cols; ++i) values[i] = static_cast<float>(random_uniform(3, 0, i)) - 0.3f;
  for (Type type : {Type::f32, Type::f16, Type::bf16, Type::q4_1, Type::q8_0}) {
    const std::vector<uint8_t> row = encode(type, values.data(), cols);
    std::vector<float> whole(cols);
    decode(type, row.data(), 0, cols, whole.data());
    const bool packed = type == Type::q4_1 || type == Type::q8_0;
    const double step = type == Type::q4_1 ? 1.0 / 15 : type == Type::q8_0 ? 0.7 / 127 : 0x1p-8;
    for (size_t i = 0; i < cols; ++i) EXPECT_TRUE(std::fabs(whole[i] - values[i]) <= 0.6 * step) << i;
    for (int64_t first : {0, 32, 96}) {
      for (int64_t count : {0, 1, 3, 31, 32, 33, 64, 128}) {
        if (packed && count % block_size) continue;
        std::vector<float> part(static_cast<size_t>(count) + 1, -77.0f);
        decode(type, row.data(), first, count, part.data());
        const size_t bytes = static_cast<size_t>(count) * sizeof(float);
        EXPECT_EQ(memcmp(part.data(), whole.data() + first, bytes), 0) << first << " " << count;
        EXPECT_EQ(part.back(), -77.0f);
      }
    }
  }
}

TEST(Quant, RowsHaveTheirBytes) {
  EXPECT_EQ(row_bytes(Type::f32, 33), 132);
  EXPECT_EQ(row_bytes(Type::f16, 33), 66);
  EXPECT_EQ(row_bytes(Type::bf16, 33), 66);
  EXPECT_EQ(row_bytes(Type::q4_1, 576), 360);
  EXPECT_EQ(row_bytes(Type::q8_0, 576), 612);
  EXPECT_EQ(row_bytes(Type::ref_double, 3), 24);
  EXPECT_EQ(row_bytes(Type::ref_complex, 3), 48);
}

}  // namespace
