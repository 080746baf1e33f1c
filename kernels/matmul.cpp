#include "kernels/matmul.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/base/arena.h"
#include "kernels/base/error.h"
#include "kernels/base/threads.h"

namespace quest {

// Each stands in a file of its own, compiled for its instruction set.
std::remove_pointer_t<KernelPath::Tile> tile_portable, quads_portable, peak_portable, tile_avx2, quads_avx2,
    peak_avx2, tile_avx512, quads_avx512, peak_avx512, tile_avx512bf16, peak_avx512bf16, quads_avx512vnni,
    peak_avx512vnni;

std::span<const KernelPath> kernel_paths() {
  __builtin_cpu_init();  // also asks whether the system saves the wide registers (XCR0)
  static const bool vnni = __builtin_cpu_supports("avx512vnni");
  static const KernelPath::Tile quads = vnni ? quads_avx512vnni : quads_avx512,
                                peak_quads = vnni ? peak_avx512vnni : nullptr;
  static const KernelPath all[] = {
      {"avx512bf16", 8, 48, tile_avx512, tile_avx512bf16, quads, peak_avx512, peak_avx512bf16, peak_quads,
       &rows_avx512},
      {"avx512", 8, 48, tile_avx512, nullptr, quads, peak_avx512, nullptr, peak_quads, &rows_avx512},
      {"avx2", 6, 16, tile_avx2, nullptr, quads_avx2, peak_avx2, nullptr, nullptr, &rows_avx2},
      {"portable", 4, 8, tile_portable, nullptr, quads_portable, peak_portable, nullptr, nullptr,
       &rows_portable},
  };
  static const int best = [] {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 && __builtin_cpu_supports("avx512bf16") ? 0 : avx512 ? 1 : avx2 ? 2 : 3;
  }();
  return std::span(all).subspan(best);
}

const KernelPath* find_path(const char* name) {
  const std::span<const KernelPath> paths = kernel_paths();
  if (!name) return &paths[0];
  for (const KernelPath& p : paths)
    if (!strcmp(p.name, name)) return &p;
  fail(Exit::usage, "kernel path: expected one that this machine can run, found '%s'; the best here is '%s'",
       name, paths[0].name);
}

namespace {

// A panel of 192 inner indices: the shorter, the less a sum's rounding grows; a tile's rows of x fit the L1
// cache.
constexpr int64_t row_block = 1152;  // rows of x packed at a time: a multiple of each tile's
constexpr int64_t width = 96;        // columns of a work item: a multiple of each tile's, and of a block
constexpr int64_t widest_tile = 48;

int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// One product y = (or +=) x . B, where B[k][n] is w[n][k] (forward) or w[k][n] (backward).
struct Product {
  const KernelPath* path;
  View x, w, y;
  Into into;
  bool forward, bf16, pairs, quads;
  int64_t panels;
  float* packed_x;  // [row tile][panel][tile row][panel_inner] words
};

// Elements first .. first + count of a row.
void decode(const Product& p, const View& v, int64_t row, int64_t first, int64_t count, float* to) {
  p.path->row->decode[static_cast<int>(v.type)](v.data, row * v.stride + first, count, to);
}
// Whether these elements are yet to be rounded to bf16.
bool rounds(const Product& p, const View& v) { return p.bf16 && v.type != Type::bf16; }

// The same elements, rounded where the operands are.
void operand(const Product& p, const View& v, int64_t row, int64_t first, int64_t count, float* to) {
  decode(p, v, row, first, count, to);
  if (rounds(p, v)) p.path->row->round(to, count);
}

// Two bf16 values, held as floats, in one word.
float join(float low, float high) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(low) >> 16 | std::bit_cast<uint32_t>(high));
}

// Words of x[row][first .. first + count); a row past the last is zero, and its sums are never stored.
void pack_row(const Product& p, int64_t row, int64_t first, int64_t count, float* to) {
  if (row >= p.x.rows || count == 0) return void(std::fill_n(to, panel_inner, 0.0f));
  if (!p.pairs && !p.quads) return operand(p, p.x, row, first, count, to);
  float values[panel_inner];
  std::fill(values + count, values + panel_inner, 0.0f);
  if (p.quads) {
    decode(p, p.x, row, first, count, values);
    return p.path->row->quads_row(values, to);
  }
  operand(p, p.x, row, first, count, values);
  for (int64_t k = 0; k < count; k += 2) to[k / 2] = join(values[k], values[k + 1]);
}

void pack_rows(const Product& p, int64_t tile) {
  for (int64_t panel = 0; panel < p.panels; ++panel)
    for (int64_t r = 0; r < p.path->rows; ++r) {
      const int64_t first = panel * panel_inner;
      pack_row(p, tile * p.path->rows + r, first, std::min(panel_inner, p.x.cols - first),
               p.packed_x + ((tile * p.panels + panel) * p.path->rows + r) * panel_inner);
    }
}

// panel[k][n] = w[column + n][first + k], n < path->columns, k < count; columns past the last are zero.
void pack_transposed(const Product& p, int64_t column, int64_t first, int64_t count, float* panel) {
  constexpr int64_t size = 64;
  static_assert(panel_inner % size == 0);  // so all 64 columns have their place in the panel
  const int64_t columns = p.path->columns, real = std::min(columns, p.w.rows - column);
  float block[widest_tile * size] = {};
  for (int64_t k = 0; k < count; k += size) {
    const int64_t length = std::min(size, count - k);
    for (int64_t n = 0; n < real; ++n) decode(p, p.w, column + n, first + k, length, block + n * size);
    if (rounds(p, p.w)) p.path->row->round(block, columns * size);
    p.path->row->transpose(block, columns, panel + k * columns);
  }
}

// panel[k][n] = w[first + k][column + n] for all tiles of a work item, tile by tile.
void pack_straight(const Product& p, int64_t column, int64_t first, int64_t count, float* panel) {
  const int64_t columns = p.path->columns, real = std::min(width, p.w.cols - column);
  float line[width] = {};
  for (int64_t k = 0; k < count; ++k) {
    operand(p, p.w, first + k, column, real, line);
    for (int64_t n = 0; n < real; n += columns)
      memcpy(panel + n * panel_inner + k * columns, line + n, static_cast<size_t>(columns) * sizeof(float));
  }
}

// Rows 2k and 2k + 1 of a tile's panel become row k of pairs, in place.
void join_rows(int64_t columns, int64_t count, float* panel) {
  if (count % 2) std::fill_n(panel + count * columns, columns, 0.0f);
  for (int64_t k = 0; k < count; k += 2)
    for (int64_t n = 0; n < columns; ++n)
      panel[k / 2 * columns + n] = join(panel[k * columns + n], panel[(k + 1) * columns + n]);
}

// The panel of a work item: one after another those of its tiles, panel_inner rows each.
void pack_weights(const Product& p, int64_t column, int64_t tiles, int64_t first, int64_t count,
                  float* panel) {
  const int64_t columns = p.path->columns, tile_words = columns * panel_inner;
  if (!p.forward) pack_straight(p, column, first, count, panel);
  for (int64_t t = 0; t < tiles; ++t) {
    if (p.forward) pack_transposed(p, column + t * columns, first, count, panel + t * tile_words);
    if (p.pairs) join_rows(columns, count, panel + t * tile_words);
    if (p.quads) p.path->row->quads_panel(panel + t * tile_words, columns, count);
  }
}

// Row tiles [begin, end) of the columns [column, column + width). A tile's sums are cleared before the first
// panel and stored after the last, while they are in the cache.
void multiply_block(const Product& p, int64_t column, int64_t begin, int64_t end, float* panel, float* sums) {
  const int64_t rows = p.path->rows, columns = p.path->columns, tile_size = rows * columns;
  const int64_t outputs = std::min(width, p.y.cols - column), column_tiles = tiles_of(outputs, columns);
  const KernelPath::Tile tile = p.quads ? p.path->tile_quads : p.pairs ? p.path->tile_pairs : p.path->tile;
  const auto store = p.y.type == Type::f32 ? p.path->row->store_f32 : p.path->row->store_bf16;
  for (int64_t i = 0; i < p.panels; ++i) {
    const int64_t first = i * panel_inner, count = std::min(panel_inner, p.x.cols - first);
    pack_weights(p, column, column_tiles, first, count, panel);
    float* sum = sums;
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < column_tiles; ++c, sum += tile_size) {
        if (i == 0) std::fill_n(sum, tile_size, 0.0f);
        tile(p.packed_x + (r * p.panels + i) * rows * panel_inner, panel + c * columns * panel_inner, sum,
             p.quads   ? tiles_of(count, quad_block) * quad_block / 4
             : p.pairs ? tiles_of(count, 2)
                       : count);
        if (i + 1 < p.panels) continue;
        const View y = columns_of(p.y, column + c * columns, std::min(columns, outputs - c * columns));
        for (int64_t n = 0; n < std::min(rows, p.x.rows - r * rows); ++n)
          store(sum + n * columns, y.cols, p.into == Into::add, row_pointer(y, r * rows + n));
      }
  }
}

void multiply(const Context& context, View x, View w, View y, Into into, bool forward) {
  const KernelPath* path = context.ops->kernel_path;
  const bool quads = forward && context.ops->int8, bf16 = !quads && context.ops->activation == Type::bf16;
  Product p{.path = path,
            .x = x,
            .w = w,
            .y = y,
            .into = into,
            .forward = forward,
            .bf16 = bf16,
            .pairs = bf16 && path->tile_pairs,
            .quads = quads,
            .panels = std::max<int64_t>(tiles_of(x.cols, panel_inner), 1),
            .packed_x = nullptr};
  Scratch scratch(*context.arena);
  const int64_t threads = context.threads->count(), blocks = tiles_of(p.y.cols, width);
  const int64_t most_tiles = tiles_of(std::min(p.x.rows, row_block), p.path->rows);
  // Weights are decoded once for all rows, unless that leaves threads idle that could share many rows.
  const int64_t share = tiles_of(most_tiles, tiles_of(threads, std::max<int64_t>(blocks, 1)));
  const int64_t item_tiles = std::max<int64_t>(share, 8);
  const int64_t sums_size = item_tiles * p.path->rows * width;
  p.packed_x =
      context.arena->array<float>(most_tiles * p.path->rows * p.panels * panel_inner, "scratch/packed rows");
  float* panels = context.arena->array<float>(threads * panel_inner * width, "scratch/weight panels");
  float* sums = context.arena->array<float>(threads * sums_size, "scratch/sums");
  for (int64_t row = 0; row < x.rows; row += row_block) {
    p.x = rows_of(x, row, std::min(row_block, x.rows - row));
    p.y = rows_of(y, row, p.x.rows);
    const int64_t row_tiles = tiles_of(p.x.rows, p.path->rows);
    context.threads->each(row_tiles, [&](int64_t tile, int) { pack_rows(p, tile); });
    context.threads->each(blocks * tiles_of(row_tiles, item_tiles), [&](int64_t item, int thread) {
      const int64_t begin = item / blocks * item_tiles, end = std::min(begin + item_tiles, row_tiles);
      multiply_block(p, item % blocks * width, begin, end, panels + thread * panel_inner * width,
                     sums + thread * sums_size);
    });
  }
}

}  // namespace

void matmul(const Context& context, View x, View w, View y, Into into) {
  multiply(context, x, w, y, into, true);
}

void matmul_backward(const Context& context, View dy, View w, View dx, Into into) {
  multiply(context, dy, w, dx, into, false);
}

}  // namespace quest
