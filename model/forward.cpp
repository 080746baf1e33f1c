// The forward pass of LLaMA over packed rows (see pass.h), written once against the op table.
#include "model/pass.h"

namespace quest {

static View new_matrix(const Context& c, int64_t rows, int64_t cols, Type type, const char* name) {
  const size_t bytes = Arena::product(rows, row_bytes(type, cols));
  return {c.arena->allocate(bytes, {name, format_of(type).name, rows, cols}), type, rows, cols, cols};
}
View new_acc(const Context& c, int64_t rows, int64_t cols, const char* name) {
  return new_matrix(c, rows, cols, c.ops->accumulator, name);
}
View new_act(const Context& c, int64_t rows, int64_t cols, const char* name) {
  return new_matrix(c, rows, cols, c.ops->activation, name);
}

int64_t key_value_bytes(const Model& model, Type activation) {
  return row_bytes(activation, model.kv_width());
}

Pass begin_pass(const Model& m, const Context& c, Batch b, int64_t spacing, KeyValues store) {
  const Type act = c.ops->activation;
  const int64_t stretch = spacing < 1 ? 1 : spacing < m.layers ? spacing : m.layers;
  Pass p{m,
         c,
         b,
         stretch,
         new_acc(c, b.queries, m.width, "activations/output"),
         store,
         c.bookkeeping().array<Activations>(m.layers, "bookkeeping/layers")};
  for (int64_t l = 0; l < m.layers; ++l) {
    Activations& a = p.layer[l];
    const bool first = l < stretch;
    if (!first) a = p.layer[l - stretch];
    if (first || (spacing > 0 && l % stretch == 0))
      a.input = new_acc(c, b.rows, m.width, "activations/layer input");
    if (first) {
      const int64_t rows = l + 1 == m.layers ? b.queries : b.rows;
      a.q = new_act(c, rows, m.q_width(), "activations/q");
      a.middle = new_acc(c, rows, m.width, "activations/middle");
      a.gate = new_act(c, rows, m.mlp, "activations/gate");
      a.up = new_act(c, rows, m.mlp, "activations/up");
    }
    if (store.data)
      a.kv = {store.data + l * store.layer_bytes, act, b.rows, m.kv_width(), m.kv_width()};
    else if (first)
      a.kv = new_act(c, b.rows, m.kv_width(), "activations/keys and values");
  }
  Activations& last = p.layer[m.layers - 1];
  last.q.rows = last.middle.rows = last.gate.rows = last.up.rows = b.queries;
  return p;
}

void forward_layer(const Pass& p, int64_t l, View out) {
  const Model& m = p.model;
  const Context& c = p.context;
  const Ops& op = *c.ops;
  const Layer& w = m.layer[l];
  const Batch& b = p.batch;
  const Activations& a = p.layer[l];
  const bool last = l + 1 == m.layers;
  const int64_t R = b.rows, Q = last ? b.queries : R, kv = m.kv_width() / 2;
  Scratch scope(*c.arena);

  // Keys and values of all rows.
  View x = a.input;
  View h = new_act(c, R, m.width, "scratch/normed");
  View k = new_acc(c, R, kv, "scratch/keys");
  op.rmsnorm(c, x, w.attention_norm, m.eps, h);
  op.matmul(c, h, w.k, k, Into::set);
  op.rope(c, k, b.positions, m.turns, columns_of(a.kv, 0, kv));
  op.matmul(c, h, w.v, columns_of(a.kv, kv, kv), Into::set);
  if (Q == 0) return;

  // From here on only the query rows.
  if (Q < R) {
    x = new_acc(c, Q, m.width, "scratch/query rows");
    op.gather(c, a.input, b.query_rows, x);
    h = rows_of(h, 0, Q);
    op.rmsnorm(c, x, w.attention_norm, m.eps, h);
  }
  View q = new_acc(c, Q, m.q_width(), "scratch/q");
  View attended = new_act(c, Q, m.q_width(), "scratch/attended");
  op.matmul(c, h, w.q, q, Into::set);
  op.rope(c, q, last ? b.query_positions : b.positions, m.turns, a.q);
  op.attention(c, m.heads, l, last ? b.pooled : b.groups, b.count, a.q, a.kv, attended);
  op.matmul(c, attended, w.o, a.middle, Into::set);
  op.add(c, x, a.middle);

  op.rmsnorm(c, a.middle, w.mlp_norm, m.eps, h);
  op.matmul(c, h, w.gate, a.gate, Into::set);
  op.matmul(c, h, w.up, a.up, Into::set);
  if (!out.data) return;
  View product = new_act(c, Q, m.mlp, "scratch/product");
  op.swiglu(c, a.gate, a.up, product);
  op.matmul(c, product, w.down, out, Into::set);
  op.add(c, a.middle, out);
}

double layer_flops(const Model& m, int64_t rows, int64_t queries) {
  const double d = m.width, kv = m.kv_width(), q = m.q_width(), mlp = m.mlp;
  return 2 * d * (rows * kv + queries * (2 * q + 3 * mlp));
}

double pass_flops(const Model& m, int64_t rows, int64_t queries) {
  return (m.layers - 1) * layer_flops(m, rows, rows) + layer_flops(m, rows, queries);
}

void forward(const Pass& p, View h) {
  if (p.context.flops) *p.context.flops += pass_flops(p.model, p.batch.rows, p.batch.queries);
  for (int64_t l = 0; l < p.model.layers; ++l)
    forward_layer(p, l, l + 1 < p.model.layers ? p.layer[l + 1].input : p.output);
  if (p.batch.queries) p.context.ops->rmsnorm(p.context, p.output, p.model.final_norm, p.model.eps, h);
}

}  // namespace quest
