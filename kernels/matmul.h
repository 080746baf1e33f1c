// y = x . w^T and dx = dy . w with weights that stay packed, as one product of x [R,K] and B [K,N].
//
// One work item is a block of columns (outputs). Its weights are decoded panel by panel
// into scratch of the item's thread, and meet all rows there in register tiles. Every output is one lane, in
// fp32: each panel is summed from zero, inner index ascending, and added to the panels before it, which wait
// in memory (two levels: the error grows with the panel, not with the whole length). So an output's bits
// depend on nothing but its row of x, its column of B and the path.
#pragma once
#include <span>

#include "kernels/ops.h"
#include "kernels/tile.h"

namespace quest {

// The paths that this machine can run, best first. Never empty.
std::span<const KernelPath> kernel_paths();

// By name, or the best for nullptr; throws Error(usage) for a name that kernel_paths() does not have.
const KernelPath* find_path(const char* name);

// The ops of the same name (kernels/ops.h), on ops->kernel_path. With ops->activation bf16 both operands are
// rounded to bf16, with f32 they are not; with ops->int8 the forward product takes both as bytes by blocks of
// 64 inner indices. x and y: f32 or bf16; w: any type that decode() knows.
// Scratch: x once, in words of 4 bytes, at most 1152 rows of it; for each thread a panel and its sums.
void matmul(const Context& context, View x, View w, View y, Into into);
void matmul_backward(const Context& context, View dy, View w, View dx, Into into);

}  // namespace quest
