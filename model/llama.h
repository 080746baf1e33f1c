// The map of the model: sizes and weights, with shapes. Weights stay packed, mapped from their file.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/ops.h"

namespace quest {

struct Layer {
  View attention_norm;  // [1,d] f32
  View q, k, v;         // [H*D,d], [G*D,d], [G*D,d]; rows of q and k stand so that rope turns adjacent pairs
  View o;               // [d,H*D]
  View mlp_norm;        // [1,d] f32
  View gate, up, down;  // [M,d], [M,d], [d,M]
};

struct Model {
  int64_t layers = 0, width = 0, mlp = 0, vocabulary = 0, max_positions = 0;
  Heads heads{};  // H, G, D
  double eps = 1e-5, rope_base = 1e4;
  View embedding;   // [V,d] packed
  View final_norm;  // [1,d] f32
  View turns;       // [max_positions,D] f32: cos and sin of every position, see ops.h rope
  std::vector<Layer> layer;

  std::string name, path, sha256;
  MappedFile file;
  std::vector<float> turn;  // what `turns` shows

  int64_t q_width() const { return heads.heads * heads.size; }
  int64_t kv_width() const { return 2 * heads.kv_heads * heads.size; }
};

// Opens a GGUF (version 2 or 3) of the llama architecture. Every offset, size, shape, type
// and scale is checked; throws Error(input) naming file, tensor or key, expected and found.
std::unique_ptr<Model> load_gguf(const std::string& path);

}  // namespace quest
