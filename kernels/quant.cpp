#include "kernels/quant.h"

#include <algorithm>
#include <complex>

#include "kernels/base/error.h"

namespace quest {

int64_t row_bytes(Type type, int64_t cols) {
  switch (type) {
    case Type::f32: return cols * 4;
    case Type::f16:
    case Type::bf16: return cols * 2;
    case Type::q4_1: return cols / block_size * static_cast<int64_t>(sizeof(BlockQ4_1));
    case Type::q8_0: return cols / block_size * static_cast<int64_t>(sizeof(BlockQ8_0));
    case Type::ref_double: return cols * static_cast<int64_t>(sizeof(double));
    case Type::ref_complex: return cols * static_cast<int64_t>(sizeof(std::complex<double>));
  }
  return 0;
}

namespace {

void decode_blocks(const BlockQ4_1* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i, out += block_size) {
    const BlockQ4_1 b = blocks[i];
    const float d = from_f16(b.d), m = from_f16(b.m);
    for (int e = 0; e < 16; ++e) out[e] = d * static_cast<float>(b.nibbles[e] & 15) + m;
    for (int e = 0; e < 16; ++e) out[e + 16] = d * static_cast<float>(b.nibbles[e] >> 4) + m;
  }
}

void decode_blocks(const BlockQ8_0* blocks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i, out += block_size) {
    const BlockQ8_0 b = blocks[i];
    const float d = from_f16(b.d);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(b.values[e]);
  }
}

}  // namespace

void decode(Type type, const void* row, int64_t first, int64_t count, float* out) {
  const void* from = static_cast<const std::byte*>(row) + row_bytes(type, first);
  const uint16_t* halves = static_cast<const uint16_t*>(from);
  switch (type) {
    case Type::f32:
      std::copy_n(static_cast<const float*>(from), count, out);
      return;
    case Type::f16:
      for (int64_t i = 0; i < count; ++i) out[i] = from_f16(halves[i]);
      return;
    case Type::bf16:
      for (int64_t i = 0; i < count; ++i) out[i] = from_bf16(halves[i]);
      return;
    case Type::q4_1: return decode_blocks(static_cast<const BlockQ4_1*>(from), count / block_size, out);
    case Type::q8_0: return decode_blocks(static_cast<const BlockQ8_0*>(from), count / block_size, out);
    case Type::ref_double:
    case Type::ref_complex: break;
  }
  fail(Exit::machine, "decode: type %d has no decoder", static_cast<int>(type));
}

}  // namespace quest
