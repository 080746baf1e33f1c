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
  const auto f32 = [&](const std::string& name, std::vector<int64_t> shape, const float* data) {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    out.tensors.emplace(name, Tensor("F32", std::move(shape), data, 4 * count));
  };
  const auto plain = [&](const std::string& name, const View& w) {
    const std::vector<int64_t> shape = w.rows == 1 ? std::vector{w.cols} : std::vector{w.rows, w.cols};
    if (w.type == Type::f16 || w.type == Type::bf16) {
      out.tensors.emplace(name,
                          Tensor(w.type == Type::f16 ? "F16" : "BF16", shape, w.data, 2 * w.rows * w.cols));
    } else {
      numbers.push_back(decoded(w));
      f32(name, shape, numbers.back().data());
    }
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
    const auto bytes = [&](const std::string& part, std::vector<int64_t> shape, const auto& data) {
      out.tensors.emplace(name + part, Tensor("U8", std::move(shape), data.data(), std::ssize(data)));
    };
    bytes("", {std::ssize(q.codes), 1}, q.codes);
    bytes(".absmax", {std::ssize(q.scale_codes)}, q.scale_codes);
    bytes(".quant_state.bitsandbytes__nf4", {std::ssize(states.back())}, states.back());
    f32(name + ".quant_map", {16}, nf4_book);
    f32(name + ".nested_absmax", {std::ssize(q.nested)}, q.nested.data());
    f32(name + ".nested_quant_map", {256}, nf4_scale_map().data());
  };
  plain("model.embed_tokens.weight", m.embedding);
  plain("model.norm.weight", m.final_norm);
  for (int64_t l = 0; l < m.layers; ++l) {
    const Layer& w = m.layer[l];
    const std::string at = format("model.layers.%ld.", l);
    plain(at + "input_layernorm.weight", w.attention_norm);
    plain(at + "post_attention_layernorm.weight", w.mlp_norm);
    linear(at + "self_attn.q_proj.weight", w.q, true), linear(at + "self_attn.k_proj.weight", w.k, true);
    linear(at + "self_attn.v_proj.weight", w.v, false), linear(at + "self_attn.o_proj.weight", w.o, false);
    linear(at + "mlp.gate_proj.weight", w.gate, false), linear(at + "mlp.up_proj.weight", w.up, false);
    linear(at + "mlp.down_proj.weight", w.down, false);
  }
  out.metadata["format"] = "pt";
  write_tensors(folder + "/model.safetensors", out);
  write_file(folder + "/config.json", config_json(m));
}

}  // namespace quest
