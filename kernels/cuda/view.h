// What the kernels share: elements of a View, one item of work a warp, sums over a warp.
#pragma once
#include <cmath>

#include "kernels/cuda/runtime.h"

namespace quest {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int block_warps = 8;  // of kernels whose item of work is a warp

// Element `at` of an array of f32 or bf16.
__device__ inline float element(const void* data, Type type, int64_t at) {
  if (type == Type::f32) return static_cast<const float*>(data)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
__device__ inline float load(const View& v, int64_t row, int64_t col) {
  return element(v.data, v.type, row * v.stride + col);
}
// Rounded once, to nearest even; NaN stays NaN, made quiet.
__device__ inline void store(const View& v, int64_t row, int64_t col, float x) {
  const int64_t at = row * v.stride + col;
  if (v.type == Type::f32) {
    static_cast<float*>(v.data)[at] = x;
    return;
  }
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  static_cast<uint16_t*>(v.data)[at] = static_cast<uint16_t>(bits >> 16);
}

// The warp's number in the grid, and the thread's in its warp.
__device__ inline int64_t warp_index() {
  return int64_t{blockIdx.x} * (blockDim.x / warp) + threadIdx.x / warp;
}
__device__ inline int lane_index() { return threadIdx.x % warp; }

// In every lane, the same bits: pairs 16 apart, then 8, 4, 2, 1.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int step = warp / 2; step; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int step = warp / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}
// The sum of term(i), i < n: lane l adds i = l, l + 32, ...; then the lanes.
template <class T = float, class F>
__device__ inline T lane_sum(int64_t n, F&& term) {
  T x = 0;
  for (int64_t i = lane_index(); i < n; i += warp) x += term(i);
  return warp_sum(x);
}

// f(row, column) for every element; a block takes 1,024 columns of a row.
constexpr int element_threads = 256, element_columns = 1024;
template <class F>
__global__ void __launch_bounds__(element_threads) each_element_kernel(int64_t cols, F f) {
  const int64_t first = int64_t{blockIdx.y} * element_columns;
  const int64_t end = first + element_columns < cols ? first + element_columns : cols;
  for (int64_t j = first + threadIdx.x; j < end; j += element_threads) f(int64_t{blockIdx.x}, j);
}
template <class F>
void each_element(const Context& c, int64_t rows, int64_t cols, F f) {
  launch(each_element_kernel<F>, Grid{rows, tiles_of(cols, element_columns)}, element_threads, 0, c.device,
         cols, f);
}

}  // namespace quest
