#include "train/step.h"

#include <algorithm>
#include <new>

namespace quest {

namespace {

// e [T,d] -> loss and de [T,d]
void contrast(const Context& c, const StepBatch& b, View e, View loss, View de) {
  const Ops& op = *c.ops;
  const int64_t d = e.cols, U = std::ssize(b.queries), L = std::ssize(b.labels), B = std::ssize(b.pairs);
  Scratch scope(*c.arena);
  const int32_t* queries = bring(c, b.queries.data(), U, "batch/queries");
  const int32_t* labels = bring(c, b.labels.data(), L, "batch/labels");
  const Pair* pairs = bring(c, b.pairs.data(), B, "batch/pairs");
  const uint8_t* hidden = bring(c, b.hidden, B * L, "batch/hidden labels");
  const uint8_t* hidden_queries =
      b.hidden_queries ? bring(c, b.hidden_queries, B * U, "batch/hidden queries") : nullptr;
  View u = new_acc(c, e.rows, d, "loss/unit embeddings"),
       du = new_acc(c, e.rows, d, "loss/d unit embeddings");
  View q = new_acc(c, U, d, "loss/queries"), dq = new_acc(c, U, d, "loss/d queries");
  View l = new_acc(c, L, d, "loss/labels"), dl = new_acc(c, L, d, "loss/d labels");
  View s = new_acc(c, U, L, "loss/similarities"), ds = new_acc(c, U, L, "loss/d similarities");

  op.normalize(c, e, b.mean, u);
  op.gather(c, u, queries, q);
  op.gather(c, u, labels, l);
  op.similarity(c, q, l, b.temperature, s);
  op.contrastive(c, s, pairs, B, hidden, hidden_queries, loss);

  op.contrastive_backward(c, s, pairs, B, hidden, hidden_queries, ds);
  op.similarity_backward(c, ds, q, l, b.temperature, dq, dl);
  op.zero(c, du);
  op.gather_backward(c, dl, labels, du);
  op.gather_backward(c, dq, queries, du);
  op.normalize_backward(c, du, e, b.mean, de);
}

}  // namespace

BatchArrays::BatchArrays(Arena& arena, int64_t B, bool symmetric)
    : texts(arena.array<Text>(2 * B, "batch/texts")),
      numbers(arena.array<int32_t>(2 * B, "batch/numbers of texts")),
      queries(arena.array<int32_t>(B, "batch/queries")),
      labels(arena.array<int32_t>(B, "batch/labels")),
      pairs(arena.array<Pair>(B, "batch/pairs")),
      hidden(arena.array<uint8_t>(B * B, "batch/hidden labels")),
      hidden_queries(symmetric ? arena.array<uint8_t>(B * B, "batch/hidden queries") : nullptr) {}

StepBatch BatchArrays::batch(int64_t T, int64_t U, int64_t L, int64_t B) const {
  StepBatch b;
  b.texts = {texts, static_cast<size_t>(T)}, b.pairs = {pairs, static_cast<size_t>(B)};
  b.queries = {queries, static_cast<size_t>(U)}, b.labels = {labels, static_cast<size_t>(L)};
  b.hidden = hidden, b.hidden_queries = hidden_queries;
  return b;
}

void loss_and_gradient(const Encoder& e, const StepBatch& b, const Policy& policy, View loss, View dprompt) {
  const Context& c = e.context;
  const Ops& op = *c.ops;
  const int64_t d = e.model.width, T = std::ssize(b.texts), micro = std::min(policy.micro, T);
  const int64_t passes = (T + micro - 1) / micro, held = std::min(policy.held, passes);
  Scope scope(c);
  View embeddings = new_acc(c, T, d, "loss/embeddings"), de = new_acc(c, T, d, "loss/d embeddings");
  const Pass prefix = prefix_pass(e, policy.spacing);
  PassGradients gradients;
  if (prefix.batch.rows) {
    gradients.context = new_acc(c, e.model.layers * prefix.batch.rows, e.model.kv_width(),
                                "gradients/prompt's keys and values");
    op.zero(c, gradients.context);
  }
  op.zero(c, dprompt);

  const auto run = [&](int64_t i, int64_t spacing) {
    const int64_t first = i * micro, n = std::min(micro, T - first);
    const Text* texts = with_keys_values(e, b.texts.data() + first, n);
    return embed_pass(e, texts, n, prefix.own, spacing, rows_of(embeddings, first, n));
  };
  Pass* kept = c.bookkeeping().array<Pass>(held, "bookkeeping/passes");
  for (int64_t i = 0; i < held; ++i) new (kept + i) Pass(run(i, policy.spacing));
  for (int64_t i = held; i < passes; ++i) {
    Scope pass_scope(c);
    run(i, forward_only);
  }
  contrast(c, b, embeddings, loss, de);
  for (int64_t i = 0; i < passes; ++i) {
    Scope pass_scope(c);
    const double before = c.flops ? *c.flops : 0;
    const Pass p = i < held ? kept[i] : run(i, policy.spacing);
    if (c.again) *c.again += *c.flops - before, *c.flops = before;
    View dh = new_acc(c, p.batch.queries, d, "gradients/pooled rows");
    op.pool_backward(c, p.batch.pooled, p.batch.count, rows_of(de, i * micro, p.batch.count), dh);
    if (e.placement == Placement::suffix)
      gradients.input = new_acc(c, p.batch.rows, d, "gradients/prompt rows");
    backward(p, dh, gradients);
    if (e.placement == Placement::suffix) op.gather_backward(c, gradients.input, p.batch.ids, dprompt);
  }
  if (prefix.batch.rows) {  // once a step, after the last pass
    PassGradients of_prefix;
    of_prefix.input = new_acc(c, prefix.batch.rows, d, "gradients/prompt");
    of_prefix.kv = gradients.context;
    backward(prefix, {}, of_prefix);
    op.add(c, of_prefix.input, dprompt);
  }
}

}  // namespace quest
