#include "kernels/cuda/matmul.cuh"

#include "kernels/base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/formats.cuh"

namespace quest {

namespace matmul_kernels {

namespace {

using namespace decoders;

// Of a block, on every rung. __launch_bounds__(threads, 1): without the 1 the compiler spills a word or two
// of some kernels, to fit one block more.
constexpr int threads = 256;

// One product y = (or +=) x . B with B[k][n] = w[n][k] (forward) or w[k][n] (backward).
struct Product {
  View x, w, y;
  bool add;
};

// Activations, and how their columns are found: order == nullptr: as they stand. Act-order is the order of
// the weight's columns: those of x forward (a gather), of dx backward (a scatter).
struct Columns {
  View v;
  const int32_t* order;

  // Element [row, k], unrounded; beside the matrix zero.
  __device__ float operator()(int row, int k) const {
    if (row >= v.rows || k >= v.cols) return 0.0f;
    const int64_t at = row * v.stride + (order ? order[k] : k);
    return v.type == Type::f32 ? static_cast<const float*>(v.data)[at]
                               : from_bf16(static_cast<const uint16_t*>(v.data)[at]);
  }
  // y[row, k] = (or +=) sum; beside the matrix nothing.
  __device__ void store(int row, int k, float sum, bool add) const {
    if (row >= v.rows || k >= v.cols) return;
    const int64_t at = row * v.stride + (order ? order[k] : k);
    if (v.type == Type::f32) {
      float* y = static_cast<float*>(v.data) + at;
      *y = add ? *y + sum : sum;
    } else {
      uint16_t* y = static_cast<uint16_t*>(v.data) + at;
      *y = to_bf16(add ? from_bf16(*y) + sum : sum);
    }
  }
};

// Elements [row, col .. col + 32) of w; beside the matrix zeros.
template <class Format>
__device__ typename Format::Run load_run(const Format& format, const View& w, int row, int col) {
  if (row < w.rows && col < w.cols) return format.load(row, col);
  return {};
}

__device__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ float high_of(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ float rounded(float f) { return low_of(pack_bf16(f, 0.0f)); }

// ---- rung 1: the definition

template <class Format, bool forward>
__global__ void __launch_bounds__(threads, 1) plain_product(Product p) {
  __shared__ float table[Format::table_size];
  const Format w(p.w, table);
  __syncthreads();
  const Columns x{p.x, forward ? w.order() : nullptr}, y{p.y, forward ? nullptr : w.order()};
  const int64_t output = int64_t{blockIdx.x} * threads + threadIdx.x;
  const int row = static_cast<int>(output / p.y.cols), col = static_cast<int>(output % p.y.cols);
  const int inner = static_cast<int>(p.x.cols);
  float sum = 0;
  if constexpr (forward) {
    for (int k = 0; k < inner; k += 32) {
      const typename Format::Run run = load_run(w, p.w, col, k);
      for (int i = 0; i < 16; ++i) {
        const uint32_t pair = w.pair(run, i);
        sum += rounded(x(row, k + 2 * i)) * low_of(pair);
        sum += rounded(x(row, k + 2 * i + 1)) * high_of(pair);
      }
    }
  } else {
    for (int k = 0; k < inner; ++k) {
      const uint32_t pair = w.pair(load_run(w, p.w, k, col / 32 * 32), col % 32 / 2);
      sum += rounded(x(row, k)) * (col % 2 ? high_of(pair) : low_of(pair));
    }
  }
  y.store(row, col, sum, p.add);
}

// ---- rung 2: a tile in shared memory; every thread has 4 x 4 outputs, 16 rows and columns apart

constexpr int side = 64, depth = 32;

template <class Format, bool forward>
__global__ void __launch_bounds__(threads, 1) tile_product(Product p) {
  __shared__ float table[Format::table_size];
  __shared__ float x_tile[depth][side + 1], w_tile[depth][side + 1];
  const Format w(p.w, table);
  __syncthreads();
  const Columns x{p.x, forward ? w.order() : nullptr}, y{p.y, forward ? nullptr : w.order()};
  const int first_row = static_cast<int>(blockIdx.x) * side, first_col = static_cast<int>(blockIdx.y) * side;
  const int t = static_cast<int>(threadIdx.x), inner = static_cast<int>(p.x.cols);
  float sums[4][4] = {};
  for (int first = 0; first < inner; first += depth) {
    for (int i = t; i < side * depth; i += threads)
      x_tile[i % depth][i / depth] = rounded(x(first_row + i / depth, first + i % depth));
    if (t < side) {  // forward a run is a column of the tile, backward half a row
      const int r = forward ? first_col + t : first + t / 2, c = forward ? first : first_col + t % 2 * 32;
      const typename Format::Run run = load_run(w, p.w, r, c);
      UNROLL
      for (int i = 0; i < 32; ++i) {
        const uint32_t pair = w.pair(run, i / 2);
        (forward ? w_tile[i][t] : w_tile[t / 2][t % 2 * 32 + i]) = i % 2 ? high_of(pair) : low_of(pair);
      }
    }
    __syncthreads();
    for (int k = 0; k < depth; ++k) UNROLL
    for (int i = 0; i < 4; ++i) UNROLL
    for (int j = 0; j < 4; ++j) sums[i][j] += x_tile[k][t / 16 + 16 * i] * w_tile[k][t % 16 + 16 * j];
    __syncthreads();
  }
  UNROLL
  for (int i = 0; i < 4; ++i) UNROLL
  for (int j = 0; j < 4; ++j)
    y.store(first_row + t / 16 + 16 * i, first_col + t % 16 + 16 * j, sums[i][j], p.add);
}

// ---- rung 3: tensor cores. While a step of 64 inner indices is multiplied from one pair of tiles, the next
// pair is filled: x by asynchronous copies (f32, which is to be rounded, by way of registers), w by decoding
// what was loaded a step before.

constexpr int rows = 128, columns = 128, inner_step = 64;  // of a block's tile
constexpr int x_tile_size = rows * inner_step, w_tile_size = columns * inner_step;
constexpr size_t tiles_bytes = 2 * (x_tile_size + w_tile_size) * sizeof(uint16_t);

// Where chunk c (8 elements, 16 bytes) of a row stands in a tile with `chunks` a row. Of eight rows the same
// chunk, and of a row eight chunks in turn, stand in different banks; so do the chunks 0, 4, 8, 12 of two
// rows.
template <int chunks>
__device__ constexpr int place(int row, int c) {
  return (row * chunks + (c ^ (row & 7) ^ (c >> 3 << 1))) * 8;
}

// The tile of x: thread t fills chunks t, t + 256, ... of its 1024 chunks, called quarters of the tile.
struct InputTile {
  Columns x;
  int first_row;
  bool direct, wide;  // bf16, f32 that can be read 16 bytes at a time
  using Values = float[4][8];

  __device__ InputTile(const Columns& from, int row) : x(from), first_row(row) {
    const int bytes = x.v.type == Type::f32 ? 4 : 2;
    const bool aligned = !x.order && (reinterpret_cast<uintptr_t>(x.v.data) | (x.v.stride * bytes)) % 16 == 0;
    direct = aligned && bytes == 2, wide = aligned && bytes == 4;
  }
  __device__ static int row_of(int quarter) {
    return static_cast<int>(threadIdx.x) / 8 + quarter * (threads / 8);
  }
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % 8; }
  __device__ static uint16_t* chunk_of(int quarter, uint16_t* tile) {
    return tile + place<8>(row_of(quarter), chunk());
  }
  // Whether the quarter's chunk is all there and can be read at once.
  __device__ bool whole(int quarter, int k) const {
    return (direct || wide) && first_row + row_of(quarter) < x.v.rows && k + 8 * chunk() + 8 <= x.v.cols;
  }

  // Begins to fill the tile with columns k .. k + 64 of x; `values` are f32's on their way.
  __device__ void load(int k, uint16_t* tile, Values& values) const {
    UNROLL
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int row = first_row + row_of(quarter), col = k + 8 * chunk();
      const int64_t at = row * x.v.stride + col;
      if (!whole(quarter, k)) {
        ROLLED
        for (int i = 0; i < 8; ++i) chunk_of(quarter, tile)[i] = to_bf16(x(row, col + i));
      } else if (direct) {
        copy_async16(chunk_of(quarter, tile), static_cast<const uint16_t*>(x.v.data) + at);
      } else {
        UNROLL
        for (int i = 0; i < 8; i += 4) {
          const Words4 four = fetch<Words4>(static_cast<const float*>(x.v.data) + at + i);
          float* to = values[quarter] + i;
          to[0] = __uint_as_float(four.x), to[1] = __uint_as_float(four.y);
          to[2] = __uint_as_float(four.z), to[3] = __uint_as_float(four.w);
        }
      }
    }
    copy_async_commit();
  }
  // Ends it: the thread's copies are there, f32 is rounded.
  __device__ void finish(int k, uint16_t* tile, const Values& values) const {
    copy_async_wait<0>();
    UNROLL
    for (int quarter = 0; quarter < 4; ++quarter) {
      const float* v = values[quarter];
      if (wide && whole(quarter, k))
        put(chunk_of(quarter, tile), Words4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                            pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])});
    }
  }
};

// The tile of w: [column][inner] forward, [inner][column] backward, in runs of 32 that follow the weight's
// rows.
template <class Format, bool forward>
struct WeightTile {
  const Format& format;
  const View& w;
  int first_col;
  static constexpr int chunks = (forward ? inner_step : columns) / 8;
  static constexpr int runs = chunks / 4;  // of a row

  __device__ static int row() { return static_cast<int>(threadIdx.x) / runs; }
  __device__ static int run() { return static_cast<int>(threadIdx.x) % runs; }
  __device__ typename Format::Run load(int k) const {
    return load_run(format, w, row() + (forward ? first_col : k), 32 * run() + (forward ? k : first_col));
  }
  __device__ void store(int quarter, const typename Format::Run& r, uint16_t* tile) const {
    const int i = 4 * quarter;
    put(tile + place<chunks>(row(), 4 * run() + quarter),
        Words4{format.pair(r, i), format.pair(r, i + 1), format.pair(r, i + 2), format.pair(r, i + 3)});
  }
};

// A warp's 64 x 32 outputs: sums[i][j] is the fragment of rows 16 i, columns 8 j.
using Sums = float[4][4][4];
__device__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 % 2 * 64; }
__device__ int warp_column() { return static_cast<int>(threadIdx.x) / 64 * 32; }

// sums += x . w over a quarter of the step: 16 inner indices.
template <bool forward>
__device__ void multiply(int quarter, const uint16_t* x_tile, const uint16_t* w_tile, Sums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t a[4][4], b[4][2];
  UNROLL
  for (int i = 0; i < 4; ++i)
    ldmatrix_x4(a[i], x_tile + place<8>(warp_row() + 16 * i + lane % 16, 2 * quarter + lane / 16));
  UNROLL
  for (int j = 0; j < 4; j += 2) {
    const int col = warp_column() + 8 * j;
    uint32_t both[4];  // fragments of two times 8 columns
    if constexpr (forward)
      ldmatrix_x4(both, w_tile + place<8>(col + lane / 16 * 8 + lane % 8, 2 * quarter + lane / 8 % 2));
    else
      ldmatrix_x4_trans(both, w_tile + place<16>(16 * quarter + lane % 16, col / 8 + lane / 16));
    b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
  }
  UNROLL
  for (int i = 0; i < 4; ++i) UNROLL
  for (int j = 0; j < 4; ++j) mma_bf16(sums[i][j], a[i], b[j]);
}

template <class Format, bool forward>
__global__ void __launch_bounds__(threads, 1) tensor_product(Product p) {
  DYNAMIC_SHARED(uint16_t, shared);
  __shared__ float table[Format::table_size];
  static_assert(tiles_bytes + sizeof table <= 99 * 1024);  // what sm_86 has
  const Format format(p.w, table);
  __syncthreads();
  const int first_row = static_cast<int>(blockIdx.x) * rows,
            first_col = static_cast<int>(blockIdx.y) * columns;
  uint16_t *x_tiles = shared, *w_tiles = shared + 2 * x_tile_size;
  const InputTile x({p.x, forward ? format.order() : nullptr}, first_row);
  const WeightTile<Format, forward> w{format, p.w, first_col};

  InputTile::Values values;
  x.load(0, x_tiles, values);
  typename Format::Run run = w.load(0);
  UNROLL
  for (int quarter = 0; quarter < 4; ++quarter) w.store(quarter, run, w_tiles);
  run = w.load(inner_step);
  x.finish(0, x_tiles, values);
  __syncthreads();

  Sums sums = {};
  const int inner = static_cast<int>(p.x.cols);
  for (int k = 0, stage = 0; k < inner; k += inner_step, stage ^= 1) {
    const int next = k + inner_step;
    uint16_t *next_x = x_tiles + (stage ^ 1) * x_tile_size, *next_w = w_tiles + (stage ^ 1) * w_tile_size;
    const typename Format::Run later = w.load(next + inner_step);
    x.load(next, next_x, values);
    __syncwarp();  // at an edge lanes went different ways
    UNROLL
    for (int quarter = 0; quarter < 4; ++quarter) {
      multiply<forward>(quarter, x_tiles + stage * x_tile_size, w_tiles + stage * w_tile_size, sums);
      w.store(quarter, run, next_w);
    }
    run = later;
    x.finish(next, next_x, values);
    __syncthreads();
  }

  const Columns y{p.y, forward ? nullptr : format.order()};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  UNROLL
  for (int i = 0; i < 4; ++i) UNROLL
  for (int j = 0; j < 4; ++j) UNROLL
  for (int e = 0; e < 4; ++e)
    y.store(first_row + warp_row() + 16 * i + lane / 4 + e / 2 * 8,
            first_col + warp_column() + 8 * j + lane % 4 * 2 + e % 2, sums[i][j][e], p.add);
}

// ---- the choice of a kernel

template <class Format, bool forward>
void run(Rung rung, const Product& p, Stream stream) {
  const int64_t m = p.y.rows, n = p.y.cols;
  switch (rung) {
    case Rung::plain:
      return launch(plain_product<Format, forward>, Grid{tiles_of(m * n, threads)}, threads, 0, stream, p);
    case Rung::tile:
      return launch(tile_product<Format, forward>, Grid{tiles_of(m, side), tiles_of(n, side)}, threads, 0,
                    stream, p);
    case Rung::tensor:
      return launch(tensor_product<Format, forward>, Grid{tiles_of(m, rows), tiles_of(n, columns)}, threads,
                    tiles_bytes, stream, p);
  }
}

// f.template operator()<Format>(), by the format of w.
template <class F>
void with_format(const View& w, F&& f) {
  switch (w.type) {
    case Type::f32: return f.template operator()<Single<PlainElement<Type::f32>>>();
    case Type::f16: return f.template operator()<Single<PlainElement<Type::f16>>>();
    case Type::bf16: return f.template operator()<Single<PlainElement<Type::bf16>>>();
    case Type::q4_0: return f.template operator()<Q4_0>();
    case Type::q4_1: return f.template operator()<Q4_1>();
    case Type::q8_0: return f.template operator()<Q8_0>();
    case Type::q4_k: return f.template operator()<Q4_K>();
    case Type::q6_k: return f.template operator()<Q6_K>();
    case Type::nf4:
      if (w.cols % 32) return f.template operator()<Single<Nf4Element>>();
      return f.template operator()<Nf4Runs>();
    case Type::gptq2: return f.template operator()<GptqRuns<2>>();
    case Type::gptq3: return f.template operator()<GptqRuns<3>>();
    case Type::gptq4: return f.template operator()<GptqRuns<4>>();
    default:
      fail(Exit::input,
           "weights: the GPU multiplies by F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, NF4 and GPTQ, "
           "not by %s",
           format_of(w.type).name);
  }
}

template <bool forward>
void multiply(Rung rung, const Product& p, Stream stream) {
  with_format(p.w, [&]<class Format>() {
    if (p.y.rows && p.y.cols) run<Format, forward>(rung, p, stream);
  });
}

}  // namespace

}  // namespace matmul_kernels

void cuda_matmul(Rung rung, View x, View w, View y, Into into, Stream stream) {
  matmul_kernels::multiply<true>(rung, {x, w, y, into == Into::add}, stream);
}

void cuda_matmul_backward(Rung rung, View dy, View w, View dx, Into into, Stream stream) {
  matmul_kernels::multiply<false>(rung, {dy, w, dx, into == Into::add}, stream);
}

}  // namespace quest
