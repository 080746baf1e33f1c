// The ops of kernels/ops.h as kernels, each under the op's name; ops.cu puts them into the table.
#pragma once
#include "kernels/ops.h"

namespace quest::cuda {

// rows.cu
void gather(const Context&, View x, const int32_t* rows, View y);
void gather_backward(const Context&, View dy, const int32_t* rows, View dx);
void add(const Context&, View x, View y);
void zero(const Context&, View y);
void rmsnorm(const Context&, View x, View w, double eps, View y);
void rmsnorm_backward(const Context&, View dy, View x, View w, double eps, View dx);
void rope(const Context&, View x, const int32_t* positions, Turns, View y);
void rope_backward(const Context&, View dy, const int32_t* positions, Turns, View dx);
void swiglu(const Context&, View gate, View up, View y);
void swiglu_backward(const Context&, View dy, View gate, View up, View dgate, View dup);
void pool(const Context&, const Group*, int64_t groups, View h, View e);
void pool_backward(const Context&, const Group*, int64_t groups, View de, View dh);
void normalize(const Context&, View e, View mean, View u);
void normalize_backward(const Context&, View du, View e, View mean, View de);
void norm(const Context&, View g, View norm);
void adamw(const Context&, View p, View g, View m, View v, View norm, double clip, AdamW);

// attention.cu
void attention(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View q, View kv, View out);
void attention_backward(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View dout, View q,
                        View kv, View dq, View dkv, View dcontext);

// loss.cu
void similarity(const Context&, View q, View l, double temperature, View s);
void similarity_backward(const Context&, View ds, View q, View l, double temperature, View dq, View dl);
void contrastive(const Context&, View s, const Pair*, int64_t pairs, const uint8_t* hidden,
                 const uint8_t* hidden_queries, View loss);
void contrastive_backward(const Context&, View s, const Pair*, int64_t pairs, const uint8_t* hidden,
                          const uint8_t* hidden_queries, View ds);

}  // namespace quest::cuda
