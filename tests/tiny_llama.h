// A random LLaMA in memory: grouped heads, packed weights with several blocks a row.
#pragma once
#include <memory>
#include <vector>

#include "model/llama.h"
#include "tests/check.h"

namespace quest {

struct TinyLlama {
  Model model;
  std::vector<std::vector<std::byte>> memory;

  explicit TinyLlama(uint64_t seed, Type type = Type::q4_1, int64_t layers = 2) {
    Random r(seed);
    model.layers = layers, model.width = 64, model.mlp = 96, model.vocabulary = 20, model.max_positions = 64;
    model.heads = {4, 2, 16};
    // NF4: blocks straddle the rows of the MLP's last layer, and its scales have two nested groups
    if (type == Type::nf4) model.mlp = 260;
    const int64_t d = model.width, q = 4 * 16, kv = 2 * 16;
    model.embedding = weights(r, model.vocabulary, d, Type::q8_0, 0.5);
    model.final_norm = norm(r, d);
    for (int64_t l = 0; l < model.layers; ++l)
      model.layer.push_back({norm(r, d), weights(r, q, d, type, 0.15), weights(r, kv, d, type, 0.15),
                             weights(r, kv, d, type, 0.15), weights(r, d, q, type, 0.15), norm(r, d),
                             weights(r, model.mlp, d, type, 0.15), weights(r, model.mlp, d, type, 0.15),
                             weights(r, d, model.mlp, type, 0.15)});
    model.turns.table = plain(model.max_positions, 16);
    for (int64_t p = 0; p < model.max_positions; ++p)
      for (int64_t j = 0; j < 16; j += 2) {
        const double angle = static_cast<double>(p) * std::pow(100.0, -static_cast<double>(j) / 16);
        static_cast<float*>(model.turns.table.data)[p * 16 + j] = static_cast<float>(std::cos(angle));
        static_cast<float*>(model.turns.table.data)[p * 16 + j + 1] = static_cast<float>(std::sin(angle));
      }
  }
  TinyLlama(const TinyLlama&) = delete;

 private:
  View plain(int64_t rows, int64_t cols) {
    memory.emplace_back(static_cast<size_t>(rows * cols) * 4);
    return {memory.back().data(), Type::f32, rows, cols, cols};
  }
  View norm(Random& r, int64_t d) {
    View v = plain(1, d);
    for (int64_t j = 0; j < d; ++j) static_cast<float*>(v.data)[j] = static_cast<float>(1 + 0.3 * r.normal());
    return v;
  }
  // Random blocks whose values have about the given spread; f32 as it is, Q4_1 and Q8_0 as random codes and
  // scales.
  View weights(Random& r, int64_t rows, int64_t cols, Type type, double spread) {
    if (type == Type::nf4) {
      const View plain = weights(r, rows, cols, Type::f32, spread);
      model.quantized.push_back(quantize_nf4(static_cast<float*>(plain.data), rows * cols));
      model.nf4.push_back(model.quantized.back().view());
      return {&model.nf4.back(), Type::nf4, rows, cols, cols};
    }
    if (type == Type::f32) {
      View v = plain(rows, cols);
      for (int64_t i = 0; i < rows * cols; ++i)
        static_cast<float*>(v.data)[i] = static_cast<float>(spread * r.normal());
      return v;
    }
    memory.emplace_back(static_cast<size_t>(row_bytes(type, cols) * rows));
    View v{memory.back().data(), type, rows, cols, cols};
    const int64_t size = row_bytes(type, 32);
    for (int64_t b = 0; b < rows * cols / 32; ++b) {
      auto* p = static_cast<unsigned char*>(v.data) + b * size;
      for (int64_t i = 0; i < size; ++i) p[i] = static_cast<unsigned char>(r.below(256));
      const double d = spread * (0.7 + 0.6 * r.uniform()) / (type == Type::q4_1 ? 4.6 : 74);
      put_half(p, d);
      if (type == Type::q4_1) put_half(p + 2, -7.5 * d);
    }
    return v;
  }
  static void put_half(unsigned char* p, double x) {  // a normal binary16 close to x
    int exponent;
    const double fraction = std::frexp(std::abs(x), &exponent);
    const int bits = (x < 0) << 15 | (exponent + 14) << 10 | (static_cast<int>(fraction * 2048) & 1023);
    p[0] = static_cast<unsigned char>(bits), p[1] = static_cast<unsigned char>(bits >> 8);
  }
};

}  // namespace quest
