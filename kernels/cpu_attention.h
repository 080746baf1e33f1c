// Attention of the CPU backend; A is the stored activation: float, or uint16_t for bf16. Semantics: ops.h.
#pragma once
#include "kernels/ops.h"

namespace quest {

template <class A>
void cpu_attention(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View q, View kv,
                   View out);
template <class A>
void cpu_attention_backward(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View dout,
                            View q, View kv, View dq, View dkv, View dcontext);

}  // namespace quest
