// A register tile in plain C++: 4 rows x 8 outputs. kernels/matmul.h says what it does.
#include <stdint.h>

#include "kernels/tile_rows.h"

namespace quest {

using Lanes = float __attribute__((vector_size(16), may_alias));

void tile_portable(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int x_stride = 208;
  Lanes sum[4][2] = {};
  Lanes* stored = reinterpret_cast<Lanes*>(acc);
  for (int64_t k = 0; k < steps; ++k) {
    const Lanes* weights = reinterpret_cast<const Lanes*>(w + 8 * k);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const float v = x[r * x_stride + k];
      const Lanes row = {v, v, v, v};
      sum[r][0] += row * weights[0];
      sum[r][1] += row * weights[1];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
    for (int j = 0; j < 2; ++j) stored[r * 2 + j] += sum[r][j];
}

const RowKernels rows_portable = row_kernels;

}  // namespace quest
