// GGUF -> Model: sizes come from the metadata, every tensor is checked against them, weights stay in the map.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <unordered_set>

#include "kernels/base/hash.h"
#include "model/gguf.h"
#include "model/llama.h"

namespace quest {

namespace {

constexpr int64_t position_limit = 8192;  // rows of the table of turns

// The number of the first block (of one value, in plain types) with NaN or infinity in it; -1 when there is
// none. Looks at the exponents of the 16-bit floats that a block starts with: its value, or scale and
// minimum, or the upper half of an fp32.
int64_t first_not_finite(const Gguf::Tensor& t) {
  const int64_t first = t.type == Type::f32 ? 2 : 0, end = first + (t.type == Type::q4_1 ? 4 : 2);
  const uint16_t exponent = t.type == Type::f32 || t.type == Type::bf16 ? 0x7f80 : 0x7c00;
  for (int64_t at = 0; at < t.bytes; at += t.block)
    for (int64_t i = first; i < end; i += 2) {
      uint16_t bits;
      std::memcpy(&bits, t.data + at + i, 2);
      if ((bits & exponent) == exponent) return at / t.block;
    }
  return -1;
}

// Sizes and constants of the architecture, under llama.cpp's keys.
void read_sizes(const Gguf& gguf, Model& m) {
  const auto require = [&](bool good, const std::string& key, const std::string& expected,
                           const auto& found) {
    if (!good) gguf.refuse("key " + key, expected, (std::ostringstream() << found).str());
  };
  const auto size = [&](const std::string& key, std::optional<int64_t> missing = {}) {
    const int64_t n = gguf.integer(key, missing);
    require(n > 0, key, "a number above 0", n);
    return n;
  };
  const auto number = [&](const std::string& key, std::optional<double> missing, double least, double most) {
    const double x = gguf.number(key, missing);
    require(x >= least && x <= most, key, format("a number in [%g, %g]", least, most), x);
    return x;
  };
  const std::string architecture = gguf.text("general.architecture");
  require(architecture == "llama", "general.architecture", "llama", architecture);
  require(gguf.integer("split.count", 1) <= 1, "split.count", "a model in one file", "several");
  m.name = gguf.text("general.name", "");
  m.layers = size("llama.block_count");
  m.width = size("llama.embedding_length");
  m.mlp = size("llama.feed_forward_length");
  m.max_positions = std::min(size("llama.context_length"), position_limit);
  auto& [heads, kv_heads, head] = m.heads;
  heads = size("llama.attention.head_count");
  kv_heads = size("llama.attention.head_count_kv", heads);
  require(heads % kv_heads == 0, "llama.attention.head_count_kv", "a divisor of the heads", kv_heads);
  const std::string key_length = "llama.attention.key_length";
  require(m.width % heads == 0 || gguf.has(key_length), "llama.attention.head_count",
          "a divisor of the width", heads);
  head = size(key_length, m.width / heads);
  require(head % 2 == 0, key_length, "an even number", head);
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"})
    require(size(key, head) == head, key, format("the head size %ld", head), size(key, head));
  m.eps = number("llama.attention.layer_norm_rms_epsilon", {}, 1e-12, 1);
  m.rope_base = number("llama.rope.freq_base", 1e4, 1, 1e12);
  const bool factor = gguf.number("llama.rope.scaling.factor", 1) != 1;
  const std::string scaling = gguf.text("llama.rope.scaling.type", factor ? "a factor" : "none");
  require(scaling == "none", "llama.rope.scaling.type", "none (scaled rope comes in the next version)",
          scaling);
}

void read_weights(const Gguf& gguf, Model& m) {
  std::unordered_set<std::string_view> used = {"output.weight"};  // the language model's head is not needed
  const auto take = [&](const std::string& name, int64_t rows, int64_t cols) -> View {
    const std::string place = "tensor " + name, right = format("%ld x %ld", cols, rows);
    const Gguf::Tensor* t = gguf.find(name);
    if (!t) gguf.refuse(place, "it in every llama model", "none", "pass a complete model");
    used.insert(t->name);
    const std::string found =
        format("%ld x %ld%s", t->ne[0], t->ne[1], t->ne[2] * t->ne[3] > 1 ? " x more" : "");
    if (found != right) gguf.refuse(place, right + " (inputs x outputs, by the metadata)", found);
    if (rows == 1 && t->type != Type::f32)
      gguf.refuse(place, "a norm of type F32", "another type", "convert the model");
    if (const int64_t bad = first_not_finite(*t); bad >= 0)
      gguf.refuse(place, "finite numbers", format("NaN or infinity in value or block %ld", bad));
    return {const_cast<std::byte*>(t->data), t->type, rows, cols, cols};
  };
  const int64_t d = m.width, q = m.q_width(), kv = m.kv_width() / 2;
  const Gguf::Tensor* embedding = gguf.find("token_embd.weight");
  m.vocabulary = gguf.integer("llama.vocab_size", embedding ? embedding->ne[1] : 0);
  m.embedding = take("token_embd.weight", m.vocabulary, d);
  const char* tokens = "tokenizer.ggml.tokens";
  if (const int64_t count = gguf.has(tokens) ? gguf.texts(tokens).size() : 0; count && count != m.vocabulary)
    gguf.refuse("tensor token_embd.weight", format("%ld rows, one a token", count),
                std::to_string(m.vocabulary));
  m.final_norm = take("output_norm.weight", 1, d);
  for (int64_t l = 0; l < m.layers; ++l) {
    const auto w = [&](const char* name, int64_t rows, int64_t cols) {
      return take(format("blk.%ld.%s.weight", l, name), rows, cols);
    };
    m.layer.push_back({w("attn_norm", 1, d), w("attn_q", q, d), w("attn_k", kv, d), w("attn_v", kv, d),
                       w("attn_output", d, q), w("ffn_norm", 1, d), w("ffn_gate", m.mlp, d),
                       w("ffn_up", m.mlp, d), w("ffn_down", d, m.mlp)});
  }
  for (const Gguf::Tensor& t : gguf.tensors())
    if (!used.count(t.name))
      gguf.refuse("tensor " + std::string(t.name),
                  "only the tensors of a plain llama (rope factors come in the next version)", "this one",
                  "pass another model");
}

// Angles as transformers computes them: frequency and angle rounded to fp32, then cos and sin of that angle.
void fill_turns(Model& m) {
  const int64_t D = m.heads.size;
  m.turn.resize(m.max_positions * D);
  m.turns = {m.turn.data(), Type::f32, m.max_positions, D, D};
  for (int64_t j = 0; j < D; j += 2) {
    const double exponent = float(j) / float(D);
    const float frequency = 1.0f / float(std::pow(m.rope_base, exponent));
    for (int64_t p = 0; p < m.max_positions; ++p) {
      const double angle = float(p) * frequency;
      m.turn[p * D + j] = std::cos(angle);
      m.turn[p * D + j + 1] = std::sin(angle);
    }
  }
}

}  // namespace

std::unique_ptr<Model> load_gguf(const std::string& path) {
  auto m = std::make_unique<Model>();
  m->path = path;
  m->file = MappedFile(path);
  const Gguf gguf(m->file);
  read_sizes(gguf, *m);
  read_weights(gguf, *m);
  fill_turns(*m);
  m->sha256 = sha256_hex(m->file.text());
  return m;
}

}  // namespace quest
