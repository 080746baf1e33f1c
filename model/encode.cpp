#include "model/encode.h"

#include "kernels/base/arena.h"

namespace quest {

namespace {

// Groups, positions and query rows from each group's context and row count. A row's position counts the rows
// that it sees before it: its context's and its own. pooled: how many of a group's last rows are query rows
// (-1: all).
template <class Rows, class ContextOf>
Batch new_batch(const Context& c, int64_t n, Rows&& rows, ContextOf&& context, int64_t pooled) {
  Batch b;
  Group *groups = c.arena->array<Group>(n), *last = c.arena->array<Group>(n);
  for (int64_t g = 0; g < n; ++g) {
    const auto own = static_cast<int32_t>(rows(g));
    const auto queries = pooled < 0 || pooled > own ? own : static_cast<int32_t>(pooled);
    const auto row = static_cast<int32_t>(b.rows);
    groups[g] = {context(g), row, own, row, own};
    last[g] = {context(g), row, own, static_cast<int32_t>(b.queries), queries};
    b.rows += own;
    b.queries += queries;
  }
  int32_t* positions = c.arena->array<int32_t>(b.rows);
  int32_t* query_rows = c.arena->array<int32_t>(b.queries);
  for (int64_t g = 0; g < n; ++g) {
    const Group& group = last[g];
    for (int32_t i = 0; i < group.rows; ++i)
      positions[group.row + i] = static_cast<int32_t>(group.context.rows) + i;
    for (int32_t i = 0; i < group.queries; ++i)
      query_rows[group.query + i] = group.row + group.rows - group.queries + i;
  }
  b.groups = groups, b.pooled = last, b.count = n, b.positions = positions, b.query_rows = query_rows;
  return b;
}

int32_t* token_ids(const Context& c, const Text* texts, int64_t n, int64_t rows) {
  int32_t *ids = c.arena->array<int32_t>(rows), *to = ids;
  for (int64_t t = 0; t < n; ++t)
    for (int32_t i = 0; i < texts[t].count; ++i) *to++ = texts[t].tokens[i];
  return ids;
}

}  // namespace

Pass prefix_pass(const Encoder& e, Keep keep) {
  const Context& c = e.context;
  const int64_t K = e.placement == Placement::prefix ? e.prompt.rows : 0;
  const int64_t bytes = K * key_value_bytes(e.model, c.ops->activation);
  KeyValues store{c.arena->array<std::byte>(bytes * e.model.layers), bytes, K};
  const Batch batch = new_batch(
      c, K ? 1 : 0, [&](int64_t) { return K; }, [](int64_t) { return KeyValues{}; }, 0);
  Pass p = begin_pass(e.model, c, batch, keep, store);
  if (K == 0) return p;
  c.ops->repeat(c, e.prompt, p.input(0));
  forward(p, {});
  return p;
}

void text_pass(const Encoder& e, Text* texts, int64_t n, KeyValues store, View last, View mean) {
  const Context& c = e.context;
  Scratch scope(*c.arena);
  const int64_t pooled = mean.data ? -1 : last.data ? 1 : 0;
  const Batch batch = new_batch(
      c, n, [&](int64_t t) { return texts[t].count; }, [](int64_t) { return KeyValues{}; }, pooled);
  const Pass p = begin_pass(e.model, c, batch, Keep::nothing, store);
  c.ops->embed(c, e.model.embedding, token_ids(c, texts, n, batch.rows), p.input(0));
  View h = new_matrix(c, batch.queries, e.model.width, c.ops->accumulator);
  forward(p, h);
  if (mean.data) c.ops->pool(c, batch.pooled, n, h, mean);
  if (last.data) {
    int32_t* rows = c.arena->array<int32_t>(n);
    for (int64_t t = 0; t < n; ++t) rows[t] = batch.pooled[t].query + batch.pooled[t].queries - 1;
    c.ops->gather(c, h, rows, last);
  }
  const int64_t row = key_value_bytes(e.model, c.ops->activation);
  for (int64_t t = 0; t < n; ++t)
    texts[t].kv = {store.data + batch.groups[t].row * row, store.layer_bytes, texts[t].count};
}

Pass embed_pass(const Encoder& e, const Text* texts, int64_t n, KeyValues prefix, Keep keep,
                View embeddings) {
  const Context& c = e.context;
  const bool suffix = e.placement == Placement::suffix;
  const Batch batch = new_batch(
      c, n, [&](int64_t t) { return suffix ? e.prompt.rows : texts[t].count; },
      [&](int64_t t) { return suffix ? texts[t].kv : prefix; }, e.pooling == Pooling::last ? 1 : -1);
  const Pass p = begin_pass(e.model, c, batch, keep, {});
  if (suffix)
    c.ops->repeat(c, e.prompt, p.input(0));
  else
    c.ops->embed(c, e.model.embedding, token_ids(c, texts, n, batch.rows), p.input(0));
  Scratch scope(*c.arena);
  View h = new_matrix(c, batch.queries, e.model.width, c.ops->accumulator);
  forward(p, h);
  c.ops->pool(c, batch.pooled, n, h, embeddings);
  return p;
}

int64_t texts_per_pass(const Text* texts, int64_t first, int64_t n, int64_t rows) {
  int64_t total = 0, t = first;
  while (t < n && (t == first || total + texts[t].count <= rows)) total += texts[t++].count;
  return t - first;
}

Text* with_keys_values(const Encoder& e, const Text* texts, int64_t n) {
  const Context& c = e.context;
  Text *copy = c.arena->array<Text>(n), *missing = c.arena->array<Text>(n);
  int64_t count = 0, rows = 0;
  for (int64_t t = 0; t < n; ++t) {
    copy[t] = texts[t];
    if (e.placement != Placement::suffix || texts[t].kv.data) continue;
    missing[count++] = texts[t];
    rows += texts[t].count;
  }
  if (count == 0) return copy;
  const int64_t row = key_value_bytes(e.model, c.ops->activation);
  std::byte* data = c.arena->array<std::byte>(rows * row * e.model.layers);
  for (int64_t first = 0, each; first < count; first += each) {
    each = texts_per_pass(missing, first, count, e.rows);
    int64_t tokens = 0;
    for (int64_t t = first; t < first + each; ++t) tokens += missing[t].count;
    text_pass(e, missing + first, each, {data, tokens * row, tokens}, {}, {});
    data += tokens * row * e.model.layers;
  }
  for (int64_t t = 0, i = 0; t < n; ++t)
    if (e.placement == Placement::suffix && !copy[t].kv.data) copy[t] = missing[i++];
  return copy;
}

void embed_texts(const Encoder& e, const Text* texts, int64_t n, View embeddings) {
  const Context& c = e.context;
  Scratch scope(*c.arena);
  const Pass prefix = prefix_pass(e, Keep::nothing);
  for (int64_t first = 0, count; first < n; first += count) {
    Scratch pass_scope(*c.arena);
    count = texts_per_pass(texts, first, n, e.rows);
    if (e.placement == Placement::suffix) {  // the pass runs the prompt's rows, not the texts' tokens
      count = e.rows / e.prompt.rows + 1;
      if (count > n - first) count = n - first;
    }
    const Text* ready = with_keys_values(e, texts + first, count);
    embed_pass(e, ready, count, prefix.own, Keep::nothing, rows_of(embeddings, first, count));
  }
}

}  // namespace quest
