// GGUF -> Model: sizes come from the metadata, every tensor is checked against them, weights stay in the map.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "kernels/base/hash.h"
#include "model/gguf.h"
#include "model/llama.h"

namespace quest {

namespace {

constexpr int64_t position_limit = 8192;  // rows of the table of turns

// The number of the first value (plain types) or block with NaN or infinity in it; -1 when there is none.
// Looks at the exponents of `count` 16-bit floats, or upper halves of fp32, from `first` on in every `step`
// bytes.
int64_t first_not_finite(const Gguf::Tensor& t) {
  const bool plain32 = t.type == Type::f32, four = t.type == Type::q4_1;
  const int64_t step = plain32 ? 4 : four ? 20 : t.type == Type::q8_0 ? 34 : 2;
  const int64_t first = plain32 ? 2 : 0, count = four ? 2 : 1;
  const uint16_t exponent = plain32 || t.type == Type::bf16 ? 0x7f80 : 0x7c00;
  for (int64_t at = 0; at < t.bytes; at += step)
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, t.data + at + first + 2 * i, 2);
      if ((bits & exponent) == exponent) return at / step;
    }
  return -1;
}

std::string shape(int64_t cols, int64_t rows) { return std::to_string(cols) + " x " + std::to_string(rows); }

// Hands out the tensors of a file, checked, and remembers which.
struct Weights {
  const Gguf& gguf;
  std::unordered_set<std::string_view> used;

  View take(const std::string& name, int64_t rows, int64_t cols) {
    const std::string place = "tensor " + name;
    const Gguf::Tensor* t = gguf.find(name);
    if (!t) gguf.refuse(place, "it in every llama model", "none", "pass a complete model");
    used.insert(t->name);
    const std::string more = t->ne[2] * t->ne[3] > 1 ? " x more" : "";
    if (t->ne[0] != cols || t->ne[1] != rows || !more.empty())
      gguf.refuse(place, shape(cols, rows) + " (inputs x outputs, by the metadata)",
                  shape(t->ne[0], t->ne[1]) + more);
    if (rows == 1 && t->type != Type::f32)
      gguf.refuse(place, "a norm of type F32", "another type", "convert the model");
    if (const int64_t bad = first_not_finite(*t); bad >= 0)
      gguf.refuse(place, "finite numbers", "NaN or infinity in value or block " + std::to_string(bad),
                  "the file is damaged, fetch it again");
    return {const_cast<std::byte*>(t->data), t->type, rows, cols, cols};
  }
};

// Sizes and constants of the architecture, under llama.cpp's keys.
void read_sizes(const Gguf& gguf, Model& m) {
  const auto require = [&](bool good, const std::string& key, const std::string& expected,
                           const std::string& found) {
    if (!good) gguf.refuse("key " + key, expected, found, "pass a model that this version reads");
  };
  const auto size = [&](const std::string& key, int64_t missing = 0) {
    const int64_t n = missing ? gguf.integer("llama." + key, missing) : gguf.integer("llama." + key);
    require(n > 0, "llama." + key, "a number above 0", std::to_string(n));
    return n;
  };
  const std::string architecture = gguf.text("general.architecture");
  require(architecture == "llama", "general.architecture", "llama", architecture);
  require(gguf.integer("split.count", 1) <= 1, "split.count", "a model in one file", "several");
  m.name = gguf.text("general.name", "");
  m.layers = size("block_count");
  m.width = size("embedding_length");
  m.mlp = size("feed_forward_length");
  m.max_positions = std::min(size("context_length"), position_limit);
  auto& [heads, kv_heads, head] = m.heads;
  heads = size("attention.head_count");
  kv_heads = size("attention.head_count_kv", heads);
  require(heads % kv_heads == 0, "llama.attention.head_count_kv", "a divisor of the heads",
          std::to_string(kv_heads));
  require(m.width % heads == 0 || gguf.has("llama.attention.key_length"), "llama.attention.head_count",
          "a divisor of the width", std::to_string(heads));
  head = size("attention.key_length", m.width / heads);
  require(head % 2 == 0, "llama.attention.key_length", "an even number", std::to_string(head));
  for (const char* key : {"attention.value_length", "rope.dimension_count"})
    require(size(key, head) == head, std::string("llama.") + key, "the head size " + std::to_string(head),
            std::to_string(size(key, head)));
  m.eps = gguf.number("llama.attention.layer_norm_rms_epsilon");
  m.rope_base = gguf.number("llama.rope.freq_base", 1e4);
  require(m.eps >= 1e-12 && m.eps <= 1, "llama.attention.layer_norm_rms_epsilon", "a number in [1e-12, 1]",
          std::to_string(m.eps));
  require(m.rope_base >= 1, "llama.rope.freq_base", "a number of at least 1", std::to_string(m.rope_base));
  const bool factor = gguf.number("llama.rope.scaling.factor", 1) != 1;
  const std::string scaling = gguf.text("llama.rope.scaling.type", factor ? "a factor" : "none");
  require(scaling == "none", "llama.rope.scaling.type", "none (scaled rope comes in the next version)",
          scaling);
}

void read_weights(const Gguf& gguf, Model& m) {
  if (gguf.find("rope_freqs.weight"))
    gguf.refuse("tensor rope_freqs.weight", "no scaling of the rope", "one", "the next version will read it");
  Weights weights{gguf, {"output.weight"}};  // the language model's head is not used
  const int64_t d = m.width, q = m.heads.heads * m.heads.size, kv = m.heads.kv_heads * m.heads.size;
  const Gguf::Tensor* embedding = gguf.find("token_embd.weight");
  m.vocabulary = gguf.integer("llama.vocab_size", embedding ? embedding->ne[1] : 0);
  m.embedding = weights.take("token_embd.weight", m.vocabulary, d);
  const char* tokens = "tokenizer.ggml.tokens";
  if (const size_t count = gguf.has(tokens) ? gguf.texts(tokens).size() : 0;
      count && static_cast<int64_t>(count) != m.vocabulary)
    gguf.refuse("tensor token_embd.weight", std::to_string(count) + " rows, one a token",
                std::to_string(m.vocabulary));
  m.final_norm = weights.take("output_norm.weight", 1, d);
  for (int64_t l = 0; l < m.layers; ++l) {
    const auto w = [&](const char* name, int64_t rows, int64_t cols) {
      return weights.take("blk." + std::to_string(l) + "." + name + ".weight", rows, cols);
    };
    m.layer.push_back({w("attn_norm", 1, d), w("attn_q", q, d), w("attn_k", kv, d), w("attn_v", kv, d),
                       w("attn_output", d, q), w("ffn_norm", 1, d), w("ffn_gate", m.mlp, d),
                       w("ffn_up", m.mlp, d), w("ffn_down", d, m.mlp)});
  }
  for (const Gguf::Tensor& t : gguf.tensors())
    if (!weights.used.count(t.name))
      gguf.refuse("tensor " + std::string(t.name), "only the tensors of a plain llama", "this one",
                  "pass another model");
}

// Angles as transformers computes them: frequency and angle rounded to fp32, then cos and sin of that angle.
void fill_turns(Model& m) {
  const int64_t D = m.heads.size;
  m.owned.push_back(std::make_unique<float[]>(static_cast<size_t>(m.max_positions * D)));
  float* turns = m.owned.back().get();
  m.turns = {turns, Type::f32, m.max_positions, D, D};
  for (int64_t j = 0; j < D; j += 2) {
    const float exponent = static_cast<float>(j) / static_cast<float>(D);
    const float frequency = 1.0f / static_cast<float>(std::pow(m.rope_base, static_cast<double>(exponent)));
    for (int64_t p = 0; p < m.max_positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      turns[p * D + j] = static_cast<float>(std::cos(static_cast<double>(angle)));
      turns[p * D + j + 1] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

}  // namespace

double Model::flops_per_token() const {
  const double queries = static_cast<double>(2 * heads.heads * heads.size);  // q and o
  const double keys = static_cast<double>(2 * heads.kv_heads * heads.size);  // k and v
  return 2.0 * static_cast<double>(layers * width) * (queries + keys + 3 * static_cast<double>(mlp));
}

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
