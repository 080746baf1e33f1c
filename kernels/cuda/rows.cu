// Ops whose rows are independent work: gathers, sums, norms, rotary positions, SwiGLU, pooling, the
// optimiser. An element is a thread's, or a row is a warp's; sums as view.h says.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/view.h"

namespace quest::cuda {

namespace {

// ---- 1  rows

struct Gather {
  View x, y;
  const int32_t* rows;
  __device__ void operator()(int64_t i, int64_t j) const { store(y, i, j, load(x, rows[i], j)); }
};

// A block has some columns, and the rows of dx whose numbers leave the same remainder; it looks at all of dy
// in order, so every sum is i ascending.
constexpr int gather_threads = 128, gather_classes = 32;
__global__ void __launch_bounds__(gather_threads)
    gather_backward_kernel(View dy, const int32_t* rows, View dx) {
  const int64_t j = int64_t{blockIdx.x} * gather_threads + threadIdx.x;
  if (j >= dy.cols) return;
  for (int64_t i = 0; i < dy.rows; ++i)
    if (rows[i] % gather_classes == static_cast<int>(blockIdx.y))
      store(dx, rows[i], j, load(dx, rows[i], j) + load(dy, i, j));
}

struct Add {
  View x, y;
  __device__ void operator()(int64_t i, int64_t j) const { store(y, i, j, load(y, i, j) + load(x, i, j)); }
};
struct Zero {
  View y;
  __device__ void operator()(int64_t i, int64_t j) const { store(y, i, j, 0); }
};

// ---- 2  RMSNorm

__device__ float inverse_rms(const View& x, int64_t row, float eps) {
  const float square = lane_sum(x.cols, [&](int64_t j) { return load(x, row, j) * load(x, row, j); });
  return 1.0f / sqrtf(square / static_cast<float>(x.cols) + eps);
}

__global__ void __launch_bounds__(block_warps* warp) rmsnorm_kernel(View x, View w, float eps, View y) {
  const int64_t row = warp_index();
  if (row >= x.rows) return;
  const float r = inverse_rms(x, row, eps);
  for (int64_t j = lane_index(); j < x.cols; j += warp) store(y, row, j, load(x, row, j) * r * load(w, 0, j));
}

__global__ void __launch_bounds__(block_warps* warp)
    rmsnorm_backward_kernel(View dy, View x, View w, float eps, View dx) {
  const int64_t row = warp_index();
  if (row >= x.rows) return;
  const float r = inverse_rms(x, row, eps);
  const float all =
      lane_sum(x.cols, [&](int64_t j) { return load(dy, row, j) * load(w, 0, j) * load(x, row, j); });
  const float scale = r * r * r * all / static_cast<float>(x.cols);
  for (int64_t j = lane_index(); j < x.cols; j += warp)
    store(dx, row, j, load(dx, row, j) + (r * load(w, 0, j) * load(dy, row, j) - scale * load(x, row, j)));
}

// ---- 4  rotary positions; j counts pairs through all heads

struct Turn {
  View x, y, table;
  const int32_t* positions;
  bool halves;
  float direction;
  __device__ void operator()(int64_t i, int64_t j) const {
    const int64_t D = table.cols, head = j / (D / 2) * D, pair = j % (D / 2);
    const int64_t at = head + (halves ? pair : 2 * pair), other = at + (halves ? D / 2 : 1);
    const float cosine = load(table, positions[i], 2 * pair);
    const float sine = direction * load(table, positions[i], 2 * pair + 1);
    const float a = load(x, i, at), b = load(x, i, other);
    store(y, i, at, a * cosine - b * sine);
    store(y, i, other, a * sine + b * cosine);
  }
};

// ---- 6  SwiGLU

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Swiglu {
  View gate, up, y;
  __device__ void operator()(int64_t i, int64_t j) const {
    const float g = load(gate, i, j);
    store(y, i, j, g * sigmoid(g) * load(up, i, j));
  }
};
struct SwigluBackward {
  View dy, gate, up, dgate, dup;
  __device__ void operator()(int64_t i, int64_t j) const {
    const float g = load(gate, i, j), sigma = sigmoid(g), d = load(dy, i, j);
    store(dup, i, j, d * g * sigma);
    store(dgate, i, j, d * load(up, i, j) * sigma * (1.0f + g * (1.0f - sigma)));
  }
};

// ---- 7  pooling and L2 normalisation; i counts groups

struct Pool {
  const Group* groups;
  View h, e;
  __device__ void operator()(int64_t i, int64_t j) const {
    const Group& g = groups[i];
    float sum = 0;
    for (int32_t row = g.query; row < g.query + g.queries; ++row) sum += load(h, row, j);
    store(e, i, j, sum / static_cast<float>(g.queries));
  }
};
struct PoolBackward {
  const Group* groups;
  View de, dh;
  __device__ void operator()(int64_t i, int64_t j) const {
    const Group& g = groups[i];
    const float share = load(de, i, j) / static_cast<float>(g.queries);
    for (int32_t row = g.query; row < g.query + g.queries; ++row) store(dh, row, j, share);
  }
};

__device__ float centred(const View& e, const View& mean, int64_t i, int64_t j) {
  return mean.data ? load(e, i, j) - load(mean, 0, j) : load(e, i, j);
}

__global__ void __launch_bounds__(block_warps* warp) normalize_kernel(View e, View mean, View u) {
  const int64_t row = warp_index();
  if (row >= e.rows) return;
  const float square = lane_sum(e.cols, [&](int64_t j) {
    const float x = centred(e, mean, row, j);
    return x * x;
  });
  const float length = sqrtf(square);
  for (int64_t j = lane_index(); j < e.cols; j += warp) store(u, row, j, centred(e, mean, row, j) / length);
}

__global__ void __launch_bounds__(block_warps* warp)
    normalize_backward_kernel(View du, View e, View mean, View de) {
  const int64_t row = warp_index();
  if (row >= e.rows) return;
  const float square = lane_sum(e.cols, [&](int64_t j) {
    const float x = centred(e, mean, row, j);
    return x * x;
  });
  const float dot = lane_sum(e.cols, [&](int64_t j) { return centred(e, mean, row, j) * load(du, row, j); });
  const float length = sqrtf(square), along = dot / square;
  for (int64_t j = lane_index(); j < e.cols; j += warp)
    store(de, row, j, (load(du, row, j) - centred(e, mean, row, j) * along) / length);
}

// ---- 9  optimiser, in double like the CPU's

__global__ void __launch_bounds__(block_warps* warp) norm_kernel(View g, View norm) {
  __shared__ double sums[block_warps];
  double square = 0;
  for (int64_t at = threadIdx.x; at < g.rows * g.cols; at += block_warps * warp) {
    const double x = load(g, at / g.cols, at % g.cols);
    square += x * x;
  }
  square = warp_sum(square);
  if (lane_index() == 0) sums[threadIdx.x / warp] = square;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < block_warps; ++i) square += sums[i];
  store(norm, 0, 0, static_cast<float>(sqrt(square)));
}

struct Step {
  View p, g, m, v, norm;
  double clip, correct1, correct2;
  AdamW o;
  __device__ void operator()(int64_t i, int64_t j) const {
    const double length = load(norm, 0, 0);
    const double gradient = load(g, i, j) * (clip > 0 && length > clip ? clip / length : 1.0);
    const double mean = o.beta1 * load(m, i, j) + (1 - o.beta1) * gradient;
    const double square = o.beta2 * load(v, i, j) + (1 - o.beta2) * gradient * gradient;
    const double step = mean / correct1 / (sqrt(square / correct2) + o.epsilon);
    const double was = load(p, i, j);
    store(m, i, j, static_cast<float>(mean));
    store(v, i, j, static_cast<float>(square));
    store(p, i, j, static_cast<float>(was - o.rate * (step + o.decay * was)));
  }
};

template <class... P, class... A>
void each_row(const Context& c, int64_t rows, void (*kernel)(P...), A... arguments) {
  launch(kernel, Grid{tiles_of(rows, block_warps)}, block_warps * warp, 0, c.device, arguments...);
}

void turn(const Context& c, View x, const int32_t* positions, const Turns& t, View y, float direction) {
  each_element(c, x.rows, x.cols / 2, Turn{x, y, t.table, positions, t.halves, direction});
}

}  // namespace

void gather(const Context& c, View x, const int32_t* rows, View y) {
  each_element(c, y.rows, y.cols, Gather{x, y, rows});
}
void gather_backward(const Context& c, View dy, const int32_t* rows, View dx) {
  if (dy.rows == 0) return;
  launch(gather_backward_kernel, Grid{tiles_of(dy.cols, gather_threads), gather_classes}, gather_threads, 0,
         c.device, dy, rows, dx);
}
void add(const Context& c, View x, View y) { each_element(c, y.rows, y.cols, Add{x, y}); }
void zero(const Context& c, View y) { each_element(c, y.rows, y.cols, Zero{y}); }

void rmsnorm(const Context& c, View x, View w, double eps, View y) {
  each_row(c, x.rows, rmsnorm_kernel, x, w, static_cast<float>(eps), y);
}
void rmsnorm_backward(const Context& c, View dy, View x, View w, double eps, View dx) {
  each_row(c, x.rows, rmsnorm_backward_kernel, dy, x, w, static_cast<float>(eps), dx);
}

void rope(const Context& c, View x, const int32_t* positions, Turns t, View y) {
  turn(c, x, positions, t, y, 1);
}
void rope_backward(const Context& c, View dy, const int32_t* positions, Turns t, View dx) {
  turn(c, dy, positions, t, dx, -1);
}

void swiglu(const Context& c, View gate, View up, View y) {
  each_element(c, y.rows, y.cols, Swiglu{gate, up, y});
}
void swiglu_backward(const Context& c, View dy, View gate, View up, View dgate, View dup) {
  each_element(c, dy.rows, dy.cols, SwigluBackward{dy, gate, up, dgate, dup});
}

void pool(const Context& c, const Group* groups, int64_t n, View h, View e) {
  each_element(c, n, e.cols, Pool{groups, h, e});
}
void pool_backward(const Context& c, const Group* groups, int64_t n, View de, View dh) {
  each_element(c, n, de.cols, PoolBackward{groups, de, dh});
}

void normalize(const Context& c, View e, View mean, View u) {
  each_row(c, e.rows, normalize_kernel, e, mean, u);
}
void normalize_backward(const Context& c, View du, View e, View mean, View de) {
  each_row(c, e.rows, normalize_backward_kernel, du, e, mean, de);
}

void norm(const Context& c, View g, View norm) {
  launch(norm_kernel, Grid{1}, block_warps * warp, 0, c.device, g, norm);
}
void adamw(const Context& c, View p, View g, View m, View v, View norm, double clip, AdamW o) {
  const auto correction = [&](double beta) { return 1 - std::pow(beta, static_cast<double>(o.step)); };
  each_element(c, p.rows, p.cols, Step{p, g, m, v, norm, clip, correction(o.beta1), correction(o.beta2), o});
}

}  // namespace quest::cuda
