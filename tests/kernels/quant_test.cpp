#include "kernels/tile_math.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/nf4.h"
#include "kernels/ref.h"
#include "tests/kernels/encode.h"

using namespace quest;

namespace {

unsigned long crc(const void* data, size_t size) {
  return crc32(0, static_cast<const Bytef*>(data), static_cast<uInt>(size));
}

TEST(Quant, BlocksDecodeToTheBitsOfGgml) {  // sums of ggml-quants.c's own bytes and floats
  struct Golden {
    Type type;
    unsigned long in, out;
  };
  for (const auto& [type, in, out] : {Golden{Type::q4_0, 0xc08e21a6, 0x9bfaac39}, {Type::q4_1, 0xe7514038, 0x4dabc32e},
                                      {Type::q5_0, 0x8db6c52e, 0xfa28d6b2}, {Type::q5_1, 0xdbd5ea09, 0x9887ad5f},
                                      {Type::q8_0, 0x57fa8a11, 0xd77dc628}, {Type::q4_k, 0x28a5da69, 0x9e1ede9f},
                                      {Type::q5_k, 0xac7f9f18, 0xda4ac558}, {Type::q6_k, 0xa9c6db53, 0xce6d5565}}) {
    const int64_t count = 64 * format_of(type).elements;
    const std::vector<uint8_t> blocks = random_blocks(type, count);
    EXPECT_EQ(crc(blocks.data(), blocks.size()), in) << static_cast<int>(type);
    std::vector<float> values(static_cast<size_t>(count));
    decode(type, blocks.data(), 0, count, values.data());
    EXPECT_EQ(crc(values.data(), values.size() * 4), out) << static_cast<int>(type);
  }
}

// The reference decodes element by element, without rounding on the way. In fp32 a GGUF block's products are exact or
// rounded once, and their difference once; an NF4 scale is rounded twice and its product once: at most four roundings of
// 2^-24 of the largest value.
TEST(Quant, TheReferenceAgrees) {
  for (const Type type : stored_types) {
    constexpr int64_t rows = 3, cols = 512;
    std::vector<float> x(rows * cols), values(x.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random_uniform(4, 0, i)) - 0.3f;
    std::vector<uint8_t> bytes = encode(type, x.data(), rows * cols);
    const View view{bytes.data(), type, rows, cols, cols};
    decode(type, bytes.data(), 0, rows * cols, values.data());
    double largest = 0;
    for (const float v : values) largest = std::max(largest, std::fabs(static_cast<double>(v)));
    for (int64_t i = 0; i < rows * cols; ++i)
      EXPECT_TRUE(std::fabs(ref::weight(view, i / cols, i % cols) - values[static_cast<size_t>(i)]) <= 0x1p-22 * largest)
          << static_cast<int>(type) << " " << i;
  }
}

// The numbers of bitsandbytes' own functions on 65,536 values with a block of zeros, but for what is written there
// (code 7 for the zeros) and the search of the scales' codes, which is exact here.
TEST(Quant, Nf4IsThatOfBitsandbytes) {
  std::vector<float> w(65536), absmax, scales(1024), values(w.size());
  uint32_t s = 1;
  for (float& x : w) {
    uint32_t sum = 0;
    for (int i = 0; i < 4; ++i) s = s * 1664525 + 1013904223, sum += s >> 8 & 0xffff;
    x = static_cast<float>((static_cast<double>(sum) - 131070) / 0x1p20);
  }
  std::fill_n(w.begin() + 320, 64, 0.0f);
  const auto sum = [](const auto& v) { return crc(v.data(), v.size() * sizeof v[0]); };
  ASSERT_EQ(sum(w), 0xdeafa0ac);
  const Nf4Matrix m = quantize_nf4(w.data(), std::ssize(w), &absmax);
  EXPECT_EQ(sum(m.codes), 0x92e746d9);
  EXPECT_EQ(sum(absmax), 0x6cae0b19);
  EXPECT_EQ(m.offset, 0.0879330486f);
  EXPECT_EQ(sum(nf4_scale_map()), 0x416941e6);
  EXPECT_EQ(sum(m.scale_codes), 0x8b459aac);
  EXPECT_EQ(sum(m.nested), 0x9e6f54ba);
  const Nf4 view = m.view();
  for (size_t b = 0; b < scales.size(); ++b)
    scales[b] = view.scale_map[view.scale_codes[b]] * view.nested[b / 256] + view.offset;
  EXPECT_EQ(sum(scales), 0xc3ce7047);
  decode(Type::nf4, &view, 0, std::ssize(w), values.data());
  EXPECT_EQ(sum(values), 0x71bf73ae);
  for (const int64_t first : {0, 1, 63, 64, 16383})  // any part, across blocks and nested blocks
    for (const int64_t count : {1, 2, 64, 100}) {
      std::vector<float> part(static_cast<size_t>(count));
      decode(Type::nf4, &view, first, count, part.data());
      EXPECT_EQ(memcmp(part.data(), values.data() + first, part.size() * 4), 0) << first << " " << count;
    }
  const View matrix{const_cast<Nf4*>(&view), Type::nf4, 1024, 64, 64};
  for (size_t i = 0; i < w.size(); ++i) EXPECT_EQ(ref::weight(matrix, i / 64, i % 64), values[i]);
  Nf4 plain = view;  // without the second level
  plain.absmax = absmax.data();
  decode(Type::nf4, &plain, 64, 64, values.data());
  for (size_t i = 0; i < 64; ++i)
    EXPECT_EQ(values[i], nf4_book[m.codes[32 + i / 2] >> (i % 2 ? 0 : 4) & 15] * absmax[1]) << i;
}

// A midpoint itself takes the lower code. The first one is a tie in fp32, and bitsandbytes' CPU path rounds it to even
// (peers/nf4.py; one weight of the default model stands on it).
TEST(Quant, Nf4CodesTurnAtTheMidpoints) {
  EXPECT_EQ(static_cast<float>((double{nf4_book[0]} + nf4_book[1]) / 2), -0x1.b239bp-1f);
  for (int i = 0; i < 15; ++i) {
    const auto middle = static_cast<float>((double{nf4_book[i]} + nf4_book[i + 1]) / 2);
    const float w[] = {1, middle, std::nextafter(middle, 2.0f), -1};
    const Nf4Matrix m = quantize_nf4(w, 4);
    EXPECT_EQ(m.codes[0] & 15, i);
    EXPECT_EQ(m.codes[1] >> 4, i + 1);
  }
}

// Where a block's scale turns to zero, and where the furthest scale of a nested block may stand.
TEST(Quant, Nf4AtItsEdges) {
  const float least = 0x1p-126f, w[] = {least, -least, 0x1p-127f, 0};
  EXPECT_EQ(quantize_nf4(w, 4).codes[0], 0xf0);
  EXPECT_EQ(quantize_nf4(w + 2, 2).codes[0], 0x77);  // subnormal: as zeros
  const auto of_zero = std::ranges::find(nf4_scale_map(), 0.0f) - nf4_scale_map().begin();
  EXPECT_EQ(quantize_nf4(w, 4).scale_codes[0], of_zero);  // one block: its scale is the offset
  for (const int64_t furthest : {0, 1, 2, 255, 256, 257}) {
    std::vector<float> blocks(258 * 64, 1.0f);
    blocks[static_cast<size_t>(furthest * 64)] = 10;
    const Nf4Matrix m = quantize_nf4(blocks.data(), std::ssize(blocks));
    EXPECT_EQ(m.nested[static_cast<size_t>(furthest / 256)], 10 - m.offset) << furthest;
    EXPECT_EQ(m.nested[static_cast<size_t>(1 - furthest / 256)], m.offset - 1) << furthest;
    EXPECT_EQ(m.scale_codes[static_cast<size_t>(furthest)], 255) << furthest;
  }
}

TEST(Quant, Nf4OfAwkwardSizes) {
  // Half the largest gap of the code book times absmax, and half the largest gap of the scales' map times theirs.
  const auto half_gap = [](const float* map, int n) {
    double gap = 0;
    for (int i = 1; i < n; ++i) gap = std::max(gap, double{map[i]} - map[i - 1]);
    return gap / 2;
  };
  const double bound = 0.5 * (half_gap(nf4_book, 16) + half_gap(nf4_scale_map().data(), 256));
  for (const int64_t count : {1, 63, 64, 65, 129}) {
    std::vector<float> w(static_cast<size_t>(count)), out(w.size());
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(random_uniform(5, 0, i)) - 0.5f;
    const Nf4Matrix m = quantize_nf4(w.data(), count);
    const Nf4 view = m.view();
    decode(Type::nf4, &view, 0, count, out.data());
    for (size_t i = 0; i < w.size(); ++i) EXPECT_TRUE(std::fabs(out[i] - w[i]) <= bound) << count << " " << i;
  }
  const std::vector<float> zeros(100);
  const Nf4Matrix m = quantize_nf4(zeros.data(), 100);
  const Nf4 view = m.view();
  std::vector<float> out(100, NAN);
  decode(Type::nf4, &view, 0, 100, out.data());
  EXPECT_EQ(out, zeros);
}

TEST(Quant, EveryHalfHasItsValue) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    const float got = from_f16(static_cast<uint16_t>(h));
    const unsigned char bytes[] = {static_cast<unsigned char>(h), static_cast<unsigned char>(h >> 8)};
    const double reference = ref::half(bytes);
    EXPECT_TRUE(reference == got || (std::isnan(reference) && std::isnan(got))) << h;
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
  constexpr int64_t cols = 512;
  std::vector<float> values(cols);
  for (size_t i = 0; i < cols; ++i) values[i] = static_cast<float>(random_uniform(3, 0, i)) - 0.3f;
  for (Type type : stored_types) {
    const std::vector<uint8_t> row = encode(type, values.data(), cols);
    std::vector<float> whole(cols);
    decode(type, row.data(), 0, cols, whole.data());
    const bool packed = format_of(type).elements > 1, random = packed && type != Type::q4_1 && type != Type::q8_0;
    const double step = type == Type::q4_1 ? 1.0 / 15 : type == Type::q8_0 ? 0.7 / 127 : 0x1p-8;
    for (size_t i = 0; i < cols && !random; ++i)
      EXPECT_TRUE(std::fabs(whole[i] - values[i]) <= 0.6 * step) << i;
    for (int64_t first : {0, 32, 96, 256, 288}) {
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
  EXPECT_EQ(row_bytes(Type::q6_k, 1536), 1260);
  EXPECT_EQ(row_bytes(Type::ref_double, 3), 24);
  EXPECT_EQ(row_bytes(Type::ref_complex, 3), 48);
}

}  // namespace
