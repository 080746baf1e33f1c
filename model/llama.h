// The map of the model: sizes and weights, with shapes. Weights stay packed, mapped from their file.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "kernels/nf4.h"
#include "model/tensors.h"

namespace quest {

struct Layer {
  View attention_norm;  // [1,d] f32
  View q, k, v;         // [H*D,d], [G*D,d], [G*D,d]
  View o;               // [d,H*D]
  View mlp_norm;        // [1,d] f32
  View gate, up, down;  // [M,d], [M,d], [d,M]
};

struct Model {
  int64_t layers = 0, width = 0, mlp = 0, vocabulary = 0, max_positions = 0;
  Heads heads{};  // H, G, D
  double eps = 1e-5;
  View embedding;   // [V,d] packed
  View final_norm;  // [1,d] f32
  Turns turns;      // [max_positions,D]
  std::vector<Layer> layer;

  std::string name, path, sha256;
  std::string config;            // as Hugging Face writes it; empty where it cannot be said so
  std::deque<TensorFile> files;  // what the weights point into
  std::deque<Nf4> nf4;
  std::deque<Nf4Matrix> quantized;
  std::deque<std::vector<float>> numbers;  // turns, norms, scales

  int64_t q_width() const { return heads.heads * heads.size; }
  int64_t kv_width() const { return 2 * heads.kv_heads * heads.size; }
};

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

// Opens a GGUF file (version 2 or 3) or a Hugging Face folder of the llama architecture. Every offset, size,
// shape, type and scale is checked; throws Error(input) naming file, tensor or key, expected and found.
// nf4: the linear layers are quantised to NF4 with double quantisation.
std::unique_ptr<Model> load_model(const std::string& path, bool nf4 = false);

// A model without its weights, of bf16, or NF4 in the linear layers: the sizes of a config.json, or of a
// model known by name ("llama-7b"). Throws Error(usage) for another name, Error(input) for a bad file.
std::unique_ptr<Model> load_shape(const std::string& name_or_path, bool nf4);

// The same with numbers: linear layers of any packed type, random but harmless ones. For measurements only.
// Throws Error(usage) where rows do not consist of whole blocks.
std::unique_ptr<Model> random_model(const std::string& name_or_path, Type type);

std::vector<float> decoded(const View& weights);  // of any stored type

}  // namespace quest
