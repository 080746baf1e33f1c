// The op table of the CPU backend: the reference over float, and in place of what costs time the row kernels
// of the path and matmul.cpp. Rows (of attention: groups) are independent work items.
#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/matmul.h"
#include "kernels/ref.h"

namespace quest {

namespace {

float* f32(const View& v, int64_t i) { return static_cast<float*>(v.data) + i * v.stride; }

const RowKernels& kernels(const Context& c) { return *c.ops->kernel_path->row; }

// Row i of any stored type as floats.
void load_row(const Context& c, const View& v, int64_t i, float* to) {
  kernels(c).decode[static_cast<int>(v.type)](v.data, i * v.stride, v.cols, to);
}
// Floats as row i of v (f32 or bf16), rounded once.
void store_row(const Context& c, const float* x, const View& v, int64_t i) {
  (v.type == Type::f32 ? kernels(c).store_f32 : kernels(c).store_bf16)(x, v.cols, false, row_pointer(v, i));
}

// f(row, scratch of `floats` floats of the thread) for every row, or group.
void each_row(const Context& c, int64_t rows, int64_t floats, auto&& f) {
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(floats * c.threads->count(), "scratch/rows");
  c.threads->each(rows, [&](int64_t i, int thread) { f(i, scratch + floats * thread); });
}

// ---- 1  rows

void embed(const Context& c, View table, const int32_t* ids, View x) {
  c.threads->each(x.rows, [&](int64_t i, int) { load_row(c, table, ids[i], f32(x, i)); });
}

void add(const Context& c, View x, View y) {
  c.threads->each(y.rows, [&](int64_t i, int) { axpy(1.0f, f32(x, i), f32(y, i), y.cols); });
}

// ---- 2  RMSNorm

void rmsnorm(const Context& c, View x, View w, double eps, View y) {
  each_row(c, x.rows, x.cols, [&](int64_t i, float* yi) {
    kernels(c).rmsnorm(f32(x, i), f32(w, 0), static_cast<float>(eps), x.cols, yi);
    store_row(c, yi, y, i);
  });
}

void rmsnorm_backward(const Context& c, View dy, View x, View w, double eps, View dx) {
  c.threads->each(x.rows, [&](int64_t i, int) {
    kernels(c).rmsnorm_backward(f32(dy, i), f32(x, i), f32(w, 0), static_cast<float>(eps), x.cols,
                                f32(dx, i));
  });
}

// ---- 4  rotary positions

template <int direction>
void turn(const Context& c, View x, const int32_t* positions, Turns turns, View y) {
  each_row(c, x.rows, x.cols, [&](int64_t i, float* yi) {
    kernels(c).turn(f32(x, i), f32(turns.table, positions[i]), turns.halves, turns.table.cols, direction,
                    x.cols, yi);
    store_row(c, yi, y, i);
  });
}

// ---- 5  attention; keys and values of a group are widened to fp32 once

// Rows that the longest group sees.
int64_t longest(const Group* groups, int64_t n) {
  int64_t seen = 0;
  for (int64_t g = 0; g < n; ++g) seen = std::max(seen, groups[g].context.rows + groups[g].rows);
  return seen;
}

// [context][own] rows of one group as fp32 [rows, 2*G*D].
void widen_keys_values(const Context& c, const Group& g, int64_t layer, const View& kv, float* to) {
  const auto decode = kernels(c).decode[static_cast<int>(kv.type)];
  if (g.context.rows) decode(g.context.data + layer * g.context.layer_bytes, 0, g.context.rows * kv.cols, to);
  for (int64_t i = 0; i < g.rows; ++i) load_row(c, kv, g.row + i, to + (g.context.rows + i) * kv.cols);
}

void attention(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n, View q, View kv,
               View out) {
  const int64_t D = heads.size, share = heads.heads / heads.kv_heads, width = kv.cols;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  const int64_t seen = longest(groups, n);
  each_row(c, n, seen * width + seen + 2 * share * D, [&](int64_t index, float* wide) {
    const Group& g = groups[index];
    float *p = wide + seen * width, *qi = p + seen, *sum = qi + share * D;
    widen_keys_values(c, g, layer, kv, wide);
    for (int64_t k = 0; k < width / 2; k += D)  // a head's keys and values stay in the cache
      for (int64_t i = 0; i < g.queries; ++i) {
        load_row(c, columns_of(q, k * share, share * D), g.query + i, qi);
        const int64_t count = g.context.rows + g.rows - g.queries + i + 1;
        for (int64_t h = 0; h < share * D; h += D)
          kernels(c).attention(qi + h, wide + k, wide + k + width / 2, D, width, count, scale, p, sum + h);
        store_row(c, sum, columns_of(out, k * share, share * D), g.query + i);
      }
  });
}

void attention_backward(const Context& c, Heads heads, int64_t layer, const Group* groups, int64_t n,
                        View dout, View q, View kv, View dq, View dkv, View dcontext) {
  const int64_t D = heads.size, share = heads.heads / heads.kv_heads, width = kv.cols;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  const int64_t seen = longest(groups, n), context_size = dcontext.data ? dcontext.rows * width : 0;
  Scratch scope(*c.arena);
  // What each group adds to dcontext, so that the sum's order is that of the groups for any number of
  // threads.
  float* contributions = c.arena->array<float>(n * context_size, "scratch/context gradients");
  each_row(c, n, 2 * seen * width + 2 * seen + share * D, [&](int64_t index, float* wide) {
    const Group& g = groups[index];
    float *dwide = wide + seen * width, *p = dwide + seen * width, *dp = p + seen, *qi = dp + seen;
    widen_keys_values(c, g, layer, kv, wide);
    const int64_t first = context_size ? 0 : g.context.rows;  // what nobody asks for is left out
    memset(dwide + first * width, 0, sizeof(float) * (g.context.rows + g.rows - first) * width);
    for (int64_t k = 0, v = width / 2; k < width / 2; k += D, v += D)
      for (int64_t i = 0; i < g.queries; ++i) {
        load_row(c, columns_of(q, k * share, share * D), g.query + i, qi);
        const float* d = f32(dout, g.query + i) + k * share;
        float* dqi = f32(dq, g.query + i) + k * share;
        const int64_t count = g.context.rows + g.rows - g.queries + i + 1;
        for (int64_t h = 0; h < share * D; h += D)
          kernels(c).attention_backward(d + h, qi + h, wide + k, wide + v, D, width, first, count, scale, p,
                                        dp, dqi + h, dwide + k, dwide + v);
      }
    if (context_size) memcpy(contributions + index * context_size, dwide, sizeof(float) * context_size);
    for (int64_t i = 0; i < g.rows; ++i)
      memcpy(row_pointer(dkv, g.row + i), dwide + (g.context.rows + i) * width, sizeof(float) * width);
  });
  c.threads->each(context_size ? dcontext.rows : 0, [&](int64_t r, int) {
    for (int64_t g = 0; g < n; ++g)
      axpy(1.0f, contributions + g * context_size + r * width, f32(dcontext, r), width);
  });
}

// ---- 6  SwiGLU

void swiglu(const Context& c, View gate, View up, View y) {
  each_row(c, y.rows, 2 * y.cols, [&](int64_t i, float* g) {
    float* u = g + y.cols;
    load_row(c, gate, i, g), load_row(c, up, i, u);
    kernels(c).swiglu(g, u, y.cols, g);
    store_row(c, g, y, i);
  });
}

void swiglu_backward(const Context& c, View dy, View gate, View up, View dgate, View dup) {
  each_row(c, dy.rows, 2 * dy.cols, [&](int64_t i, float* g) {
    float* u = g + dy.cols;
    load_row(c, gate, i, g), load_row(c, up, i, u);
    kernels(c).swiglu_backward(f32(dy, i), g, u, dy.cols, f32(dgate, i), f32(dup, i));
  });
}

}  // namespace

Ops cpu_ops(const char* name, Type activation) {
  Ops o = ref::ref_ops<float>();
  o.kernel_path = find_path(name);
  o.path = o.kernel_path->name;
  o.activation = activation;
  o.embed = embed, o.add = add;
  o.rmsnorm = rmsnorm, o.rmsnorm_backward = rmsnorm_backward;
  o.matmul = matmul, o.matmul_backward = matmul_backward;
  o.rope = turn<1>, o.rope_backward = turn<-1>;
  o.attention = attention, o.attention_backward = attention_backward;
  o.swiglu = swiglu, o.swiglu_backward = swiglu_backward;
  return o;
}

}  // namespace quest
