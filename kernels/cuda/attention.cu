// Attention over packed rows, forward and backward, without atomics. A block has eight rows of one group, one
// a warp: query rows of a head in the forward pass and for dq, rows of keys of a kv head for dk and dv. It
// goes through the other side in order, 32 rows at a time, which stand in shared memory: each lane has one of
// them for the dot products, then each lane has columns for the weighted sums. So every sum's order is given
// by the group alone, and no number depends on the other groups of a pass.
#include "kernels/base/arena.h"
#include "kernels/base/error.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/view.h"

namespace quest::cuda {

namespace {

constexpr int tile = block_warps;  // rows of a block
constexpr int chunk = warp;        // rows of the other side at a time

struct Attention {
  Heads heads;
  int64_t layer;
  const Group* groups;
  int64_t count;  // of groups
  View q, kv;
  float scale;
};

// D columns of a row, from one on.
struct Row {
  const void* data;
  Type type;
  int64_t at;
  __device__ float operator[](int64_t j) const { return element(data, type, at + j); }
};
__device__ Row row_of(const View& v, int64_t row, int64_t column) {
  return {v.data, v.type, row * v.stride + column};
}
// What row j of a group's [context][own rows] holds: keys from `column` on, values half a row later.
__device__ Row seen_row(const Attention& a, const Group& g, int64_t j, int64_t column) {
  const int64_t context = g.context.rows;
  const std::byte* first = g.context.data + a.layer * g.context.layer_bytes;
  if (j < context) return {first, a.kv.type, j * a.kv.cols + column};
  return row_of(a.kv, g.row + j - context, column);
}
// How many of them query i of the group sees.
__device__ int64_t seen_by(const Group& g, int64_t i) { return g.context.rows + g.rows - g.queries + i + 1; }

__device__ int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The warp writes a row to shared memory as fp32.
__device__ void stage(float* to, const Row& row, int64_t D) {
  for (int64_t j = lane_index(); j < D; j += warp) to[j] = row[j];
}
// Rows of a chunk stand D + 1 apart, so that the lanes read different banks.
__device__ float dot(const float* row, const float* lane_row, int64_t D) {
  float sum = 0;
  for (int64_t j = 0; j < D; ++j) sum += row[j] * lane_row[j];
  return sum;
}

// The columns of a head that a lane has: lane, lane + 32, ...
template <int parts>
struct Columns {
  float sum[parts] = {};
  __device__ void scale(float by) {
    for (int i = 0; i < parts; ++i) sum[i] *= by;
  }
  __device__ void add(float weight, const float* row, int64_t D) {
    for (int i = 0; i < parts; ++i)
      if (const int64_t j = lane_index() + i * warp; j < D) sum[i] += weight * row[j];
  }
  __device__ void store_to(const View& v, int64_t row, int64_t column, int64_t D) const {
    for (int i = 0; i < parts; ++i)
      if (const int64_t j = lane_index() + i * warp; j < D) store(v, row, column + j, sum[i]);
  }
};

// Group g's rows number start(g) and up. Its tiles are start(g) / tile + g and up: as many numbers as it
// needs, or one more. A tile before the first group's rows or behind its group's has nothing to do.
struct Place {
  int64_t group, first;  // first: of the group's rows
};
template <class F>
__device__ Place place_of(int64_t number, int64_t groups, F&& start) {
  int64_t low = 0, high = groups;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (start(middle) / tile + middle <= number ? low : high) = middle;
  }
  return {low, (number - start(low) / tile - low) * tile};
}
// A block's query rows, of one group, one a warp.
struct Queries {
  Group g;
  bool none;           // the block has nothing to do
  int64_t i;           // the warp's query
  int64_t count, end;  // rows that it sees (0: there is no such query), and that the block's last one sees
  __device__ explicit Queries(const Attention& a) {
    const Place place = place_of(blockIdx.x, a.count, [&](int64_t at) { return a.groups[at].query; });
    g = a.groups[place.group], none = place.first < 0 || place.first >= g.queries;
    i = place.first + threadIdx.x / warp, count = i < g.queries ? seen_by(g, i) : 0;
    end = seen_by(g, least(place.first + tile, g.queries) - 1);
  }
};
int64_t tiles_for(int64_t rows, int64_t groups) { return rows / tile + groups; }

// Shared memory: chunks of keys and values (or of queries and gradients), the warps' own rows, a chunk's
// weights for each warp.
struct Shared {
  float *a, *b, *own, *own2, *weights, *weights2;
  __device__ Shared(float* at, int64_t D) {
    const int64_t rows = chunk * (D + 1);
    a = at, b = a + rows, own = b + rows, own2 = own + tile * D, weights = own2 + tile * D;
    weights2 = weights + tile * chunk;
    const int w = threadIdx.x / warp;
    own += w * D, own2 += w * D, weights += w * chunk, weights2 += w * chunk;
  }
  static size_t bytes(int64_t D) { return sizeof(float) * (2 * chunk * (D + 1) + 2 * tile * (D + chunk)); }
};

// Keys and values first .. first + count of a group, by all warps.
__device__ void stage_keys_values(const Shared& s, const Attention& a, const Group& g, int64_t column,
                                  int64_t first, int64_t count) {
  const int64_t D = a.heads.size;
  __syncthreads();  // the chunk before is done
  for (int64_t j = threadIdx.x / warp; j < count; j += tile) {
    stage(s.a + j * (D + 1), seen_row(a, g, first + j, column), D);
    stage(s.b + j * (D + 1), seen_row(a, g, first + j, column + a.kv.cols / 2), D);
  }
  __syncthreads();
}

// Softmax as it goes: the largest score so far, and the sum of exp(score - largest).
struct Softmax {
  float top = -INFINITY, sum = 0;
  // Takes in a chunk of scores, one a lane (-infinity: none); returns by what the sums so far shrink.
  __device__ float take(float score, float& weight) {
    const float was = top;
    top = fmaxf(top, warp_max(score));
    weight = score == -INFINITY ? 0.0f : expf(score - top);
    const float shrink = was == -INFINITY ? 0.0f : expf(was - top);
    sum = sum * shrink + warp_sum(weight);
    return shrink;
  }
};

template <int parts>
__global__ void __launch_bounds__(tile* warp, 2) attention_kernel(Attention a, View out) {
  DYNAMIC_SHARED(float, memory);
  const int64_t D = a.heads.size, head = blockIdx.y, share = a.heads.heads / a.heads.kv_heads;
  const auto [g, none, i, count, end] = Queries(a);
  if (none) return;
  const Shared s(memory, D);
  if (count) stage(s.own, row_of(a.q, g.query + i, head * D), D);
  Softmax softmax;
  Columns<parts> sum;
  for (int64_t first = 0; first < end; first += chunk) {
    stage_keys_values(s, a, g, head / share * D, first, least(chunk, end - first));
    if (first >= count) continue;  // the whole warp
    const int lane = lane_index();
    const float score = first + lane < count ? dot(s.own, s.a + lane * (D + 1), D) * a.scale : -INFINITY;
    float weight;
    sum.scale(softmax.take(score, weight));
    s.weights[lane] = weight;
    __syncwarp();
    for (int64_t j = 0; j < least(chunk, count - first); ++j) sum.add(s.weights[j], s.b + j * (D + 1), D);
    __syncwarp();
  }
  if (!count) return;
  sum.scale(1.0f / softmax.sum);
  sum.store_to(out, g.query + i, head * D, D);
}

// dq = sum_j ds_j k_j with ds_j = p_j (dp_j - sum_i p_i dp_i) / sqrt(D). sums [Q,H,2]: of each query and head
// the logarithm of the sum of exp(score), and sum_i p_i dp_i.
template <int parts>
__global__ void __launch_bounds__(tile* warp, 2)
    attention_backward_queries_kernel(Attention a, View dout, View dq, float* sums) {
  DYNAMIC_SHARED(float, memory);
  const int64_t D = a.heads.size, head = blockIdx.y, share = a.heads.heads / a.heads.kv_heads;
  const auto [g, none, i, count, end] = Queries(a);
  if (none) return;
  const Shared s(memory, D);
  const int lane = lane_index();
  if (count) {
    stage(s.own, row_of(a.q, g.query + i, head * D), D);
    stage(s.own2, row_of(dout, g.query + i, head * D), D);
  }
  Softmax softmax;
  float mean = 0, log_sum = 0;
  Columns<parts> sum;
  for (int round = 0; round < 2; ++round) {  // first the sums, then what needs them
    for (int64_t first = 0; first < end; first += chunk) {
      stage_keys_values(s, a, g, head / share * D, first, least(chunk, end - first));
      if (first >= count) continue;
      const bool sees = first + lane < count;
      const float score = sees ? dot(s.own, s.a + lane * (D + 1), D) * a.scale : -INFINITY;
      const float dp = sees ? dot(s.own2, s.b + lane * (D + 1), D) : 0.0f;
      if (round == 0) {
        float weight;
        const float shrink = softmax.take(score, weight);
        mean = mean * shrink + warp_sum(weight * dp);
        continue;
      }
      s.weights[lane] = sees ? expf(score - log_sum) * (dp - mean) * a.scale : 0.0f;
      __syncwarp();
      for (int64_t j = 0; j < least(chunk, count - first); ++j) sum.add(s.weights[j], s.a + j * (D + 1), D);
      __syncwarp();
    }
    if (round == 0 && count) {
      mean /= softmax.sum, log_sum = softmax.top + logf(softmax.sum);
      float* to = sums + ((g.query + i) * a.heads.heads + head) * 2;
      if (lane == 0) to[0] = log_sum, to[1] = mean;
    }
  }
  if (count) sum.store_to(dq, g.query + i, head * D, D);
}

// dk_j = sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i: the kv head's heads one after another, queries ascending.
// Keys of the context, `context` rows, when they are asked for: into contributions [groups,context,2*G*D].
template <int parts>
__global__ void __launch_bounds__(tile* warp, 2)
    attention_backward_keys_kernel(Attention a, View dout, const float* sums, View dkv, int64_t context,
                                   View contributions) {
  DYNAMIC_SHARED(float, memory);
  const int64_t D = a.heads.size, share = a.heads.heads / a.heads.kv_heads, column = blockIdx.y * D;
  const Place place = place_of(blockIdx.x, a.count, [&](int64_t g) { return a.groups[g].row + g * context; });
  const Group g = a.groups[place.group];
  if (place.first < 0 || place.first >= context + g.rows) return;
  const Shared s(memory, D);
  const int lane = lane_index();
  const int64_t j = place.first + threadIdx.x / warp;  // of [context, if asked for][own rows]
  const int64_t seen = j + g.context.rows - context;   // of [context][own rows]
  const bool real = j < context + g.rows;
  const auto first_query = [&](int64_t row) {  // that sees this row
    const int64_t i = row - (g.context.rows + g.rows - g.queries);
    return i > 0 ? i : 0;
  };
  const int64_t begin = first_query(place.first + g.context.rows - context) / chunk * chunk;
  const int64_t own_begin = real ? first_query(seen) : g.queries;
  if (real) {
    stage(s.own, seen_row(a, g, seen, column), D);
    stage(s.own2, seen_row(a, g, seen, column + a.kv.cols / 2), D);
  }
  Columns<parts> dk, dv;
  for (int64_t head = blockIdx.y * share; head < (blockIdx.y + 1) * share; ++head)
    for (int64_t first = begin; first < g.queries; first += chunk) {
      const int64_t count = least(chunk, g.queries - first);
      __syncthreads();
      for (int64_t i = threadIdx.x / warp; i < count; i += tile) {
        stage(s.a + i * (D + 1), row_of(a.q, g.query + first + i, head * D), D);
        stage(s.b + i * (D + 1), row_of(dout, g.query + first + i, head * D), D);
      }
      __syncthreads();
      if (first + count <= own_begin) continue;
      const int64_t i = first + lane;
      float p = 0, ds = 0;
      if (i >= own_begin && lane < count) {
        const float* of = sums + ((g.query + i) * a.heads.heads + head) * 2;
        p = expf(dot(s.own, s.a + lane * (D + 1), D) * a.scale - of[0]);
        ds = p * (dot(s.own2, s.b + lane * (D + 1), D) - of[1]) * a.scale;
      }
      s.weights[lane] = ds, s.weights2[lane] = p;
      __syncwarp();
      for (int64_t n = own_begin > first ? own_begin - first : 0; n < count; ++n) {
        dk.add(s.weights[n], s.a + n * (D + 1), D);
        dv.add(s.weights2[n], s.b + n * (D + 1), D);
      }
      __syncwarp();
    }
  if (!real) return;
  View to = dkv;
  int64_t row = g.row + j - context;
  if (j < context) to = contributions, row = place.group * context + j;
  dk.store_to(to, row, column, D);
  dv.store_to(to, row, column + a.kv.cols / 2, D);
}

// dcontext += the groups' contributions, group by group in order.
struct AddContributions {
  View contributions, dcontext;
  int64_t groups;
  __device__ void operator()(int64_t i, int64_t j) const {
    float sum = load(dcontext, i, j);
    for (int64_t g = 0; g < groups; ++g) sum += load(contributions, g * dcontext.rows + i, j);
    store(dcontext, i, j, sum);
  }
};

Attention make(Heads heads, int64_t layer, const Group* groups, int64_t n, View q, View kv) {
  return {heads, layer, groups, n, q, kv, 1.0f / std::sqrt(static_cast<float>(heads.size))};
}

// The kernel whose lanes have as many columns as this head needs.
template <class Kernel>
Kernel sized(int64_t D, Kernel to64, Kernel to128, Kernel to256) {
  if (D > 256)
    fail(Exit::machine,
         "the model has heads of %ld numbers, and the GPU's attention takes at most 256; give "
         "--device cpu",
         D);
  return D <= 64 ? to64 : D <= 128 ? to128 : to256;
}

}  // namespace

void attention(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n, View q, View kv,
               View out) {
  const int64_t D = heads.size;
  launch(sized(D, attention_kernel<2>, attention_kernel<4>, attention_kernel<8>),
         Grid{tiles_for(q.rows, n), heads.heads}, tile * warp, Shared::bytes(D), c.device,
         make(heads, layer, groups, n, q, kv), out);
}

void attention_backward(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n,
                        View dout, View q, View kv, View dq, View dkv, View dcontext) {
  const int64_t D = heads.size, context = dcontext.data ? dcontext.rows : 0;
  const Attention a = make(heads, layer, groups, n, q, kv);
  Scratch scope(*c.arena);
  float* sums = c.arena->array<float>(q.rows * heads.heads * 2, "scratch/attention sums");
  const View contributions{c.arena->array<float>(n * context * kv.cols, "scratch/context gradients"),
                           Type::f32, n * context, kv.cols, kv.cols};
  const size_t shared = Shared::bytes(D);
  launch(sized(D, attention_backward_queries_kernel<2>, attention_backward_queries_kernel<4>,
               attention_backward_queries_kernel<8>),
         Grid{tiles_for(q.rows, n), heads.heads}, tile * warp, shared, c.device, a, dout, dq, sums);
  launch(sized(D, attention_backward_keys_kernel<2>, attention_backward_keys_kernel<4>,
               attention_backward_keys_kernel<8>),
         Grid{tiles_for(kv.rows + n * context, n), heads.kv_heads}, tile * warp, shared, c.device, a, dout,
         sums, dkv, context, contributions);
  if (context) each_element(c, context, kv.cols, AddContributions{contributions, dcontext, n});
}

}  // namespace quest::cuda
