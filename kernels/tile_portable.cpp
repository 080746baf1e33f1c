// One register tile in plain C++: 4 rows x 8 outputs. See kernels/matmul.h for what a tile does.
#include <stdint.h>

namespace quest {

typedef float Lanes __attribute__((vector_size(16), aligned(16)));

void tile_portable(const float* x, const float* w, float* acc, int64_t steps) {
  constexpr int x_stride = 400;
  Lanes sum[4][2];
  Lanes* stored = reinterpret_cast<Lanes*>(acc);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
    for (int j = 0; j < 2; ++j) sum[r][j] = stored[r * 2 + j];
  for (int64_t k = 0; k < steps; ++k) {
    const Lanes w0 = reinterpret_cast<const Lanes*>(w + 8 * k)[0], w1 = reinterpret_cast<const Lanes*>(w + 8 * k)[1];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const float v = x[r * x_stride + k];
      const Lanes row = {v, v, v, v};
      sum[r][0] += row * w0;
      sum[r][1] += row * w1;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
    for (int j = 0; j < 2; ++j) stored[r * 2 + j] = sum[r][j];
}

}  // namespace quest
