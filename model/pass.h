// One pass of rows through the model. Three uses, one graph:
//   prefix prompt   rows = the prompt            no context             its keys and values serve every text
//   texts           rows = tokens of all texts   context: prefix or none
//   suffix prompt   rows = the prompt, once a text   context: the text's keys and values (perhaps cached)
// Rows of all groups stand packed, without padding. The last layer computes queries, attention and MLP only
// for the query rows, from which embeddings are pooled.
#pragma once
#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "model/llama.h"

namespace quest {

// What both arenas of a context take inside the scope is free again behind it.
struct Scope {
  Scratch matrices, bookkeeping;
  explicit Scope(const Context& c) : matrices(*c.arena), bookkeeping(c.bookkeeping()) {}
};

struct Batch {                    // its arrays: as the ops see them
  const Group* groups = nullptr;  // [count] every row is a query row
  const Group* pooled = nullptr;  // [count] the same groups in the last layer: only the Q query rows
  int64_t count = 0;
  int64_t rows = 0, queries = 0;             // R, Q
  const int32_t* ids = nullptr;              // [R] the prompt's row of each row; nullptr: rows are tokens
  const int32_t* positions = nullptr;        // [R] rope position of each row
  const int32_t* query_rows = nullptr;       // [Q] row of each query row, ascending
  const int32_t* query_positions = nullptr;  // [Q] its position
};

// What stays in memory for the backward pass: the fp32 input of every spacing-th layer, and everything that
// the backward of `spacing` layers needs; stretches of so many layers are computed again, but for the last.
// The bits of every result are the same. At least the number of layers: no recomputation; 0: forward only.
constexpr int64_t forward_only = 0, keep_all = INT64_MAX;

// What one layer's backward needs. Rows: R, in the last layer Q (input and kv always R).
struct Activations {
  View input;     // [R,d] acc
  View q;         // [.,H*D] act, turned
  View kv;        // [R,2*G*D] act, keys turned
  View middle;    // [.,d] acc: residual stream between attention and MLP
  View gate, up;  // [.,M] act
};

struct Pass {
  const Model& model;
  const Context& context;
  Batch batch;
  int64_t stretch;     // layers whose activations have places of their own; layer l + stretch has those of l
  View output;         // [Q,d] acc: residual stream after the last layer
  KeyValues own;       // keys and values of these rows, where the caller said
  Activations* layer;  // [layers]
};

// Matrices from the arena, of the ops' two types; name: "group/name", for the plan.
View new_acc(const Context&, int64_t rows, int64_t cols, const char* name);
View new_act(const Context&, int64_t rows, int64_t cols, const char* name);

int64_t key_value_bytes(const Model&, Type activation);  // of one row in one layer

// Reserves the pass's memory in the arena; the caller then fills layer[0].input. store: where the keys and
// values of all layers go (layers * rows * key_value_bytes), or data == nullptr.
Pass begin_pass(const Model&, const Context&, Batch, int64_t spacing, KeyValues store);

// Work of a forward pass, and of its backward pass too: 2 FLOP a weight of the linear layers and row.
// Attention is not counted.
double layer_flops(const Model&, int64_t rows, int64_t queries);
double pass_flops(const Model&, int64_t rows, int64_t queries);

// Runs all layers and the final norm; h [Q,d] acc.
void forward(const Pass&, View h);

// One layer: reads its input, fills its other activations and, when out.data, out (in the last layer [Q,d]).
void forward_layer(const Pass&, int64_t layer, View out);

// From dh [Q,d] back. Every View may be absent (data == nullptr).
struct PassGradients {
  View input;    // [R,d] acc, =: gradient of layer[0].input
  View context;  // [layers*C,2*G*D] acc, +=: of the one context that all groups share
  View kv;       // [layers*R,2*G*D] acc: what other passes ask of these rows' keys and values
};
void backward(const Pass&, View dh, const PassGradients&);

}  // namespace quest
