// The row kernels of kernels/tile.h, once for all paths: every tile_*.cpp compiles its own copy.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels/tile.h"
#include "kernels/tile_math.h"

namespace quest {

namespace {

void decode_f32(const void* from, int64_t count, float* out) { memcpy(out, from, sizeof(float) * count); }

void decode_f16(const void* from, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_f16(static_cast<const uint16_t*>(from)[i]);
}

void decode_bf16(const void* from, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from_bf16(static_cast<const uint16_t*>(from)[i]);
}

void decode_q4_1(const void* from, int64_t count, float* out) {
  for (const auto* block = static_cast<const BlockQ4_1*>(from); count > 0; ++block, count -= 32, out += 32) {
    const BlockQ4_1 b = *block;
    const float d = from_f16(b.d), m = from_f16(b.m);
    for (int e = 0; e < 16; ++e) out[e] = d * static_cast<float>(b.nibbles[e] & 15) + m;
    for (int e = 0; e < 16; ++e) out[e + 16] = d * static_cast<float>(b.nibbles[e] >> 4) + m;
  }
}

void decode_q8_0(const void* from, int64_t count, float* out) {
  for (const auto* block = static_cast<const BlockQ8_0*>(from); count > 0; ++block, count -= 32, out += 32) {
    const BlockQ8_0 b = *block;
    const float d = from_f16(b.d);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(b.values[e]);
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

void transpose(const float* block, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t n = 0; n < rows; ++n) to[i * rows + n] = block[n * 32 + i];
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
  float sum[16] = {}, total = 0;
  for (int64_t j = 0; j < n; ++j) sum[j % 16] += dy[j] * w[j] * x[j];
  for (const float part : sum) total += part;
  const float scale = r * r * r * total / static_cast<float>(n);
  for (int64_t j = 0; j < n; ++j) dx[j] += r * w[j] * dy[j] - scale * x[j];
}

// turns [size]: cosine and sine in turn, the same for every head; direction -1 turns back. The real parts,
// then the imaginary ones: of both in one loop g++ 12 makes fused fmaddsub, in spite of -ffp-contract=off.
void turn(const float* x, const float* turns, int64_t size, float direction, int64_t n, float* y) {
  for (int64_t head = 0; head < n; head += size) {
    const float* xh = x + head;
    float* yh = y + head;
    for (int64_t j = 0; j < size; j += 2) yh[j] = xh[j] * turns[j] - xh[j + 1] * (direction * turns[j + 1]);
    for (int64_t j = 0; j < size; j += 2)
      yh[j + 1] = xh[j] * (direction * turns[j + 1]) + xh[j + 1] * turns[j];
  }
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

// p_j = softmax_j(q . k_j * scale), j in [0, count); every score stands in p, no online rescaling.
void attention_weights(const float* q, const float* k, int64_t D, int64_t stride, int64_t count, float scale,
                       float* p) {
  float top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    p[j] = dot(q, k + j * stride, D) * scale;
    top = p[j] > top ? p[j] : top;
  }
  for (int64_t j = 0; j < count; ++j) p[j] = exp_f32(p[j] - top);
  for (int64_t j = 0; j < count; ++j) sum += p[j];
  for (int64_t j = 0; j < count; ++j) p[j] /= sum;
}

void attention(const float* q, const float* k, const float* v, int64_t D, int64_t stride, int64_t count,
               float scale, float* p, float* out) {
  attention_weights(q, k, D, stride, count, scale, p);
  memset(out, 0, sizeof(float) * D);
  for (int64_t j = 0; j < count; ++j) axpy(p[j], v + j * stride, out, D);
}

void attention_backward(const float* dout, const float* q, const float* k, const float* v, int64_t D,
                        int64_t stride, int64_t count, float scale, float* p, float* dp, float* dq, float* dk,
                        float* dv) {
  attention_weights(q, k, D, stride, count, scale, p);
  for (int64_t j = 0; j < count; ++j) dp[j] = dot(dout, v + j * stride, D);
  float mean = 0;
  for (int64_t j = 0; j < count; ++j) mean += p[j] * dp[j];
  memset(dq, 0, sizeof(float) * D);
  for (int64_t j = 0; j < count; ++j) {
    const float ds = p[j] * (dp[j] - mean) * scale;
    axpy(ds, k + j * stride, dq, D);
    axpy(ds, q, dk + j * stride, D);
    axpy(p[j], dout, dv + j * stride, D);
  }
}

constexpr RowKernels row_kernels = {{decode_f32, decode_f16, decode_bf16, decode_q4_1, decode_q8_0},
                                    store_f32,
                                    store_bf16,
                                    round_row,
                                    transpose,
                                    rmsnorm,
                                    rmsnorm_backward,
                                    turn,
                                    swiglu,
                                    swiglu_backward,
                                    attention,
                                    attention_backward};

}  // namespace

}  // namespace quest
