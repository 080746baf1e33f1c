#include "model/save.h"

#include <algorithm>
#include <deque>

#include "kernels/base/json.h"
#include "model/config.h"

namespace quest {

namespace {

// Rows 2j and 2j + 1 of every head become rows j and j + D/2.
std::vector<float> halves_apart(const std::vector<float>& w, int64_t D, int64_t cols) {
  std::vector<float> out(w.size());
  for (int64_t row = 0; row < std::ssize(w) / cols; ++row) {
    const int64_t j = row % D;
    std::copy_n(w.data() + row * cols, cols, out.data() + (row - j + j % 2 * (D / 2) + j / 2) * cols);
  }
  return out;
}

std::string config_json(const Model& m) {
  const Config config(m.path, m.config);
  JsonWriter j;
  j.object();
  for (const auto& [key, value] : simdjson::dom::object(config.root()))
    if (key != "quantization_config") j.key(key).raw(simdjson::minify(value));
  j.key("quantization_config").object().field("quant_method", "bitsandbytes").field("load_in_4bit", true);
  j.field("bnb_4bit_quant_type", "nf4").field("bnb_4bit_use_double_quant", true);
  return j.field("bnb_4bit_compute_dtype", "float32").end().end().text() + "\n";
}

}  // namespace

void save_nf4(const Model& m, const std::string& folder) {
  if (m.config.empty())
    fail(Exit::input,
         "%s: expected rope that config.json can describe, found the divisors of a GGUF; quantise the "
         "Hugging Face folder that it was made from",
         m.path.c_str());
  TensorFile out;
  std::deque<std::vector<float>> numbers;  // what the tensors of the file point to
  std::deque<Nf4Matrix> matrices;
  std::deque<std::string> states;
  const auto plain = [&](const std::string& name, View w) {
    if (w.type != Type::f16 && w.type != Type::bf16) {
      numbers.push_back(decoded(w));
      w = {numbers.back().data(), Type::f32, w.rows, w.cols, w.cols};
    }
    const auto at = out.tensors.emplace(name, w).first;
    if (w.rows == 1) at->second.shape = {w.cols};
  };
  const auto linear = [&](const std::string& name, const View& w, bool turned) {
    std::vector<float> values = decoded(w);
    if (turned && !m.turns.halves) values = halves_apart(values, m.heads.size, w.cols);
    matrices.push_back(quantize_nf4(values.data(), std::ssize(values)));
    const Nf4Matrix& q = matrices.back();
    JsonWriter j(true);
    j.object().field("quant_type", "nf4").field("blocksize", nf4_block).field("dtype", "float32");
    j.key("shape").array().value(w.rows).value(w.cols).end().field("nested_blocksize", nf4_nested_block);
    states.push_back(
        j.field("nested_dtype", "float32").field("nested_offset", double{q.offset}).end().text());
    const auto add = [&](const std::string& part, const char* type, const auto& list) -> Tensor& {
      const int64_t count = std::ssize(list), size = sizeof list[0];
      return out.tensors.emplace(name + part, Tensor(type, {count}, std::data(list), count * size))
          .first->second;
    };
    add("", "U8", q.codes).shape.push_back(1);
    add(".absmax", "U8", q.scale_codes);
    add(".quant_state.bitsandbytes__nf4", "U8", states.back());
    add(".quant_map", "F32", nf4_book);
    add(".nested_absmax", "F32", q.nested);
    add(".nested_quant_map", "F32", nf4_scale_map());
  };
  each_weight(m, [&](const View& w, int64_t l, auto, const std::string& part, int64_t rows, auto) {
    const std::string name = (l < 0 ? "model." : format("model.layers.%ld.", l)) + part + ".weight";
    if (l < 0 || rows == 1)
      plain(name, w);
    else
      linear(name, w, part == "self_attn.q_proj" || part == "self_attn.k_proj");
  });
  out.metadata["format"] = "pt";
  write_tensors(folder + "/model.safetensors", out);
  write_file(folder + "/config.json", config_json(m));
}

}  // namespace quest
