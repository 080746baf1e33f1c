// What the files of the CPU backend share: rows of stored matrices as floats, and attention.
#pragma once
#include "kernels/matmul.h"

namespace quest {

inline float* f32(const View& v, int64_t i) { return static_cast<float*>(v.data) + i * v.stride; }

inline const RowKernels& kernels(const Context& c) { return *c.ops->kernel_path->row; }

// Row i of any stored type as floats.
inline void load_row(const Context& c, const View& v, int64_t i, float* to) {
  kernels(c).decode[static_cast<int>(v.type)](v.data, i * v.stride, v.cols, to);
}
// Floats as row i of v (f32 or bf16), rounded once.
inline void store_row(const Context& c, const float* x, const View& v, int64_t i) {
  (v.type == Type::f32 ? kernels(c).store_f32 : kernels(c).store_bf16)(x, v.cols, false, row_pointer(v, i));
}

// ops.h
void cpu_attention(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View q, View kv,
                   View out);
void cpu_attention_backward(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View dout,
                            View q, View kv, View dq, View dkv, View dcontext);

}  // namespace quest
