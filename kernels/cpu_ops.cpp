// The op table of the CPU backend: the reference over float, and in place of what costs time the row kernels
// of the path, matmul.cpp and cpu_attention.cpp. Rows are independent work items.
#include "kernels/cpu_ops.h"
#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/ref.h"
#include "kernels/tile_math.h"

namespace quest {

namespace {

// f(row, scratch of `floats` floats of the thread) for every row.
template <class F>
void each_row(const Context& c, int64_t rows, int64_t floats, F&& f) {
  Scratch scope(*c.arena);
  float* scratch = c.arena->array<float>(floats * c.threads->count());
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

void turn(const Context& c, View x, const int32_t* positions, Turns turns, View y, float direction) {
  each_row(c, x.rows, x.cols, [&](int64_t i, float* yi) {
    kernels(c).turn(f32(x, i), f32(turns.table, positions[i]), turns.halves, turns.table.cols, direction,
                    x.cols, yi);
    store_row(c, yi, y, i);
  });
}

void rope(const Context& c, View x, const int32_t* positions, Turns turns, View y) {
  turn(c, x, positions, turns, y, 1.0f);
}

void rope_backward(const Context& c, View dy, const int32_t* positions, Turns turns, View dx) {
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

}  // namespace

Ops cpu_ops(const char* name, Type activation) {
  Ops o = ref::ref_ops<float>();
  o.kernel_path = find_path(name);
  o.path = o.kernel_path->name;
  o.activation = activation;
  o.embed = embed, o.add = add;
  o.rmsnorm = rmsnorm, o.rmsnorm_backward = rmsnorm_backward;
  o.matmul = matmul, o.matmul_backward = matmul_backward;
  o.rope = rope, o.rope_backward = rope_backward;
  o.attention = cpu_attention, o.attention_backward = cpu_attention_backward;
  o.swiglu = swiglu, o.swiglu_backward = swiglu_backward;
  return o;
}

}  // namespace quest
