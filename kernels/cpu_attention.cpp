// Attention on the CPU. One work item is one group; its keys and values are widened to fp32 once.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/cpu_ops.h"
#include "kernels/tile_math.h"

namespace quest {

namespace {

struct Sizes {
  int64_t D, share, keys, width, seen;  // head size, heads per kv head, G*D, 2*G*D, rows of the longest group
  float scale;
  Sizes(Heads h, const Group* groups, int64_t n)
      : D(h.size),
        share(h.heads / h.kv_heads),
        keys(h.kv_heads * h.size),
        width(2 * keys),
        seen(0),
        scale(1.0f / std::sqrt(static_cast<float>(D))) {
    for (int64_t g = 0; g < n; ++g) seen = std::max(seen, groups[g].context.rows + groups[g].rows);
  }
};

// [context][own] rows of one group as fp32 [rows, 2*G*D].
void widen_keys_values(const Context& c, const Group& g, int64_t layer, const View& kv, float* to) {
  const auto decode = kernels(c).decode[static_cast<int>(kv.type)];
  if (g.context.rows) decode(g.context.data + layer * g.context.layer_bytes, 0, g.context.rows * kv.cols, to);
  for (int64_t i = 0; i < g.rows; ++i) load_row(c, kv, g.row + i, to + (g.context.rows + i) * kv.cols);
}

}  // namespace

void cpu_attention(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n, View q,
                   View kv, View out) {
  const Sizes s(heads, groups, n);
  const int64_t each = s.seen * s.width + s.seen + 2 * q.cols;
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(each * c.threads->count());
  c.threads->each(n, [&](int64_t index, int thread) {
    const Group& g = groups[index];
    float *wide = scratch + each * thread, *p = wide + s.seen * s.width, *qi = p + s.seen, *sum = qi + q.cols;
    widen_keys_values(c, g, layer, kv, wide);
    for (int64_t i = 0; i < g.queries; ++i) {
      load_row(c, q, g.query + i, qi);
      for (int64_t h = 0; h < heads.heads; ++h) {
        const float* k = wide + h / s.share * s.D;
        kernels(c).attention(qi + h * s.D, k, k + s.keys, s.D, s.width,
                             g.context.rows + g.rows - g.queries + i + 1, s.scale, p, sum + h * s.D);
      }
      store_row(c, sum, out, g.query + i);
    }
  });
}

void cpu_attention_backward(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n,
                            View dout, View q, View kv, View dq, View dkv, View dcontext) {
  const Sizes s(heads, groups, n);
  const int64_t each = 2 * s.seen * s.width + 2 * s.seen + q.cols;
  const int64_t context_size = dcontext.data ? dcontext.rows * s.width : 0;
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(each * c.threads->count());
  float* contributions = c.arena->array<float>(n * context_size);  // of every group to dcontext
  c.threads->each(n, [&](int64_t index, int thread) {
    const Group& g = groups[index];
    float *wide = scratch + each * thread, *dwide = wide + s.seen * s.width, *p = dwide + s.seen * s.width;
    float *dp = p + s.seen, *qi = dp + s.seen;
    widen_keys_values(c, g, layer, kv, wide);
    memset(dwide, 0, sizeof(float) * (g.context.rows + g.rows) * s.width);
    for (int64_t i = 0; i < g.queries; ++i) {
      load_row(c, q, g.query + i, qi);
      const float* d = f32(dout, g.query + i);
      float* dqi = f32(dq, g.query + i);
      for (int64_t h = 0; h < heads.heads; ++h) {
        const int64_t at = h / s.share * s.D, count = g.context.rows + g.rows - g.queries + i + 1;
        kernels(c).attention_backward(d + h * s.D, qi + h * s.D, wide + at, wide + at + s.keys, s.D, s.width,
                                      count, s.scale, p, dp, dqi + h * s.D, dwide + at, dwide + at + s.keys);
      }
    }
    if (context_size) memcpy(contributions + index * context_size, dwide, sizeof(float) * context_size);
    for (int64_t i = 0; i < g.rows; ++i)
      memcpy(row_pointer(dkv, g.row + i), dwide + (g.context.rows + i) * s.width, sizeof(float) * s.width);
  });
  c.threads->each(context_size ? dcontext.rows : 0, [&](int64_t r, int) {
    for (int64_t g = 0; g < n; ++g)
      axpy(1.0f, contributions + g * context_size + r * s.width, f32(dcontext, r), s.width);
  });
}

}  // namespace quest
