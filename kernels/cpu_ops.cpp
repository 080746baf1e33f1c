// The op table of the CPU backend: everything but the matmuls (matmul.cpp) and attention (cpu_attention.cpp).
// Rows are independent work items; sums over rows run in the order that ops.h states.
#include <cmath>
#include <cstring>

#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/cpu_ops.h"
#include "kernels/tile_math.h"

namespace quest {

namespace {

size_t bytes(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

// ---- 1  rows

void embed(const Context& c, View table, const int32_t* ids, View x) {
  c.threads->each(x.rows, [&](int64_t i, int) { load_row(c, table, ids[i], f32(x, i)); });
}

void repeat(const Context& c, View prompt, View x) {
  c.threads->each(x.rows,
                  [&](int64_t i, int) { memcpy(f32(x, i), f32(prompt, i % prompt.rows), bytes(x.cols)); });
}

void repeat_backward(const Context& c, View dx, View dprompt) {
  c.threads->each(dprompt.rows, [&](int64_t k, int) {
    for (int64_t i = k; i < dx.rows; i += dprompt.rows) axpy(1.0f, f32(dx, i), f32(dprompt, k), dx.cols);
  });
}

void gather(const Context& c, View x, const int32_t* rows, View y) {
  c.threads->each(y.rows, [&](int64_t i, int) { memcpy(f32(y, i), f32(x, rows[i]), bytes(y.cols)); });
}

void gather_backward(const Context&, View dy, const int32_t* rows, View dx) {
  for (int64_t i = 0; i < dy.rows; ++i) axpy(1.0f, f32(dy, i), f32(dx, rows[i]), dy.cols);
}

void add(const Context& c, View x, View y) {
  c.threads->each(y.rows, [&](int64_t i, int) { axpy(1.0f, f32(x, i), f32(y, i), y.cols); });
}

void zero(const Context& c, View y) {
  c.threads->each(y.rows, [&](int64_t i, int) { memset(f32(y, i), 0, bytes(y.cols)); });
}

// f(row, scratch of `floats` floats of the thread) for every row.
template <class F>
void each_row(const Context& c, int64_t rows, int64_t floats, F&& f) {
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(floats * c.threads->count());
  c.threads->each(rows, [&](int64_t i, int thread) { f(i, scratch + floats * thread); });
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

void turn(const Context& c, View x, const int32_t* positions, View turns, View y, float direction) {
  each_row(c, x.rows, x.cols, [&](int64_t i, float* yi) {
    kernels(c).turn(f32(x, i), f32(turns, positions[i]), turns.cols, direction, x.cols, yi);
    store_row(c, yi, y, i);
  });
}

void rope(const Context& c, View x, const int32_t* positions, View turns, View y) {
  turn(c, x, positions, turns, y, 1.0f);
}

void rope_backward(const Context& c, View dy, const int32_t* positions, View turns, View dx) {
  turn(c, dy, positions, turns, dx, -1.0f);
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

// ---- 7  pooling and L2 normalisation

void pool(const Context& c, const Group* groups, int64_t n, View h, View e) {
  c.threads->each(n, [&](int64_t g, int) {
    float* sum = f32(e, g);
    memset(sum, 0, bytes(e.cols));
    for (int64_t i = 0; i < groups[g].queries; ++i) axpy(1.0f, f32(h, groups[g].query + i), sum, e.cols);
    for (int64_t j = 0; j < e.cols; ++j) sum[j] /= static_cast<float>(groups[g].queries);
  });
}

void pool_backward(const Context& c, const Group* groups, int64_t n, View de, View dh) {
  c.threads->each(n, [&](int64_t g, int) {
    for (int64_t i = 0; i < groups[g].queries; ++i) {
      float* to = f32(dh, groups[g].query + i);
      for (int64_t j = 0; j < de.cols; ++j) to[j] = f32(de, g)[j] / static_cast<float>(groups[g].queries);
    }
  });
}

// Writes e - mean to u (the place of the result) and returns its length.
float centre(const View& e, const View& mean, int64_t i, float* u) {
  for (int64_t j = 0; j < e.cols; ++j) u[j] = mean.data ? f32(e, i)[j] - f32(mean, 0)[j] : f32(e, i)[j];
  return std::sqrt(dot(u, u, e.cols));
}

void normalize(const Context& c, View e, View mean, View u) {
  c.threads->each(e.rows, [&](int64_t i, int) {
    float* to = f32(u, i);
    const float length = centre(e, mean, i, to);
    for (int64_t j = 0; j < e.cols; ++j) to[j] /= length;
  });
}

void normalize_backward(const Context& c, View du, View e, View mean, View de) {
  c.threads->each(e.rows, [&](int64_t i, int) {
    float* to = f32(de, i);  // holds c = e - mean until it is overwritten by its own gradient
    const float length = centre(e, mean, i, to), along = dot(to, f32(du, i), e.cols) / (length * length);
    for (int64_t j = 0; j < e.cols; ++j) to[j] = (f32(du, i)[j] - to[j] * along) / length;
  });
}

// ---- 8  contrastive loss

void similarity(const Context& c, View q, View l, double temperature, View s) {
  c.threads->each(s.rows, [&](int64_t i, int) {
    for (int64_t j = 0; j < s.cols; ++j)
      f32(s, i)[j] = dot(f32(q, i), f32(l, j), q.cols) / static_cast<float>(temperature);
  });
}

void similarity_backward(const Context& c, View ds, View q, View l, double temperature, View dq, View dl) {
  const float inverse = 1.0f / static_cast<float>(temperature);
  c.threads->each(dq.rows + dl.rows, [&](int64_t item, int) {
    const bool query = item < dq.rows;
    const int64_t i = query ? item : item - dq.rows, n = query ? dl.rows : dq.rows;
    float* to = f32(query ? dq : dl, i);
    memset(to, 0, bytes(q.cols));
    for (int64_t j = 0; j < n; ++j) {
      const float d = query ? f32(ds, i)[j] : f32(ds, j)[i];
      axpy(d * inverse, f32(query ? l : q, j), to, q.cols);
    }
  });
}

// One softmax of the loss: `count` entries of s, `step` apart; hidden ones are left out of the denominator.
double log_sum_exp(const float* s, int64_t count, int64_t step, const uint8_t* hidden) {
  double top = -INFINITY, sum = 0;
  for (int64_t j = 0; j < count; ++j)
    if (!hidden[j] && !(s[j * step] <= top)) top = s[j * step];  // a NaN gets in, and stays
  for (int64_t j = 0; j < count; ++j)
    if (!hidden[j]) sum += std::exp(s[j * step] - top);
  return std::log(sum) + top;
}

void contrastive(const Context&, View s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                 const uint8_t* hidden_queries, View loss) {
  double rows = 0, columns = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto [q, l] = pairs[i];
    const double target = f32(s, q)[l];
    rows += log_sum_exp(f32(s, q), s.cols, 1, hidden + i * s.cols) - target;
    if (hidden_queries)
      columns += log_sum_exp(f32(s, 0) + l, s.rows, s.stride, hidden_queries + i * s.rows) - target;
  }
  const double mean = (hidden_queries ? 0.5 * (rows + columns) : rows) / static_cast<double>(n);
  *f32(loss, 0) = static_cast<float>(mean);
}

void softmax_gradient(const float* s, int64_t count, int64_t step, const uint8_t* hidden, int64_t target,
                      double weight, float* ds, int64_t ds_step) {
  const double log_sum = log_sum_exp(s, count, step, hidden);
  for (int64_t j = 0; j < count; ++j)
    if (!hidden[j]) {
      const double p = std::exp(s[j * step] - log_sum) - (j == target ? 1.0 : 0.0);
      ds[j * ds_step] += static_cast<float>(weight * p);
    }
}

void contrastive_backward(const Context& c, View s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                          const uint8_t* hidden_queries, View ds) {
  zero(c, ds);
  const double weight = (hidden_queries ? 0.5 : 1.0) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    const auto [q, l] = pairs[i];
    softmax_gradient(f32(s, q), s.cols, 1, hidden + i * s.cols, l, weight, f32(ds, q), 1);
    if (hidden_queries)
      softmax_gradient(f32(s, 0) + l, s.rows, s.stride, hidden_queries + i * s.rows, q, weight,
                       f32(ds, 0) + l, ds.stride);
  }
}

// ---- 9  optimiser

void norm(const Context&, View g, View out) {
  double sum = 0;
  for (int64_t i = 0; i < g.rows; ++i)
    for (int64_t j = 0; j < g.cols; ++j) sum += static_cast<double>(f32(g, i)[j]) * f32(g, i)[j];
  *f32(out, 0) = static_cast<float>(std::sqrt(sum));
}

void adamw(const Context&, View p, View g, View m, View v, View length, double clip, AdamW o) {
  const double shrink = clip > 0 && *f32(length, 0) > clip ? clip / *f32(length, 0) : 1.0;
  const double correct1 = 1 - std::pow(o.beta1, static_cast<double>(o.step));
  const double correct2 = 1 - std::pow(o.beta2, static_cast<double>(o.step));
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t j = 0; j < p.cols; ++j) {
      const double gradient = f32(g, i)[j] * shrink;
      const double mean = o.beta1 * f32(m, i)[j] + (1 - o.beta1) * gradient;
      const double square = o.beta2 * f32(v, i)[j] + (1 - o.beta2) * gradient * gradient;
      const double step = mean / correct1 / (std::sqrt(square / correct2) + o.epsilon);
      f32(m, i)[j] = static_cast<float>(mean);
      f32(v, i)[j] = static_cast<float>(square);
      f32(p, i)[j] = static_cast<float>(f32(p, i)[j] - o.rate * (step + o.decay * f32(p, i)[j]));
    }
}

}  // namespace

Ops cpu_ops(const char* name, Type activation) {
  const MatmulPath* path = find_path(name);
  Ops o{};
  o.path = path->name;
  o.matmul_path = path;
  o.activation = activation;
  o.accumulator = Type::f32;
  o.embed = embed, o.repeat = repeat, o.repeat_backward = repeat_backward;
  o.gather = gather, o.gather_backward = gather_backward, o.add = add, o.zero = zero;
  o.rmsnorm = rmsnorm, o.rmsnorm_backward = rmsnorm_backward;
  o.matmul = matmul, o.matmul_backward = matmul_backward;
  o.rope = rope, o.rope_backward = rope_backward;
  o.attention = cpu_attention, o.attention_backward = cpu_attention_backward;
  o.swiglu = swiglu, o.swiglu_backward = swiglu_backward;
  o.pool = pool, o.pool_backward = pool_backward;
  o.normalize = normalize, o.normalize_backward = normalize_backward;
  o.similarity = similarity, o.similarity_backward = similarity_backward;
  o.contrastive = contrastive, o.contrastive_backward = contrastive_backward;
  o.norm = norm, o.adamw = adamw;
  return o;
}

}  // namespace quest
