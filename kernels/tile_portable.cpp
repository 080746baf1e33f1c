// A register tile in plain C++: 4 rows x 8 outputs.
#include "kernels/tile_product.h"
#include "kernels/tile_rows.h"

namespace quest {

static_assert(8 % lanes == 0);  // as transpose needs it

constexpr auto multiply_add = [](Lanes sum, float a, Lanes b) { return sum + a * b; };

void tile_portable(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_tile<4, 2>(x, w, acc, steps, Lanes{}, multiply_add);
}
void quads_portable(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_quads<4, 8>(x, w, acc, steps);
}
void peak_portable(const float* x, const float* w, float* acc, int64_t steps) {
  multiply_peak<8>(x, w, acc, steps, Lanes{}, multiply_add);
}

const RowKernels rows_portable = row_kernels;

}  // namespace quest
