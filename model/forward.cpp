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

View Pass::input(int64_t layer) const {
  return keep == Keep::nothing ? inputs : rows_of(inputs, layer * batch.rows, batch.rows);
}

Activations Pass::activations(int64_t layer) const {
  const Type act = context.ops->activation, acc = context.ops->accumulator;
  const int64_t rows = layer + 1 == model.layers ? batch.queries : batch.rows;
  std::byte* at = kept + layer * kept_bytes;
  const auto take = [&](Type type, int64_t cols) {
    View v{at, type, rows, cols, cols};
    at += batch.rows * row_bytes(type, cols);
    return v;
  };
  Activations a;
  a.middle = take(acc, model.width);
  a.q = take(act, model.heads.heads * model.heads.size);
  a.gate = take(act, model.mlp);
  a.up = take(act, model.mlp);
  a.kv = {own.data + layer * own.layer_bytes, act, batch.rows, model.kv_width(), model.kv_width()};
  return a;
}

Pass begin_pass(const Model& m, const Context& c, Batch batch, Keep keep, KeyValues store) {
  const Type act = c.ops->activation, acc = c.ops->accumulator;
  const int64_t R = batch.rows, all = keep == Keep::all ? m.layers : 1;
  Pass p{m, c, batch, keep, {}, {}, store, nullptr, 0};
  p.inputs = new_matrix(c, R * (keep == Keep::nothing ? 1 : m.layers), m.width, acc);
  p.output = new_matrix(c, batch.queries, m.width, acc);
  if (!store.data) {
    const int64_t bytes = R * key_value_bytes(m, act);
    p.own = {c.arena->array<std::byte>(bytes * all), all > 1 ? bytes : 0, R};
  }
  const int64_t bytes =
      R * (row_bytes(acc, m.width) + row_bytes(act, m.heads.heads * m.heads.size + 2 * m.mlp));
  p.kept = c.arena->array<std::byte>(bytes * all);
  p.kept_bytes = all > 1 ? bytes : 0;
  return p;
}

void forward_layer(const Pass& p, int64_t l, View out) {
  const Model& m = p.model;
  const Context& c = p.context;
  const Ops& op = *c.ops;
  const Layer& w = m.layer[static_cast<size_t>(l)];
  const Batch& b = p.batch;
  const Activations a = p.activations(l);
  const bool last = l + 1 == m.layers;
  const int64_t R = b.rows, Q = last ? b.queries : R, kv = m.kv_width() / 2;
  Scratch scope(*c.arena);

  // Keys and values of all rows.
  View x = p.input(l);
  View h = new_matrix(c, R, m.width, op.activation);
  View k = new_matrix(c, R, kv, op.accumulator);
  op.rmsnorm(c, x, w.attention_norm, m.eps, h);
  op.matmul(c, h, w.k, k, Into::set);
  op.rope(c, k, b.positions, m.turns, columns_of(a.kv, 0, kv));
  op.matmul(c, h, w.v, columns_of(a.kv, kv, kv), Into::set);
  if (Q == 0) return;

  // From here on only the query rows.
  const int32_t* positions = b.positions;
  if (last && Q < R) {
    View chosen = new_matrix(c, Q, m.width, op.accumulator);
    int32_t* of_query = c.arena->array<int32_t>(Q);
    for (int64_t i = 0; i < Q; ++i) of_query[i] = b.positions[b.query_rows[i]];
    op.gather(c, x, b.query_rows, chosen);
    h = rows_of(h, 0, Q);
    op.rmsnorm(c, chosen, w.attention_norm, m.eps, h);
    x = chosen;
    positions = of_query;
  }
  const int64_t heads = m.heads.heads * m.heads.size;
  View q = new_matrix(c, Q, heads, op.accumulator);
  View attended = new_matrix(c, Q, heads, op.activation);
  op.matmul(c, h, w.q, q, Into::set);
  op.rope(c, q, positions, m.turns, a.q);
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
  const auto d = static_cast<double>(m.width), kv = static_cast<double>(m.kv_width());
  const double heads = static_cast<double>(m.heads.heads * m.heads.size), mlp = static_cast<double>(m.mlp);
  const auto R = static_cast<double>(rows), Q = static_cast<double>(queries),
             L = static_cast<double>(m.layers);
  return 2 * d * (R * L * kv + (R * (L - 1) + Q) * (2 * heads + 3 * mlp));
}

void forward(const Pass& p, View h) {
  if (p.context.flops) *p.context.flops += pass_flops(p.model, p.batch.rows, p.batch.queries);
  for (int64_t l = 0; l < p.model.layers; ++l)
    forward_layer(p, l, l + 1 < p.model.layers ? p.input(l + 1) : p.output);
  if (p.batch.queries) p.context.ops->rmsnorm(p.context, p.output, p.model.final_norm, p.model.eps, h);
}

}  // namespace quest
