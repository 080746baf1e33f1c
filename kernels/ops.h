// THE contract: every operation on activations, once, with its shapes; each forward is followed by its
// backward.
//
// The graph (model/forward.cpp, model/backward.cpp) is written once against this table. cpu_ops() fills it
// with fast code; tests fill it from ref.h over double and std::complex<double>, which proves the production
// graph itself.
//
// Letters: R rows of a pass, Q query rows (R, or fewer in the last layer), d width, H heads, G key/value
//          heads, D head size, M MLP width, K prompt rows, T texts; B pairs, U queries, L labels of a batch.
// Types:   "act" is ops.activation (bf16 or f32), "acc" is ops.accumulator (f32). Every op rounds its output
//          to the stored type of its destination, once.
// Gradients: dx is the gradient of x. "=" writes, "+=" adds; each line says which. Sums go in the order
//          stated.
// Bits:    an output depends on its own row and the inner length alone: not on the number of rows, on the
//          other rows, on the tile or on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace quest {

class Threads;
class Arena;
class Device;

enum class Type : uint8_t {
  f32,
  f16,
  bf16,  // plain: one by one
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,   // GGUF's blocks
  nf4,    // a view's data is an Nf4 (blocks.h)
  gptq2,  // so many bits; a view's data is a Gptq (blocks.h). The CPU's kernels do not know these
  gptq3,
  gptq4,
  ref_double,
  ref_complex
};

// A matrix somewhere in memory: rows x cols elements, `stride` elements from one row to the next.
// Packed types are weights only: rows are whole blocks (but of nf4), stride == cols.
struct View {
  void* data = nullptr;
  Type type = Type::f32;
  int64_t rows = 0, cols = 0, stride = 0;
};

constexpr int64_t block_size = 32;  // packed types are decoded so many elements at a time, or a multiple

struct Format {
  const char* name;         // in a file; "" where no file has the type
  int64_t elements, bytes;  // of a block
};
constexpr Format formats[] = {{"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 1, 2},     {"Q4_0", 32, 18},
                              {"Q4_1", 32, 20},   {"Q5_0", 32, 22},   {"Q5_1", 32, 24},   {"Q8_0", 32, 34},
                              {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210}, {"", 2, 1},
                              {"", 4, 1},         {"", 32, 12},       {"", 2, 1},         {"", 1, 8},
                              {"", 1, 16}};
constexpr const Format& format_of(Type type) { return formats[static_cast<int>(type)]; }
// The type that a GGUF or a tensor file calls so; nothing for other names.
inline std::optional<Type> type_named(std::string_view name) {
  for (const Format& f : formats)
    if (name == f.name && !name.empty()) return static_cast<Type>(&f - formats);
  return {};
}

// Of `cols` elements; of packed types a multiple of the block.
inline int64_t row_bytes(Type type, int64_t cols) {
  return cols / format_of(type).elements * format_of(type).bytes;
}

inline void* row_pointer(const View& v, int64_t row) {
  return static_cast<std::byte*>(v.data) + row * row_bytes(v.type, v.stride);
}
inline View rows_of(const View& v, int64_t first, int64_t count) {
  return {row_pointer(v, first), v.type, count, v.cols, v.stride};
}
inline View columns_of(const View& v, int64_t first, int64_t count) {  // plain types only
  return {static_cast<std::byte*>(v.data) + row_bytes(v.type, first), v.type, v.rows, count, v.stride};
}

// Keys and values of some rows, all layers: layer l starts at data + l * layer_bytes; a row is
// [keys G*D | values G*D].
struct KeyValues {
  std::byte* data = nullptr;
  int64_t layer_bytes = 0;
  int64_t rows = 0;
};

// One text, or one copy of the prompt: rows that see their context (all of it) and each other (causally).
struct Group {
  KeyValues context;               // rows == 0: none
  int32_t row = 0, rows = 0;       // own rows within the pass
  int32_t query = 0, queries = 0;  // its query rows within the Q rows: the last `queries` of its own rows
};

struct Heads {
  int64_t heads, kv_heads, size;
};

// Rotary positions. GGUF stores the rows of q and k so that a head's elements 2j and 2j+1 turn together,
// Hugging Face so that j and j + D/2 do.
struct Turns {
  View table;  // [P,D] f32: of row `position` the cosine of pair j at 2j, its sine at 2j+1
  bool halves = false;
};

struct Pair {
  int32_t query, label;
};  // row of the U queries, row of the L labels

struct AdamW {
  double rate, beta1, beta2, epsilon, decay;
  int64_t step;
};  // step counts from 1

enum class Into { set, add };

struct Ops;
struct Context {
  const Ops* ops;
  Threads* threads;
  Arena* arena;              // matrices; every op leaves it as it found it
  double* flops = nullptr;   // where a pass counts its work, or nowhere
  double* again = nullptr;   // the same for what it does a second time, because memory was short
  Arena* host = nullptr;     // what only the host reads, where the arena is a GPU's
  Device* device = nullptr;  // whose memory the arena is: a GPU, or nobody's (the CPU, or a rehearsal)

  Arena& bookkeeping() const { return host ? *host : *arena; }
};

struct KernelPath;  // matmul.h

// Where data lies: a View, and what a pointer of the lines below points to, is in the arena's memory. On the
// CPU that is the host's; on a GPU only `bring` and `fetch` reach it, and what `embed` reads stays on the
// host. Ops that name scratch in the arena do so in a rehearsal too.
struct Ops {
  const char* path;               // name of the kernel path, recorded in every run
  const KernelPath* kernel_path;  // of the CPU
  Type activation, accumulator;
  bool apart;  // the arena is a GPU's memory

  // What the host wrote, where the ops see it: the data itself, or a copy in the arena under this name.
  const void* (*bring)(const Context&, const void* data, size_t bytes, const char* name);
  // to = from, when all that was asked for before is done; nothing where they are the same.
  void (*fetch)(const Context&, const void* from, size_t bytes, void* to);

  // x[i] = table[ids[i]]; table and ids on the host                  table [V,d] packed, x [R,d] acc
  void (*embed)(const Context&, View table, const int32_t* ids, View x);
  // y[i] = x[rows[i]]                                                acc, acc
  void (*gather)(const Context&, View x, const int32_t* rows, View y);
  // dx[rows[i]] += dy[i], i ascending
  void (*gather_backward)(const Context&, View dy, const int32_t* rows, View dx);
  // y += x                                                           acc, acc
  void (*add)(const Context&, View x, View y);
  // y = 0                                                            acc
  void (*zero)(const Context&, View y);

  // y = x / sqrt(mean(x^2) + eps) * w, row by row           x [R,d] acc, w [1,d] f32, y [R,d] act or acc
  void (*rmsnorm)(const Context&, View x, View w, double eps, View y);
  // dx += ...                                                        dy [R,d] acc
  void (*rmsnorm_backward)(const Context&, View dy, View x, View w, double eps, View dx);

  // y = (or +=) x . w^T                                    x [R,n] act, w [m,n] packed, y [R,m] act or acc
  void (*matmul)(const Context&, View x, View w, View y, Into);
  // dx = (or +=) dy . w                         dy [R,m] acc (an operand: rounded to act), dx [R,n] acc
  void (*matmul_backward)(const Context&, View dy, View w, View dx, Into);

  // Pair j of every head turns by the angle position * frequency_j.
  // x [R,heads*D] acc, y [R,heads*D] act
  void (*rope)(const Context&, View x, const int32_t* positions, Turns, View y);
  // dx = dy turned back                                              acc, acc
  void (*rope_backward)(const Context&, View dy, const int32_t* positions, Turns, View dx);

  // out = softmax(q k^T / sqrt(D)) v over [context][own rows up to the query's]; head h uses kv head h/(H/G)
  // Groups in the order of their rows, and each has a query, or none has.
  // q [Q,H*D] act, kv [R,2*G*D] act, out [Q,H*D] act
  void (*attention)(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View q, View kv,
                    View out);
  // dq =, dkv = (own rows); dcontext +=, group by group in order, when it has data (one context for all)
  // dout [Q,H*D] acc, dq [Q,H*D] acc, dkv [R,2*G*D] acc, dcontext [C,2*G*D] acc
  void (*attention_backward)(const Context&, Heads, int64_t layer, const Group*, int64_t groups, View dout,
                             View q, View kv, View dq, View dkv, View dcontext);

  // y = silu(gate) * up                                              [R,M] act
  void (*swiglu)(const Context&, View gate, View up, View y);
  // dgate =, dup =                                                   dy, dgate, dup [R,M] acc
  void (*swiglu_backward)(const Context&, View dy, View gate, View up, View dgate, View dup);

  // e[g] = mean of the group's query rows of h                       h [Q,d] acc, e [groups,d] acc
  void (*pool)(const Context&, const Group*, int64_t groups, View h, View e);
  // dh = de / count
  void (*pool_backward)(const Context&, const Group*, int64_t groups, View de, View dh);

  // u = (e - mean) / |e - mean|                           e, u [T,d] acc, mean [1,d] acc or none: a constant
  void (*normalize)(const Context&, View e, View mean, View u);
  // de = (du - u (u . du)) / |e - mean|
  void (*normalize_backward)(const Context&, View du, View e, View mean, View de);

  // s = q . l^T / temperature                                        q [U,d], l [L,d], s [U,L] acc
  void (*similarity)(const Context&, View q, View l, double temperature, View s);
  // dq =, dl =
  void (*similarity_backward)(const Context&, View ds, View q, View l, double temperature, View dq, View dl);

  // loss = mean over pairs i of [ logsumexp_j s[q_i, j] - s[q_i, l_i] ], j over labels not hidden[i*L + j];
  // symmetric: half of that, half the same over the queries of column l_i, without hidden_queries[i*U + u].
  // (Equation 5 of the paper, with a temperature.) A target is never hidden.
  // s [U,L] acc, loss [1,1] acc; hidden_queries == nullptr: one way
  void (*contrastive)(const Context&, View s, const Pair*, int64_t pairs, const uint8_t* hidden,
                      const uint8_t* hidden_queries, View loss);
  // ds = d loss / d s, pairs ascending
  void (*contrastive_backward)(const Context&, View s, const Pair*, int64_t pairs, const uint8_t* hidden,
                               const uint8_t* hidden_queries, View ds);

  // norm = |g|                                                       g acc any shape, norm [1,1] acc
  void (*norm)(const Context&, View g, View norm);
  // One step of AdamW (Loshchilov & Hutter 2019) on p; the gradient is g * min(1, clip / norm) when clip > 0.
  // p, g, m, v [K,d] acc
  void (*adamw)(const Context&, View p, View g, View m, View v, View norm, double clip, AdamW);
};

template <class T>
const T* bring(const Context& c, const T* data, int64_t count, const char* name) {
  return static_cast<const T*>(c.ops->bring(c, data, count * sizeof(T), name));
}
// A matrix without holes between its rows, or an absent one. An op may write to it, for fetch().
inline View bring(const Context& c, View v, const char* name) {
  const size_t bytes = v.rows * row_bytes(v.type, v.cols);
  if (c.ops->apart) v.data = const_cast<void*>(c.ops->bring(c, v.data, bytes, name));
  return v;
}
inline void fetch(const Context& c, const View& from, const View& to) {
  c.ops->fetch(c, from.data, to.rows * row_bytes(to.type, to.cols), to.data);
}

// Kernel paths, best first: "avx512bf16", "avx512", "avx2", "portable". path == nullptr: the best of this
// machine; throws Error(usage) for one that it lacks. activation: bf16 or f32.
Ops cpu_ops(const char* path, Type activation);

}  // namespace quest
