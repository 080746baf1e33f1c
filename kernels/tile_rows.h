// The row kernels of kernels/tile.h, once for all paths: every tile_*.cpp compiles its own copy.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels/tile.h"
#include "kernels/tile_math.h"

namespace quest {

namespace {

void decode_f32(const void* from, int64_t at, int64_t count, float* out) {
  memcpy(out, static_cast<const char*>(from) + 4 * at, 4 * count);
}

template <float (*value)(uint16_t)>
void decode_16(const void* from, int64_t at, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;  // a tensor in a safetensors file may start at an odd address
    memcpy(&bits, static_cast<const char*>(from) + 2 * (at + i), 2);
    out[i] = value(bits);
  }
}

template <class Block, int zero>
void decode_nibbles(const void* from, int64_t at, int64_t count, float* out) {
  for (const auto* block = static_cast<const Block*>(from) + at / 32; count > 0;
       ++block, count -= 32, out += 32) {
    const float d = from_f16(block->d);
    float m = 0;
    uint32_t high = 0;
    uint8_t low[16];  // a copy: for all the compiler knows out lies over the block
    memcpy(low, block->nibbles, 16);
    if constexpr (requires { block->m; }) m = from_f16(block->m);
    if constexpr (requires { block->high; }) memcpy(&high, block->high, 4);
    const auto value = [&](int q) {
      const float x = d * static_cast<float>(q - zero);
      if constexpr (requires { block->m; }) return x + m;
      return x;
    };
    for (int e = 0; e < 16; ++e) out[e] = value((low[e] & 15) | (high >> e & 1) << 4);
    for (int e = 0; e < 16; ++e) out[e + 16] = value(low[e] >> 4 | (high >> (e + 16) & 1) << 4);
  }
}

void decode_q8_0(const void* from, int64_t at, int64_t count, float* out) {
  for (const auto* block = static_cast<const BlockQ8_0*>(from) + at / 32; count > 0;
       ++block, count -= 32, out += 32) {
    const float d = from_f16(block->d);
    int8_t q[32];
    memcpy(q, block->values, 32);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(q[e]);
  }
}

template <class Block>
void decode_k(const void* from, int64_t at, int64_t count, float* out) {
  for (; count > 0; at += 32, count -= 32, out += 32) {
    const Block& b = static_cast<const Block*>(from)[at / 256];
    const int64_t j = at % 256 / 32;
    const uint8_t *s = b.scales, *low = b.nibbles + j / 2 * 32;
    const int S = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int M = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    const float scale = from_f16(b.d) * static_cast<float>(S), least = from_f16(b.m) * static_cast<float>(M);
    for (int e = 0; e < 32; ++e) {
      int q = low[e] >> (j % 2 * 4) & 15;
      if constexpr (requires { b.high; }) q |= (b.high[e] >> j & 1) << 4;
      out[e] = scale * static_cast<float>(q) - least;
    }
  }
}

void decode_q6_k(const void* from, int64_t at, int64_t count, float* out) {
  for (; count > 0; at += 32, count -= 32, out += 32) {
    const BlockQ6_K& b = static_cast<const BlockQ6_K*>(from)[at / 256];
    const int64_t j = at % 256 / 32, k = j % 4;
    const uint8_t *low = b.nibbles + j / 4 * 64 + k % 2 * 32, *high = b.high + j / 4 * 32;
    const float d = from_f16(b.d);
    for (int e = 0; e < 32; ++e) {
      const int q = (low[e] >> (k / 2 * 4) & 15) | (high[e] >> (2 * k) & 3) << 4;
      out[e] = d * static_cast<float>(b.scales[2 * j + e / 16]) * static_cast<float>(q - 32);
    }
  }
}

void decode_nf4(const void* from, int64_t at, int64_t count, float* out) {
  const Nf4& w = *static_cast<const Nf4*>(from);
  for (const int64_t end = at + count; at < end;) {
    const int64_t block = at / 64, stop = end < 64 * (block + 1) ? end : 64 * (block + 1);
    const float scale =
        w.absmax ? w.absmax[block] : w.scale_map[w.scale_codes[block]] * w.nested[block / 256] + w.offset;
    for (; at < stop; ++at) *out++ = w.book[w.codes[at / 2] >> (at % 2 ? 0 : 4) & 15] * scale;
  }
}

void store_f32(const float* x, int64_t n, bool add, void* y) {
  float* to = static_cast<float*>(y);
  for (int64_t i = 0; i < n; ++i) to[i] = add ? to[i] + x[i] : x[i];
}

void store_bf16(const float* x, int64_t n, bool add, void* y) {
  uint16_t* to = static_cast<uint16_t*>(y);
  for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(add ? from_bf16(to[i]) + x[i] : x[i]);
}

void round_row(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = round_bf16(x[i]);
}

// A square as wide as a register: n times the i-th row is interleaved with the one half the square below,
// log2(n) times.
void transpose(const float* block, int64_t rows, float* to) {
  for (int64_t n = 0; n < rows; n += lanes)
    for (int64_t i = 0; i < 64; i += lanes) {
      Lanes row[lanes], next[lanes];
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) row[r] = lanes_at(block + (n + r) * 64 + i);
#pragma GCC unroll 4
      for (int step = 1; step < lanes; step *= 2) {
#pragma GCC unroll 16
        for (int r = 0; r < lanes / 2; ++r) {
          next[2 * r] = interleave<0>(row[r], row[r + lanes / 2]);
          next[2 * r + 1] = interleave<lanes / 2>(row[r], row[r + lanes / 2]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < lanes; ++r) row[r] = next[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < lanes; ++r) *reinterpret_cast<Lanes*>(to + (i + r) * rows + n) = row[r];
    }
}

// Bytes of a block whose largest magnitude has these bits are x * inverse, rounded. What is not finite makes
// the scale so too; and the bytes are of no account.
struct Quantiser {
  float scale, inverse;
  explicit Quantiser(uint32_t top) {
    scale = float_of(top) / 127.0f;
    inverse = scale > 1e-30f && top < 0x7f800000 ? 1.0f / scale : 0.0f;
  }
};
uint32_t larger(uint32_t top, float x) {
  const uint32_t bits = bits_of(x) & 0x7fffffff;
  return bits > top ? bits : top;
}
int32_t nearest(float x) {  // |x| < 2^22
  return static_cast<int32_t>(bits_of(x + 12582912.0f) - 0x4b400000);
}

void quads_row(const float* x, float* to) {
  for (int64_t block = 0; block < quad_blocks; ++block, x += quad_block) {
    uint32_t top = 0;
    for (int64_t i = 0; i < quad_block; ++i) top = larger(top, x[i]);
    const Quantiser q(top);
    signed char bytes[quad_block];
    int32_t all = 0;
    for (int64_t i = 0; i < quad_block; ++i) {
      bytes[i] = static_cast<signed char>(nearest(x[i] * q.inverse));
      all += bytes[i];
    }
    memcpy(to + block * quad_block / 4, bytes, quad_block);
    to[quad_words + block] = q.scale;
    to[quad_words + quad_blocks + block] = float_of(static_cast<uint32_t>(-128 * all));
  }
}

// A word's row is written when the four rows that it comes from, and all before them, have been read.
void quads_panel(float* panel, int64_t columns, int64_t count) {
  for (int64_t block = 0; block * quad_block < count; ++block) {
    const int64_t first = block * quad_block, last = first + quad_block;
    uint32_t top[64] = {};  // columns <= 64
    float scale[64], inverse[64];
    for (int64_t k = count; k < last; ++k) memset(panel + k * columns, 0, 4 * columns);
    for (int64_t k = first; k < last; ++k)
      for (int64_t n = 0; n < columns; ++n) top[n] = larger(top[n], panel[k * columns + n]);
    for (int64_t n = 0; n < columns; ++n) {
      const Quantiser q(top[n]);
      scale[n] = q.scale, inverse[n] = q.inverse;
    }
    for (int64_t k = first; k < last; k += 4) {
      uint32_t words[64] = {};
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t n = 0; n < columns; ++n)
          words[n] |= static_cast<uint32_t>((nearest(panel[(k + i) * columns + n] * inverse[n]) + 128) & 255)
                      << 8 * i;
      memcpy(panel + k / 4 * columns, words, 4 * columns);
    }
    memcpy(panel + (quad_words + block) * columns, scale, 4 * columns);
  }
}

float inverse_rms(const float* x, float eps, int64_t n) {
  return 1.0f / sqrtf(dot(x, x, n) / static_cast<float>(n) + eps);
}

void rmsnorm(const float* x, const float* w, float eps, int64_t n, float* y) {
  const float r = inverse_rms(x, eps, n);
  for (int64_t j = 0; j < n; ++j) y[j] = x[j] * r * w[j];
}

void rmsnorm_backward(const float* dy, const float* x, const float* w, float eps, int64_t n, float* dx) {
  const float r = inverse_rms(x, eps, n);
  float all;
  add_up(
      n, &all, [&](int, int64_t j) { return lanes_at(dy + j) * lanes_at(w + j) * lanes_at(x + j); },
      [&](int, int64_t j) { return dy[j] * w[j] * x[j]; });
  const float scale = r * r * r * all / static_cast<float>(n);
  for (int64_t j = 0; j < n; ++j) dx[j] += r * w[j] * dy[j] - scale * x[j];
}

// turns [size]: cosine and sine of each pair in turn, the same for every head; direction -1 turns back. The
// real parts, then the imaginary ones: of both in one loop g++ 12 makes fused fmaddsub, in spite of
// -ffp-contract=off.
template <bool halves>
void turn_pairs(const float* x, const float* turns, int64_t size, float direction, int64_t n, float* y) {
  const int64_t step = halves ? 1 : 2, other = halves ? size / 2 : 1;
  for (int64_t head = 0; head < n; head += size) {
    const float *a = x + head, *b = a + other;
    float* yh = y + head;
    for (int64_t j = 0; j < size / 2; ++j)
      yh[j * step] = a[j * step] * turns[2 * j] - b[j * step] * (direction * turns[2 * j + 1]);
    for (int64_t j = 0; j < size / 2; ++j)
      yh[j * step + other] = a[j * step] * (direction * turns[2 * j + 1]) + b[j * step] * turns[2 * j];
  }
}

void turn(const float* x, const float* turns, bool halves, int64_t size, float direction, int64_t n,
          float* y) {
  (halves ? turn_pairs<true> : turn_pairs<false>)(x, turns, size, direction, n, y);
}

void swiglu(const float* gate, const float* up, int64_t n, float* y) {
#pragma GCC ivdep  // y may be gate, never another row that overlaps it
  for (int64_t j = 0; j < n; ++j) y[j] = gate[j] / (1.0f + exp_f32(-gate[j])) * up[j];
}

void swiglu_backward(const float* dy, const float* gate, const float* up, int64_t n, float* dgate,
                     float* dup) {
  for (int64_t j = 0; j < n; ++j) {
    const float g = gate[j], u = up[j], sigma = 1.0f / (1.0f + exp_f32(-g));
    dup[j] = dy[j] * g * sigma;
    dgate[j] = dy[j] * u * sigma * (1.0f + g * (1.0f - sigma));
  }
}

void dots(const float* q, const float* x, int64_t n, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) dot_rows<4>(q, x + i * width, width, width, out + i);
  for (; i < n; ++i) out[i] = dot(q, x + i * width, width);
}

// p_j = softmax_j(q . k_j * scale), j in [0, count); every score stands in p, no online rescaling.
void attention_weights(const float* q, const float* k, int64_t D, int64_t stride, int64_t count, float scale,
                       float* p) {
  float top = -INFINITY;
  for (int64_t j = 0; j < count; ++j) {
    p[j] = dot(q, k + j * stride, D) * scale;
    top = p[j] > top ? p[j] : top;
  }
  for (int64_t j = 0; j < count; ++j) p[j] = exp_f32(p[j] - top);
  const float all = sum(p, count);
  for (int64_t j = 0; j < count; ++j) p[j] /= all;
}

void attention(const float* q, const float* k, const float* v, int64_t D, int64_t stride, int64_t count,
               float scale, float* p, float* out) {
  attention_weights(q, k, D, stride, count, scale, p);
  mix(p, v, D, stride, count, out);
}

void attention_backward(const float* dout, const float* q, const float* k, const float* v, int64_t D,
                        int64_t stride, int64_t first, int64_t count, float scale, float* p, float* dp,
                        float* dq, float* dk, float* dv) {
  attention_weights(q, k, D, stride, count, scale, p);
  for (int64_t j = 0; j < count; ++j) dp[j] = dot(dout, v + j * stride, D);
  const float mean = dot(p, dp, count);
  for (int64_t j = 0; j < count; ++j) dp[j] = p[j] * (dp[j] - mean) * scale;
  mix(dp, k, D, stride, count, dq);
  spread(dp + first, q, D, stride, count - first, dk + first * stride);
  spread(p + first, dout, D, stride, count - first, dv + first * stride);
}

constexpr RowKernels row_kernels = {
    {decode_f32, decode_16<from_f16>, decode_16<from_bf16>, decode_nibbles<BlockQ4_0, 8>,
     decode_nibbles<BlockQ4_1, 0>, decode_nibbles<BlockQ5_0, 16>, decode_nibbles<BlockQ5_1, 0>, decode_q8_0,
     decode_k<BlockQ4_K>, decode_k<BlockQ5_K>, decode_q6_k, decode_nf4},
    store_f32,
    store_bf16,
    round_row,
    transpose,
    rmsnorm,
    rmsnorm_backward,
    turn,
    swiglu,
    swiglu_backward,
    dots,
    attention,
    attention_backward,
    quads_row,
    quads_panel};

}  // namespace

}  // namespace quest
