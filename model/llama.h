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
  std::deque<std::vector<float>> numbers;  // turns, a folder's norms, scales

  int64_t q_width() const { return heads.heads * heads.size; }
  int64_t kv_width() const { return 2 * heads.kv_heads * heads.size; }
};

// Opens a GGUF file (version 2 or 3) or a Hugging Face folder of the llama architecture. Every offset, size,
// shape, type and scale is checked; throws Error(input) naming file, tensor or key, expected and found.
// nf4: the linear layers are quantised to NF4 with double quantisation.
std::unique_ptr<Model> load_model(const std::string& path, bool nf4 = false);

std::vector<float> decoded(const View& weights);  // of any stored type

}  // namespace quest
