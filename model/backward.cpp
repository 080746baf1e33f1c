// The backward pass: the mirror of forward.cpp, call for call, in reverse. Weights are frozen, so every
// linear layer passes only dX = dY . W on, and no linear input is kept.
#include "model/pass.h"

namespace quest {

namespace {

// dx: [Q of this layer,d] gradient of the layer's output on entry; the gradient of its input (R rows) on
// return when `input` says so.
View backward_layer(const Pass& p, int64_t l, View dx, const PassGradients& g, View next, bool input) {
  const Model& m = p.model;
  const Context& c = p.context;
  const Ops& op = *c.ops;
  const Layer& w = m.layer[l];
  const Batch& b = p.batch;
  const Activations& a = p.layer[l];
  const bool last = l + 1 == m.layers;
  const int64_t R = b.rows, Q = dx.rows, kv = m.kv_width() / 2;
  Scratch scope(*c.arena);
  View dkv = new_acc(c, R, 2 * kv, "gradients/keys and values");
  View dq = new_acc(c, Q, m.q_width(), "gradients/q");
  View dh = new_acc(c, R, m.width, "gradients/normed");

  if (Q) {
    // out = middle + down(silu(gate) * up)
    View dproduct = new_acc(c, Q, m.mlp, "gradients/product");
    View dgate = new_acc(c, Q, m.mlp, "gradients/gate");
    View dup = new_acc(c, Q, m.mlp, "gradients/up");
    View dnorm = rows_of(dh, 0, Q);
    op.matmul_backward(c, dx, w.down, dproduct, Into::set);
    op.swiglu_backward(c, dproduct, a.gate, a.up, dgate, dup);
    op.matmul_backward(c, dgate, w.gate, dnorm, Into::set);
    op.matmul_backward(c, dup, w.up, dnorm, Into::add);
    op.rmsnorm_backward(c, dnorm, a.middle, w.mlp_norm, m.eps, dx);

    // middle = x + o(attention(q, [context][kv]))
    View dattended = new_acc(c, Q, m.q_width(), "gradients/attended");
    View dcontext = g.context;
    if (dcontext.data) dcontext = rows_of(dcontext, l * (dcontext.rows / m.layers), dcontext.rows / m.layers);
    op.matmul_backward(c, dx, w.o, dattended, Into::set);
    op.attention_backward(c, m.heads, l, last ? b.pooled : b.groups, b.count, dattended, a.q, a.kv, dq, dkv,
                          dcontext);
  } else {
    op.zero(c, dkv);
  }
  if (g.kv.data) op.add(c, rows_of(g.kv, l * R, R), dkv);
  if (!input) return dx;

  // q, k, v = turn(Wq h), turn(Wk h), Wv h with h = norm(x); in the last layer q only of the query rows
  View dnorm = Q < R ? new_acc(c, Q, m.width, "gradients/query rows") : dh;
  if (Q) {
    op.rope_backward(c, dq, last ? b.query_positions : b.positions, m.turns, dq);
    op.matmul_backward(c, dq, w.q, dnorm, Into::set);
  }
  if (Q < R) {
    op.zero(c, dh);
    op.gather_backward(c, dnorm, b.query_rows, dh);
    op.zero(c, next);
    op.gather_backward(c, dx, b.query_rows, next);
    dx = next;
  }
  View dk = columns_of(dkv, 0, kv);
  op.rope_backward(c, dk, b.positions, m.turns, dk);
  op.matmul_backward(c, dk, w.k, dh, Into::add);
  op.matmul_backward(c, columns_of(dkv, kv, kv), w.v, dh, Into::add);
  op.rmsnorm_backward(c, dh, a.input, w.attention_norm, m.eps, dx);
  return dx;
}

}  // namespace

void backward(const Pass& p, View dh, const PassGradients& g) {
  const Context& c = p.context;
  if (c.flops) *c.flops += pass_flops(p.model, p.batch.rows, p.batch.queries);
  Scratch scope(*c.arena);
  const int64_t R = p.batch.rows, Q = p.batch.queries, d = p.model.width, L = p.model.layers;
  View next = g.input.data ? g.input : new_acc(c, R, d, "gradients/layer input");
  View dx = Q == R ? next : new_acc(c, Q, d, "gradients/last layer");
  if (Q) {
    c.ops->zero(c, dx);
    c.ops->rmsnorm_backward(c, dh, p.output, p.model.final_norm, p.model.eps, dx);
  }
  for (int64_t l = L - 1; l >= 0; --l) {
    const int64_t first = l / p.stretch * p.stretch;
    if (l == first + p.stretch - 1 && l != L - 1) {  // the last stretch still has its activations
      for (int64_t s = first; s <= l; ++s) forward_layer(p, s, s < l ? p.layer[s + 1].input : View{});
      if (c.again)  // without the last one's product with down
        *c.again += p.stretch * layer_flops(p.model, R, R) - 2.0 * d * p.model.mlp * R;
    }
    dx = backward_layer(p, l, dx, g, next, l > 0 || g.input.data);
  }
}

}  // namespace quest
