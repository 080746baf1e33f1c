// What the loaders of a GGUF and of a Hugging Face folder share: bounds of all sizes, and which weights there
// are.
#pragma once
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "model/config.h"
#include "model/gguf.h"
#include "model/llama.h"

namespace quest {

constexpr int64_t position_limit = 8192;  // rows of the table of turns

// What the same size is called by llama.cpp and by Hugging Face.
struct Keys {
  const char *architecture, *layers, *width, *mlp, *positions, *heads, *kv_heads, *head, *eps;
};

// Numbers of the metadata (a Gguf or a Config) within their bounds.
template <class Metadata>
struct Sizes {
  const Metadata& from;
  void require(bool good, const std::string& key, const std::string& expected, const auto& found) const {
    if (!good) from.refuse("key " + key, expected, (std::ostringstream() << found).str());
  }
  int64_t size(const std::string& key, std::optional<int64_t> missing = {}) const {
    const int64_t n = from.integer(key, missing);
    require(n > 0, key, "a number above 0", n);
    return n;
  }
  double number(const std::string& key, std::optional<double> missing, double least, double most) const {
    const double x = from.number(key, missing);
    require(x >= least && x <= most, key, format("a number in [%g, %g]", least, most), x);
    return x;
  }
  void fill(Model& m, const Keys& k) const {
    require(from.text(k.architecture) == "llama", k.architecture, "llama", from.text(k.architecture));
    m.layers = size(k.layers);
    require(m.layers <= 4096, k.layers, "at most 4096 layers", m.layers);
    m.layer.resize(m.layers);
    m.width = size(k.width);
    m.mlp = size(k.mlp);
    m.max_positions = std::min(size(k.positions), position_limit);
    auto& [heads, kv_heads, head] = m.heads;
    heads = size(k.heads);
    kv_heads = size(k.kv_heads, heads);
    require(heads % kv_heads == 0, k.kv_heads, "a divisor of the heads", kv_heads);
    require(m.width % heads == 0 || from.has(k.head), k.heads, "a divisor of the width", heads);
    head = size(k.head, m.width / heads);
    require(head % 2 == 0 && head <= 1024, k.head, "an even number of at most 1024", head);
    m.eps = number(k.eps, {}, 1e-12, 1);
  }
};

// Frequencies of rope's pairs as transformers computes them: rounded to fp32.
std::vector<float> plain_frequencies(const Model& m, double base);
// Fills m.turns: the angle is rounded to fp32, then its cosine and sine.
void fill_turns(Model& m, const std::vector<float>& frequencies);

// The number of the first block (of one value, in plain types) with NaN or infinity in it; -1 when there is
// none.
int64_t first_not_finite(Type type, const std::byte* data, int64_t bytes);

// f(weight, layer or -1, llama.cpp's name, Hugging Face's name, rows, cols): every tensor of a llama, with
// .weight behind its name. A norm has one row.
void each_weight(auto& m, auto&& f) {
  const int64_t d = m.width, q = m.q_width(), kv = m.kv_width() / 2;
  f(m.embedding, -1, "token_embd", "embed_tokens", m.vocabulary, d);
  f(m.final_norm, -1, "output_norm", "norm", 1, d);
  for (int64_t l = 0; l < m.layers; ++l) {
    auto& w = m.layer[l];
    f(w.attention_norm, l, "attn_norm", "input_layernorm", 1, d);
    f(w.q, l, "attn_q", "self_attn.q_proj", q, d);
    f(w.k, l, "attn_k", "self_attn.k_proj", kv, d);
    f(w.v, l, "attn_v", "self_attn.v_proj", kv, d);
    f(w.o, l, "attn_output", "self_attn.o_proj", d, q);
    f(w.mlp_norm, l, "ffn_norm", "post_attention_layernorm", 1, d);
    f(w.gate, l, "ffn_gate", "mlp.gate_proj", m.mlp, d);
    f(w.up, l, "ffn_up", "mlp.up_proj", m.mlp, d);
    f(w.down, l, "ffn_down", "mlp.down_proj", d, m.mlp);
  }
}

void read_gguf(const Gguf& gguf, Model& m);
void read_folder(const std::string& folder, Model& m);

}  // namespace quest
