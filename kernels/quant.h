// Stored number formats. A format is one decoder: nothing else knows its bytes.
#pragma once
#include "kernels/ops.h"
#include "kernels/tile_math.h"

namespace quest {

// out[i] = element first + i of a row of type f32, f16, bf16, q4_1 or q8_0, i in [0, count). For packed types
// first and count are multiples of block_size. Products and sums are rounded apart, which gives ggml's bits.
void decode(Type type, const void* row, int64_t first, int64_t count, float* out);

}  // namespace quest
