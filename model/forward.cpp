// The forward pass of LLaMA over packed rows (see pass.h), written once against the op table.
#include "kernels/base/arena.h"
#include "model/pass.h"

namespace quest {

View new_matrix(const Context& c, int64_t rows, int64_t cols, Type type) {
  return {c.arena->allocate(static_cast<size_t>(rows * row_bytes(type, cols))), type, rows, cols, cols};
}

int64_t key_value_bytes(const Model& model, Type activation) {
  return row_bytes(activation, model.kv_width());
}

Pass begin_pass(const Model& m, const Context& c, Batch b, Keep keep, KeyValues store) {
  const Type act = c.ops->activation, acc = c.ops->accumulator;
  if (!store.data) {
    const int64_t bytes = b.rows * key_value_bytes(m, act);
    const bool all = keep == Keep::all;
    store = {c.arena->array<std::byte>(bytes * (all ? m.layers : 1)), all ? bytes : 0, b.rows};
  }
  Pass p{m, c, b, keep, new_matrix(c, b.queries, m.width, acc), store, c.arena->array<Activations>(m.layers)};
  for (int64_t l = 0; l < m.layers; ++l) {
    Activations& a = p.layer[l];
    if (l > 0) a = p.layer[l - 1];
    if (l == 0 || keep != Keep::nothing) a.input = new_matrix(c, b.rows, m.width, acc);
    if (l == 0 || keep == Keep::all) {
      a.q = new_matrix(c, b.rows, m.q_width(), act);
      a.middle = new_matrix(c, b.rows, m.width, acc);
      a.gate = new_matrix(c, b.rows, m.mlp, act);
      a.up = new_matrix(c, b.rows, m.mlp, act);
    }
    a.kv = {store.data + l * store.layer_bytes, act, b.rows, m.kv_width(), m.kv_width()};
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
  View h = new_matrix(c, R, m.width, op.activation);
  View k = new_matrix(c, R, kv, op.accumulator);
  op.rmsnorm(c, x, w.attention_norm, m.eps, h);
  op.matmul(c, h, w.k, k, Into::set);
  op.rope(c, k, b.positions, m.turns, columns_of(a.kv, 0, kv));
  op.matmul(c, h, w.v, columns_of(a.kv, kv, kv), Into::set);
  if (Q == 0) return;

  // From here on only the query rows.
  if (Q < R) {
    x = new_matrix(c, Q, m.width, op.accumulator);
    op.gather(c, a.input, b.query_rows, x);
    h = rows_of(h, 0, Q);
    op.rmsnorm(c, x, w.attention_norm, m.eps, h);
  }
  View q = new_matrix(c, Q, m.q_width(), op.accumulator);
  View attended = new_matrix(c, Q, m.q_width(), op.activation);
  op.matmul(c, h, w.q, q, Into::set);
  op.rope(c, q, last ? b.query_positions : b.positions, m.turns, a.q);
  op.attention(c, m.heads, l, last ? b.pooled : b.groups, b.count, a.q, a.kv, attended);
  op.matmul(c, attended, w.o, a.middle, Into::set);
  op.add(c, x, a.middle);

  op.rmsnorm(c, a.middle, w.mlp_norm, m.eps, h);
  op.matmul(c, h, w.gate, a.gate, Into::set);
  op.matmul(c, h, w.up, a.up, Into::set);
  if (!out.data) return;
  View product = new_matrix(c, Q, m.mlp, op.activation);
  op.swiglu(c, a.gate, a.up, product);
  op.matmul(c, product, w.down, out, Into::set);
  op.add(c, a.middle, out);
}

double pass_flops(const Model& m, int64_t rows, int64_t queries) {
  const double d = m.width, kv = m.kv_width(), q = m.q_width(), mlp = m.mlp, R = rows, L = m.layers;
  return 2 * d * (R * L * kv + (R * (L - 1) + queries) * (2 * q + 3 * mlp));
}

void forward(const Pass& p, View h) {
  if (p.context.flops) *p.context.flops += pass_flops(p.model, p.batch.rows, p.batch.queries);
  for (int64_t l = 0; l < p.model.layers; ++l)
    forward_layer(p, l, l + 1 < p.model.layers ? p.layer[l + 1].input : p.output);
  if (p.batch.queries) p.context.ops->rmsnorm(p.context, p.output, p.model.final_norm, p.model.eps, h);
}

}  // namespace quest
