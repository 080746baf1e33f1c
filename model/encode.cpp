#include "model/encode.h"

#include <algorithm>

namespace quest {

// A pass with its input: each group is a text's tokens behind `context`, or, of_prompt, a copy of the prompt
// behind the text's own keys and values. A row's position counts the rows that it sees before it: its
// context's and its own. pooled: how many of a group's last rows are query rows, at most.
static Pass begin(const Encoder& e, const Text* texts, int64_t n, bool of_prompt, KeyValues context,
                  int32_t pooled, int64_t spacing, KeyValues store) {
  const Context& c = e.context;
  Batch b;
  Arena& arena = c.bookkeeping();
  Group* groups = arena.array<Group>(n, "bookkeeping/groups");
  Group* last = arena.array<Group>(n, "bookkeeping/groups, last layer");
  for (int64_t t = 0; t < n; ++t) {
    const int32_t rows = of_prompt ? e.prompt.rows : texts[t].count, row = b.rows, query = b.queries;
    groups[t] = {of_prompt ? texts[t].kv : context, row, rows, row, rows};
    last[t] = {groups[t].context, row, rows, query, std::min(rows, pooled)};
    b.rows += rows;
    b.queries += last[t].queries;
  }
  int32_t* ids = arena.array<int32_t>(b.rows, "bookkeeping/tokens");
  int32_t* positions = arena.array<int32_t>(b.rows, "bookkeeping/positions");
  int32_t* rows = arena.array<int32_t>(b.queries, "bookkeeping/query rows");
  int32_t* query_positions = arena.array<int32_t>(b.queries, "bookkeeping/query positions");
  for (int64_t t = 0; t < n; ++t)
    for (int32_t i = 0; i < last[t].rows; ++i) {
      const int32_t row = last[t].row + i, pooled_row = i - (last[t].rows - last[t].queries);
      positions[row] = last[t].context.rows + i;
      ids[row] = of_prompt ? i : texts[t].tokens[i];
      if (pooled_row < 0) continue;
      rows[last[t].query + pooled_row] = row;
      query_positions[last[t].query + pooled_row] = positions[row];
    }
  b.count = n;
  b.groups = bring(c, groups, n, "rows/groups");
  b.pooled = bring(c, last, n, "rows/groups, last layer");
  b.positions = bring(c, positions, b.rows, "rows/positions");
  b.query_rows = bring(c, rows, b.queries, "rows/query rows");
  b.query_positions = bring(c, query_positions, b.queries, "rows/query positions");
  if (of_prompt) b.ids = bring(c, ids, b.rows, "rows/prompt rows");
  const Pass p = begin_pass(e.model, c, b, spacing, store);
  if (of_prompt)
    c.ops->gather(c, e.prompt, b.ids, p.layer[0].input);
  else
    c.ops->embed(c, e.model.embedding, ids, p.layer[0].input);
  return p;
}

Pass prefix_pass(const Encoder& e, int64_t spacing) {
  const Context& c = e.context;
  const int64_t K = e.placement == Placement::prefix ? e.prompt.rows : 0;
  const int64_t bytes = K * key_value_bytes(e.model, c.ops->activation);
  const KeyValues store{c.arena->array<std::byte>(bytes * e.model.layers, "prompt/keys and values"), bytes,
                        K};
  const Text none;
  const Pass p = begin(e, &none, K ? 1 : 0, true, {}, 0, spacing, store);
  if (K) forward(p, {});
  return p;
}

void text_pass(const Encoder& e, Text* texts, int64_t n, KeyValues store, View last, View mean) {
  const Context& c = e.context;
  Scope scope(c);
  const int32_t pooled = mean.data ? INT32_MAX : last.data ? 1 : 0;
  const Pass p = begin(e, texts, n, false, {}, pooled, forward_only, store);
  View h = new_acc(c, p.batch.queries, e.model.width, "activations/final norm");
  forward(p, h);
  if (mean.data) c.ops->pool(c, p.batch.pooled, n, h, mean);
  int32_t* rows = c.bookkeeping().array<int32_t>(last.data ? n : 0, "bookkeeping/last rows");
  const int64_t bytes = key_value_bytes(e.model, c.ops->activation);
  int32_t row = 0, query = 0;
  for (int64_t t = 0; t < n; row += texts[t++].count) {
    query += std::min(texts[t].count, pooled);
    if (last.data) rows[t] = query - 1;
    texts[t].kv = {store.data + row * bytes, store.layer_bytes, texts[t].count};
  }
  if (last.data) c.ops->gather(c, h, bring(c, rows, n, "rows/last rows"), last);
}

Pass embed_pass(const Encoder& e, const Text* texts, int64_t n, KeyValues prefix, int64_t spacing,
                View embeddings) {
  const Context& c = e.context;
  const Pass p = begin(e, texts, n, e.placement == Placement::suffix, prefix,
                       e.pooling == Pooling::last ? 1 : INT32_MAX, spacing, {});
  Scratch scope(*c.arena);
  View h = new_acc(c, p.batch.queries, e.model.width, "activations/final norm");
  forward(p, h);
  c.ops->pool(c, p.batch.pooled, n, h, embeddings);
  return p;
}

int64_t texts_per_pass(const Text* texts, int64_t first, int64_t n, int64_t rows) {
  int64_t total = 0, t = first;
  while (t < n && (t == first || total + texts[t].count <= rows)) total += texts[t++].count;
  return t - first;
}

Text* with_keys_values(const Encoder& e, const Text* texts, int64_t n) {
  const Context& c = e.context;
  const auto lacks = [&](const Text& t) { return e.placement == Placement::suffix && !t.kv.data; };
  const int64_t count = std::count_if(texts, texts + n, lacks);
  Text* copy = c.bookkeeping().array<Text>(n, "bookkeeping/texts");
  Text* missing = c.bookkeeping().array<Text>(count, "bookkeeping/texts to run");
  std::copy_n(texts, n, copy);
  std::copy_if(copy, copy + n, missing, lacks);
  for (int64_t first = 0, each; first < count; first += each) {
    each = texts_per_pass(missing, first, count, e.rows);
    int64_t tokens = 0;
    for (int64_t t = first; t < first + each; ++t) tokens += missing[t].count;
    const int64_t bytes = tokens * key_value_bytes(e.model, c.ops->activation);
    const KeyValues store{c.arena->array<std::byte>(bytes * e.model.layers, "texts/keys and values"), bytes,
                          tokens};
    text_pass(e, missing + first, each, store, {}, {});
  }
  for (int64_t t = 0; t < n; ++t)
    if (lacks(copy[t])) copy[t] = *missing++;
  return copy;
}

void embed_texts(const Encoder& e, const Text* texts, int64_t n, View embeddings) {
  const Context& c = e.context;
  Scope scope(c);
  const Pass prefix = prefix_pass(e, forward_only);
  for (int64_t first = 0, count; first < n; first += count) {
    Scope pass_scope(c);
    count = texts_per_pass(texts, first, n, e.rows);
    if (e.placement == Placement::suffix) {  // the pass runs the prompt's rows; texts to run wait in memory
      int64_t waiting = 0;
      for (count = 0; first + count < n && count <= e.rows / e.prompt.rows && waiting <= 4 * e.rows; ++count)
        if (!texts[first + count].kv.data) waiting += texts[first + count].count;
    }
    const Text* ready = with_keys_values(e, texts + first, count);
    embed_pass(e, ready, count, prefix.own, forward_only, rows_of(embeddings, first, count));
  }
}

}  // namespace quest
