// Y = X . W^T and dX = dY . W on the GPU, by weights that stay packed: ops.h's matmul and matmul_backward.
//
// Both operands are rounded to bf16; products are exact and sums fp32, inner index ascending. Three rungs of
// one ladder, each as readable as its speed allows and tested against the others:
//   plain   the definition: a thread an output
//   tile    64 x 64 outputs a block, operands decoded once a block into shared memory
//   tensor  128 x 128 outputs a block, tensor cores
// An output's bits depend on its row of x, its column of weights and the rung alone.
#pragma once
#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace quest {

enum class Rung { plain, tile, tensor };

// x, dy, y, dx: f32 or bf16, rows any distance apart. w: f32, f16, bf16, q4_0, q4_1, q8_0, q4_k, q6_k, nf4 or
// gptq*; its data (of nf4 and gptq the struct that it points to, too) lies on the device. Throws Error(input)
// for others.
void cuda_matmul(Rung, View x, View w, View y, Into, Stream);
void cuda_matmul_backward(Rung, View dy, View w, View dx, Into, Stream);

}  // namespace quest
