#include "train/step.h"

#include "kernels/base/arena.h"

namespace quest {

namespace {

// e [T,d] -> loss and de [T,d]
void contrast(const Context& c, const StepBatch& b, View e, View loss, View de) {
  const Ops& op = *c.ops;
  const Type acc = op.accumulator;
  const int64_t d = e.cols, U = std::ssize(b.queries), L = std::ssize(b.labels);
  Scratch scope(*c.arena);
  View u = new_matrix(c, e.rows, d, acc), du = new_matrix(c, e.rows, d, acc);
  View q = new_matrix(c, U, d, acc), dq = new_matrix(c, U, d, acc);
  View l = new_matrix(c, L, d, acc), dl = new_matrix(c, L, d, acc);
  View s = new_matrix(c, U, L, acc), ds = new_matrix(c, U, L, acc);

  op.normalize(c, e, b.mean, u);
  op.gather(c, u, b.queries.data(), q);
  op.gather(c, u, b.labels.data(), l);
  op.similarity(c, q, l, b.temperature, s);
  op.contrastive(c, s, b.pairs.data(), std::ssize(b.pairs), b.hidden, b.hidden_queries, loss);

  op.contrastive_backward(c, s, b.pairs.data(), std::ssize(b.pairs), b.hidden, b.hidden_queries, ds);
  op.similarity_backward(c, ds, q, l, b.temperature, dq, dl);
  op.zero(c, du);
  op.gather_backward(c, dl, b.labels.data(), du);
  op.gather_backward(c, dq, b.queries.data(), du);
  op.normalize_backward(c, du, e, b.mean, de);
}

}  // namespace

void loss_and_gradient(const Encoder& e, const StepBatch& b, int64_t micro, Keep keep, View loss,
                       View dprompt) {
  const Context& c = e.context;
  const Ops& op = *c.ops;
  const int64_t d = e.model.width, T = std::ssize(b.texts);
  const bool several = micro < T;
  Scratch scope(*c.arena);
  View embeddings = new_matrix(c, T, d, op.accumulator), de = new_matrix(c, T, d, op.accumulator);
  const Pass prefix = prefix_pass(e, keep);
  PassGradients gradients;
  if (prefix.batch.rows) {
    gradients.context = new_matrix(c, e.model.layers * prefix.batch.rows, e.model.kv_width(), op.accumulator);
    op.zero(c, gradients.context);
  }
  op.zero(c, dprompt);

  const int64_t each = several ? micro : T;
  for (int64_t first = 0; several && first < T; first += each) {
    Scratch pass_scope(*c.arena);
    const int64_t n = first + each < T ? each : T - first;
    embed_pass(e, with_keys_values(e, b.texts.data() + first, n), n, prefix.own, Keep::nothing,
               rows_of(embeddings, first, n));
  }
  if (several) contrast(c, b, embeddings, loss, de);
  for (int64_t first = 0; first < T; first += each) {
    Scratch pass_scope(*c.arena);
    const int64_t n = first + each < T ? each : T - first;
    const Pass p = embed_pass(e, with_keys_values(e, b.texts.data() + first, n), n, prefix.own, keep,
                              rows_of(embeddings, first, n));
    if (!several) contrast(c, b, embeddings, loss, de);
    View dh = new_matrix(c, p.batch.queries, d, op.accumulator);
    op.pool_backward(c, p.batch.pooled, n, rows_of(de, first, n), dh);
    if (e.placement == Placement::suffix) gradients.input = new_matrix(c, p.batch.rows, d, op.accumulator);
    backward(p, dh, gradients);
    if (e.placement == Placement::suffix) op.gather_backward(c, gradients.input, p.batch.ids, dprompt);
  }
  if (prefix.batch.rows) {  // once a step, after the last pass
    PassGradients of_prefix;
    of_prefix.input = new_matrix(c, prefix.batch.rows, d, op.accumulator);
    of_prefix.kv = gradients.context;
    backward(prefix, {}, of_prefix);
    op.add(c, of_prefix.input, dprompt);
  }
}

}  // namespace quest
