// The loss: similarities of queries and labels as small dense products in fp32, and the contrastive loss over
// them, inside in double like the CPU's.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/view.h"

namespace quest::cuda {

namespace {

// ---- c = a . b / by, where element (i, k) of a stands at a[i * a_row + k * a_col], and so on: k ascending

struct Operand {
  const float* data;
  int64_t row, col;
};
constexpr int side = 16;  // of a block's tile of c

__global__ void __launch_bounds__(side* side)
    product_kernel(Operand a, Operand b, int64_t inner, float by, View c) {
  __shared__ float left[side][side + 1], right[side][side + 1];
  const int x = threadIdx.x % side, y = threadIdx.x / side;
  const int64_t first = int64_t{blockIdx.x} * side, row = first + y;
  const int64_t left_col = int64_t{blockIdx.y} * side, col = left_col + x;
  float sum = 0;
  for (int64_t k = 0; k < inner; k += side) {
    const bool in_a = row < c.rows && k + x < inner, in_b = k + y < inner && col < c.cols;
    left[y][x] = in_a ? a.data[row * a.row + (k + x) * a.col] : 0.0f;
    right[y][x] = in_b ? b.data[(k + y) * b.row + col * b.col] : 0.0f;
    __syncthreads();
    const int count = inner - k < side ? static_cast<int>(inner - k) : side;
    for (int i = 0; i < count; ++i) sum += left[y][i] * right[i][x];
    __syncthreads();
  }
  if (row < c.rows && col < c.cols) store(c, row, col, sum / by);
}

Operand straight(const View& v) { return {static_cast<const float*>(v.data), v.stride, 1}; }
Operand transposed(const View& v) { return {static_cast<const float*>(v.data), 1, v.stride}; }

void product(const Context& context, Operand a, Operand b, int64_t inner, double by, View c) {
  launch(product_kernel, Grid{tiles_of(c.rows, side), tiles_of(c.cols, side)}, side * side, 0, context.device,
         a, b, inner, static_cast<float>(by), c);
}

// ---- contrastive loss

// One softmax of the loss: entries data[0], data[step], ... but for the hidden ones.
struct Softmax {
  const float* data;
  int64_t count, step;
  const uint8_t* hidden;
  // By a whole warp.
  __device__ double log_sum() const {
    float top = -INFINITY;
    for (int64_t j = lane_index(); j < count; j += warp)
      if (!hidden[j]) top = fmaxf(top, data[j * step]);
    top = warp_max(top);
    const auto term = [&](int64_t j) { return hidden[j] ? 0.0 : exp(double{data[j * step]} - top); };
    return log(lane_sum<double>(count, term)) + top;
  }
};

struct Loss {
  View s;
  const Pair* pairs;
  int64_t count;  // of pairs
  const uint8_t *hidden, *hidden_queries;
  double weight;  // of a softmax

  __device__ const float* at(int64_t i, int64_t j) const {
    return static_cast<const float*>(s.data) + i * s.stride + j;
  }
  __device__ Softmax of_query(int64_t i) const {  // of pair i
    return {at(pairs[i].query, 0), s.cols, 1, hidden + i * s.cols};
  }
  __device__ Softmax of_label(int64_t i) const {
    return {at(0, pairs[i].label), s.rows, s.stride, hidden_queries + i * s.rows};
  }
};

// One block: warp w adds pairs w, w + 8, ...; then the warps in order.
__global__ void __launch_bounds__(block_warps* warp) contrastive_kernel(Loss l, View loss) {
  __shared__ double sums[block_warps];
  double sum = 0;
  for (int64_t i = threadIdx.x / warp; i < l.count; i += block_warps) {
    const double score = *l.at(l.pairs[i].query, l.pairs[i].label);
    sum += l.weight * (l.of_query(i).log_sum() - score);
    if (l.hidden_queries) sum += l.weight * (l.of_label(i).log_sum() - score);
  }
  if (lane_index() == 0) sums[threadIdx.x / warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < block_warps; ++w) sum += sums[w];
  store(loss, 0, 0, static_cast<float>(sum));
}

// A warp has a row of ds, or for `labels` a column, and adds what its pairs ask for, pairs ascending.
__global__ void __launch_bounds__(block_warps* warp)
    contrastive_backward_kernel(Loss l, bool labels, View ds) {
  const int64_t line = warp_index();
  if (line >= (labels ? ds.cols : ds.rows)) return;
  const int64_t length = labels ? ds.rows : ds.cols, step = labels ? ds.stride : 1;
  float* to = static_cast<float*>(ds.data) + line * (labels ? 1 : ds.stride);
  for (int64_t j = lane_index(); j < length && !labels; j += warp) to[j] = 0;
  for (int64_t i = 0; i < l.count; ++i) {
    const Pair pair = l.pairs[i];
    if ((labels ? pair.label : pair.query) != line) continue;
    const Softmax softmax = labels ? l.of_label(i) : l.of_query(i);
    const int64_t target = labels ? pair.query : pair.label;
    const double log_sum = softmax.log_sum();
    for (int64_t j = lane_index(); j < length; j += warp)
      if (!softmax.hidden[j])
        to[j * step] += static_cast<float>(
            l.weight * (exp(softmax.data[j * softmax.step] - log_sum) - (j == target ? 1.0 : 0.0)));
  }
}

Loss make(View s, const Pair* pairs, int64_t n, const uint8_t* hidden, const uint8_t* hidden_queries) {
  return {s, pairs, n, hidden, hidden_queries, (hidden_queries ? 0.5 : 1.0) / static_cast<double>(n)};
}

}  // namespace

void similarity(const Context& c, View q, View l, double temperature, View s) {
  product(c, straight(q), transposed(l), q.cols, temperature, s);
}
void similarity_backward(const Context& c, View ds, View q, View l, double temperature, View dq, View dl) {
  product(c, straight(ds), straight(l), ds.cols, temperature, dq);
  product(c, transposed(ds), straight(q), ds.rows, temperature, dl);
}

void contrastive(const Context& c, View s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                 const uint8_t* hidden_queries, View loss) {
  launch(contrastive_kernel, Grid{1}, block_warps * warp, 0, c.device,
         make(s, pairs, n, hidden, hidden_queries), loss);
}
void contrastive_backward(const Context& c, View s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                          const uint8_t* hidden_queries, View ds) {
  const Loss loss = make(s, pairs, n, hidden, hidden_queries);
  for (const bool labels : {false, true})
    if (!labels || hidden_queries)
      launch(contrastive_backward_kernel, Grid{tiles_of(labels ? ds.cols : ds.rows, block_warps)},
             block_warps * warp, 0, c.device, loss, labels, ds);
}

}  // namespace quest::cuda
