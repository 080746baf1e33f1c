#include "model/load.h"

#include <cmath>
#include <cstring>
#include <filesystem>

#include "kernels/base/hash.h"
#include "kernels/tile.h"

namespace quest {

// Looks at the exponents of a block's 16-bit floats: its value, or scale and least value, or the upper half
// of an fp32.
int64_t first_not_finite(Type type, const std::byte* data, int64_t bytes) {
  const bool least = type == Type::q4_1 || type == Type::q5_1 || type == Type::q4_k || type == Type::q5_k;
  const int64_t first = type == Type::f32 ? 2 : type == Type::q6_k ? 208 : 0, end = first + (least ? 4 : 2);
  const uint16_t exponent = type == Type::f32 || type == Type::bf16 ? 0x7f80 : 0x7c00;
  const int64_t block = format_of(type).bytes;
  for (int64_t at = 0; at < bytes; at += block)
    for (int64_t i = first; i < end; i += 2) {
      uint16_t bits;
      std::memcpy(&bits, data + at + i, 2);
      if ((bits & exponent) == exponent) return at / block;
    }
  return -1;
}

std::vector<float> plain_frequencies(const Model& m, double base) {
  std::vector<float> f;
  for (int64_t j = 0; j < m.heads.size; j += 2)
    f.push_back(1.0f / float(std::pow(base, double(float(j) / float(m.heads.size)))));
  return f;
}

void fill_turns(Model& m, const std::vector<float>& frequencies) {
  const int64_t D = m.heads.size;
  m.numbers.emplace_back(m.max_positions * D);
  float* turn = m.numbers.back().data();
  m.turns.table = {turn, Type::f32, m.max_positions, D, D};
  for (int64_t p = 0; p < m.max_positions; ++p)
    for (int64_t j = 0; j < D / 2; ++j) {
      const double angle = float(p) * frequencies[j];
      turn[p * D + 2 * j] = std::cos(angle);
      turn[p * D + 2 * j + 1] = std::sin(angle);
    }
}

// Every linear layer becomes NF4, quantised from its decoded values.
static void quantize_linear_layers(Model& m) {
  each_weight(m, [&](View& w, int64_t layer, auto, auto, int64_t rows, int64_t cols) {
    if (layer < 0 || rows == 1 || w.type == Type::nf4) return;
    const std::vector<float> values = decoded(w);
    m.quantized.push_back(quantize_nf4(values.data(), std::ssize(values)));
    m.nf4.push_back(m.quantized.back().view());
    w = {&m.nf4.back(), Type::nf4, rows, cols, cols};
  });
}

std::vector<float> decoded(const View& w) {
  std::vector<float> values(w.rows * w.cols);
  rows_portable.decode[static_cast<int>(w.type)](w.data, 0, std::ssize(values), values.data());
  return values;
}

std::unique_ptr<Model> load_model(const std::string& path, bool nf4) {
  auto m = std::make_unique<Model>();
  m->path = path;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    m->name = std::filesystem::path(path).filename();
    read_folder(path, *m);
    std::string hashes;
    for (const char* name : {"/config.json", "/tokenizer.json", "/tokenizer.model"})
      if (exists(path + name)) hashes += sha256_hex(read_file(path + name));
    for (const TensorFile& f : m->files) hashes += sha256_hex(f.file.text());
    m->sha256 = sha256_hex(hashes);
  } else {
    TensorFile file;
    file.file = MappedFile(path);
    m->files.push_back(file);
    read_gguf(Gguf(m->files[0].file), *m);
    m->sha256 = sha256_hex(m->files[0].file.text());
  }
  if (nf4) {
    quantize_linear_layers(*m);
    m->sha256 += " as nf4";
  }
  return m;
}

}  // namespace quest
