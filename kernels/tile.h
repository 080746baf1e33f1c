// A kernel path: the inner loops of the CPU backend for one instruction set. Each path is one tile_*.cpp,
// compiled with its own flags; cpuid chooses (matmul.cpp).
#pragma once
#include <stdint.h>

namespace quest {

// What a path offers beside its register tile, with the same bits for every path. n: floats of a row. Outputs
// overlap no input, but for y of swiglu, which may be gate.
struct RowKernels {
  // out[i] = element at + i of a stored matrix whose rows follow each other, in the order of Type. Of packed
  // types `at` and `count` are multiples of 32 (of nf4 any numbers).
  void (*decode[12])(const void* from, int64_t at, int64_t count, float* out);
  void (*store_f32)(const float* x, int64_t n, bool add, void* y);   // y = (or +=) x
  void (*store_bf16)(const float* x, int64_t n, bool add, void* y);  // the same, rounded once
  void (*round)(float* x, int64_t n);                                // x = bf16(x)
  // [rows][64] -> [64][rows]; rows: a tile's columns
  void (*transpose)(const float* block, int64_t rows, float* to);
  void (*rmsnorm)(const float* x, const float* w, float eps, int64_t n, float* y);
  void (*rmsnorm_backward)(const float* dy, const float* x, const float* w, float eps, int64_t n, float* dx);
  void (*turn)(const float* x, const float* turns, bool halves, int64_t size, float direction, int64_t n,
               float* y);
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* y);
  void (*swiglu_backward)(const float* dy, const float* gate, const float* up, int64_t n, float* dgate,
                          float* dup);
  // out[i] = dot(q, x + i * width), i < n
  void (*dots)(const float* q, const float* x, int64_t n, int64_t width, float* out);
  // One query of one head against `count` keys and values, `stride` apart: p [count], out [D].
  void (*attention)(const float* q, const float* k, const float* v, int64_t D, int64_t stride, int64_t count,
                    float scale, float* p, float* out);
  // dq =; dk, dv += from key and value `first` on; p, dp [count] are scratch
  void (*attention_backward)(const float* dout, const float* q, const float* k, const float* v, int64_t D,
                             int64_t stride, int64_t first, int64_t count, float scale, float* p, float* dp,
                             float* dq, float* dk, float* dv);
  // What a tile of quads reads (below): of a row x [panel_inner]; of the first `count` rows of a panel
  // [panel_inner][columns], in place, columns at most 64.
  void (*quads_row)(const float* x, float* to);
  void (*quads_panel)(float* panel, int64_t columns, int64_t count);
};

extern const RowKernels rows_portable, rows_avx2, rows_avx512;

constexpr int64_t panel_inner = 192;  // inner indices of a panel: rows of packed x are so many words apart

// int8: a word is a quad of bytes, inner index 4k (lowest byte) to 4k + 3. A value is its byte times the
// scale of its block of inner indices; the bytes of x are signed, those of w raised by 128. A row of x is
// quad_words words, the scale of each block, and for each -128 times the sum of its bytes (int32), where the
// block's sums start; of w so many rows of words, then a row of scales for each block.
constexpr int64_t quad_block = 64, quad_words = panel_inner / 4, quad_blocks = panel_inner / quad_block;

struct KernelPath {
  // acc[r][n] += sum over k ascending of x[r][k] * w[k][n], r < rows, n < columns, k < steps.
  // x: rows panel_inner words apart; w: rows of `columns` words; acc: rows of `columns` floats; both 64-byte
  // aligned.
  using Tile = void (*)(const float* x, const float* w, float* acc, int64_t steps);

  const char* name;
  int rows, columns;  // of a tile
  Tile tile;          // a word is one float
  Tile tile_pairs;    // a word is two bf16: inner index 2k (low half), 2k + 1; nullptr: bf16 goes as float
  Tile tile_quads;    // steps: whole blocks; each is summed in int32 and then, scaled, added
  Tile peak, peak_pairs, peak_quads;  // as many multiply-adds, on registers alone: the machine's ceiling
  const RowKernels* row;
};

}  // namespace quest
