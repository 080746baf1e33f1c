// Attention on the CPU: every score of a query stands in one fp32 row, no online rescaling. One work item is
// one group; its keys and values are widened to fp32 once.
#include "kernels/cpu_attention.h"

#include <cstring>

#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/cpu_math.h"

namespace quest {

namespace {

struct Sizes {
  int64_t D, share, keys, width, seen;  // head size, heads per kv head, G*D, 2*G*D, rows of the longest group
  Sizes(Heads h, const Group* groups, int64_t n)
      : D(h.size), share(h.heads / h.kv_heads), keys(h.kv_heads * h.size), width(2 * keys), seen(0) {
    for (int64_t g = 0; g < n; ++g) {
      const int64_t rows = groups[g].context.rows + groups[g].rows;
      seen = rows > seen ? rows : seen;
    }
  }
};

template <class A>
void widen(const A* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

// [context][own] rows of one group as fp32 [seen, 2*G*D].
template <class A>
void widen_keys_values(const Group& g, int64_t layer, const View& kv, float* to) {
  const auto* context = reinterpret_cast<const A*>(g.context.data + layer * g.context.layer_bytes);
  if (g.context.rows) widen(context, g.context.rows * kv.cols, to);
  for (int64_t i = 0; i < g.rows; ++i)
    widen(row_as<A>(kv, g.row + i), kv.cols, to + (g.context.rows + i) * kv.cols);
}

// p_j = softmax_j(q . k_j * scale), j in [0, count); keys are `stride` apart.
void attention_weights(const float* q, const float* k, int64_t D, int64_t stride, int64_t count, float scale,
                       float* p) {
  float top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    p[j] = dot(q, k + j * stride, D) * scale;
    top = p[j] > top ? p[j] : top;
  }
  for (int64_t j = 0; j < count; ++j) p[j] = exp_f32(p[j] - top);
  for (int64_t j = 0; j < count; ++j) sum += p[j];
  for (int64_t j = 0; j < count; ++j) p[j] /= sum;
}

}  // namespace

template <class A>
void cpu_attention(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n, View q,
                   View kv, View out) {
  const Sizes s(heads, groups, n);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.D));
  const int64_t each = s.seen * s.width + s.seen + 2 * s.D;
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(each * c.threads->count());
  c.threads->each(n, [&](int64_t index, int thread) {
    const Group& g = groups[index];
    float *wide = scratch + each * thread, *p = wide + s.seen * s.width, *q_row = p + s.seen,
          *sum = q_row + s.D;
    widen_keys_values<A>(g, layer, kv, wide);
    for (int64_t i = 0; i < g.queries; ++i) {
      const int64_t count = g.context.rows + g.rows - g.queries + i + 1;
      for (int64_t h = 0; h < heads.heads; ++h) {
        const float *k = wide + h / s.share * s.D, *v = k + s.keys;
        widen(row_as<A>(q, g.query + i) + h * s.D, s.D, q_row);
        attention_weights(q_row, k, s.D, s.width, count, scale, p);
        memset(sum, 0, static_cast<size_t>(s.D) * sizeof(float));
        for (int64_t j = 0; j < count; ++j) axpy(p[j], v + j * s.width, sum, s.D);
        A* to = row_as<A>(out, g.query + i) + h * s.D;
        for (int64_t e = 0; e < s.D; ++e) store(to[e], sum[e]);
      }
    }
  });
}

template <class A>
void cpu_attention_backward(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n,
                            View dout, View q, View kv, View dq, View dkv, View dcontext) {
  const Sizes s(heads, groups, n);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.D));
  const int64_t each = 2 * s.seen * s.width + 2 * s.seen + s.D;
  const int64_t context_size = dcontext.data ? dcontext.rows * s.width : 0;
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(each * c.threads->count());
  float* contributions = c.arena->array<float>(n * context_size);  // of every group to dcontext
  c.threads->each(n, [&](int64_t index, int thread) {
    const Group& g = groups[index];
    float *wide = scratch + each * thread, *dwide = wide + s.seen * s.width, *p = dwide + s.seen * s.width;
    float *dp = p + s.seen, *q_row = dp + s.seen;
    widen_keys_values<A>(g, layer, kv, wide);
    memset(dwide, 0, static_cast<size_t>((g.context.rows + g.rows) * s.width) * sizeof(float));
    for (int64_t i = 0; i < g.queries; ++i) {
      const int64_t count = g.context.rows + g.rows - g.queries + i + 1;
      for (int64_t h = 0; h < heads.heads; ++h) {
        const int64_t at = h / s.share * s.D;
        const float *k = wide + at, *v = k + s.keys, *d = row_as<float>(dout, g.query + i) + h * s.D;
        float *dk = dwide + at, *dv = dk + s.keys, *dq_row = row_as<float>(dq, g.query + i) + h * s.D;
        widen(row_as<A>(q, g.query + i) + h * s.D, s.D, q_row);
        attention_weights(q_row, k, s.D, s.width, count, scale, p);
        for (int64_t j = 0; j < count; ++j) dp[j] = dot(d, v + j * s.width, s.D);
        float mean = 0;
        for (int64_t j = 0; j < count; ++j) mean += p[j] * dp[j];
        memset(dq_row, 0, static_cast<size_t>(s.D) * sizeof(float));
        for (int64_t j = 0; j < count; ++j) {
          const float ds = p[j] * (dp[j] - mean) * scale;
          axpy(ds, k + j * s.width, dq_row, s.D);
          axpy(ds, q_row, dk + j * s.width, s.D);
          axpy(p[j], d, dv + j * s.width, s.D);
        }
      }
    }
    if (context_size)
      memcpy(contributions + index * context_size, dwide, sizeof(float) * static_cast<size_t>(context_size));
    for (int64_t i = 0; i < g.rows; ++i)
      memcpy(row_as<float>(dkv, g.row + i), dwide + (g.context.rows + i) * s.width,
             sizeof(float) * static_cast<size_t>(s.width));
  });
  c.threads->each(context_size ? dcontext.rows : 0, [&](int64_t row, int) {
    for (int64_t g = 0; g < n; ++g)
      axpy(1.0f, contributions + g * context_size + row * s.width, row_as<float>(dcontext, row), s.width);
  });
}

template void cpu_attention<float>(const Context&, Heads, int64_t, const Group*, int64_t, View, View, View);
template void cpu_attention<uint16_t>(const Context&, Heads, int64_t, const Group*, int64_t, View, View,
                                      View);
template void cpu_attention_backward<float>(const Context&, Heads, int64_t, const Group*, int64_t, View, View,
                                            View, View, View, View);
template void cpu_attention_backward<uint16_t>(const Context&, Heads, int64_t, const Group*, int64_t, View,
                                               View, View, View, View, View);

}  // namespace quest
