// A Hugging Face folder -> Model: config.json and the tensors of one or more safetensors files, which stay
// mapped.
#include <cmath>
#include <cstring>
#include <map>
#include <numbers>
#include <set>

#include "model/load.h"

namespace quest {

namespace {

constexpr Keys hugging_face_keys{"model_type",
                                 "num_hidden_layers",
                                 "hidden_size",
                                 "intermediate_size",
                                 "max_position_embeddings",
                                 "num_attention_heads",
                                 "num_key_value_heads",
                                 "head_dim",
                                 "rms_norm_eps"};

const char* const nf4_state = ".quant_state.bitsandbytes__nf4";

// rope_parameters (transformers 5) or rope_theta with rope_scaling. llama3: long waves are stretched by the
// factor, short ones stay, those between change smoothly.
std::vector<float> scaled_frequencies(const Config& config, const Model& m) {
  const Sizes<Config> sizes{config};
  const std::string at = config.has("rope_parameters") ? "rope_parameters/" : "rope_scaling/";
  const std::string base = config.has(at + "rope_theta") ? at + "rope_theta" : "rope_theta";
  std::vector<float> frequencies = plain_frequencies(m, sizes.number(base, 1e4, 1, 1e12));
  std::optional<std::string> missing;  // where nothing is said of rope at all
  if (!config.has(at.substr(0, at.size() - 1)) || at == "rope_parameters/") missing = "default";
  const std::string type = config.has(at + "type") && !config.has(at + "rope_type")
                               ? config.text(at + "type")
                               : config.text(at + "rope_type", missing);
  if (type == "default") return frequencies;
  sizes.require(type == "linear" || type == "llama3", at + "rope_type", "default, linear or llama3", type);
  const double factor = sizes.number(at + "factor", {}, 1e-6, 1e6);
  if (type == "linear") {
    for (float& f : frequencies) f /= float(factor);
    return frequencies;
  }
  const double low = sizes.number(at + "low_freq_factor", {}, 1e-6, 1e6);
  const double high = sizes.number(at + "high_freq_factor", {}, 1e-6, 1e6);
  const double original = sizes.size(at + "original_max_position_embeddings");
  sizes.require(low < high, at + "high_freq_factor", "more than low_freq_factor", high);
  for (float& f : frequencies) {
    const double wave = 2 * std::numbers::pi / f;
    const double smooth = std::clamp((original / wave - low) / (high - low), 0.0, 1.0);
    f = static_cast<float>((1 - smooth) * f / factor + smooth * f);
  }
  return frequencies;
}

// All tensors of model.safetensors, or of the shards that its index names.
std::map<std::string, std::pair<Tensor, const TensorFile*>> open_shards(const std::string& folder, Model& m) {
  std::set<std::string> names = {"model.safetensors"};
  const std::string index = folder + "/model.safetensors.index.json";
  if (exists(index)) {
    const Config json(index);
    simdjson::dom::object map;
    if (json.root()["weight_map"].get(map)) json.refuse("key weight_map", "an object", "none");
    names.clear();
    for (const auto& [tensor, file] : map) {
      std::string_view name;
      if (file.get(name) || name.empty() || name.find('/') != name.npos || name.starts_with("."))
        json.refuse("tensor " + std::string(tensor), "the name of a file of this folder",
                    simdjson::minify(file));
      names.emplace(name);
    }
  }
  std::map<std::string, std::pair<Tensor, const TensorFile*>> tensors;
  for (const std::string& name : names) {
    m.files.push_back(read_tensors(folder + "/" + name));
    for (const auto& [tensor, value] : m.files.back().tensors)
      if (!tensors.emplace(tensor, std::pair(value, &m.files.back())).second)
        fail(Exit::input,
             "%s/%s: expected every tensor once, found '%.80s' in two files; fetch the model again",
             folder.c_str(), name.c_str(), tensor.c_str());
  }
  return tensors;
}

// A weight of bitsandbytes' NF4: packed codes under its name, of whatever type; beside it code book, scales,
// and what they mean, as JSON.
View read_nf4(Model& m, const std::string& name, int64_t rows, int64_t cols, auto&& take, auto&& refuse) {
  const auto numbers = [&](const std::string& part, int64_t count) {
    const Tensor& t = take(name + part);
    m.numbers.emplace_back(count);
    std::vector<float>& x = m.numbers.back();
    if (t.type != "F32" || t.bytes != 4 * count) refuse(name + part, format("F32 [%ld]", count), t.type);
    memcpy(x.data(), t.data, t.bytes);
    if (!std::all_of(x.begin(), x.end(), [](float f) { return std::fabs(f) <= 1e12f; }))
      refuse(name + part, "finite numbers", "others, or some above 1e12");
    return x.data();
  };
  const auto bytes = [&](const std::string& part, int64_t count) {
    const Tensor& t = take(name + part);
    if (t.bytes != count) refuse(name + part, format("%ld bytes", count), std::to_string(t.bytes));
    return reinterpret_cast<const uint8_t*>(t.data);
  };
  const Tensor& text = take(name + nf4_state);
  const Config state(m.path + ": tensor " + name + nf4_state,
                     {reinterpret_cast<const char*>(text.data), static_cast<size_t>(text.bytes)});
  const Sizes<Config> sizes{state};
  const auto exactly = [&](const std::string& key, int64_t n) {
    sizes.require(state.integer(key) == n, key, std::to_string(n), state.integer(key));
  };
  exactly("blocksize", nf4_block), exactly("shape/0", rows), exactly("shape/1", cols);
  const int64_t blocks = (rows * cols + nf4_block - 1) / nf4_block;
  const bool nested = take(name + ".absmax").type == "U8";
  Nf4 w{};
  w.codes = bytes("", (rows * cols + 1) / 2), w.book = numbers(".quant_map", 16);
  if (nested) {
    exactly("nested_blocksize", nf4_nested_block);
    w.scale_codes = bytes(".absmax", blocks);
    w.scale_map = numbers(".nested_quant_map", 256);
    w.nested = numbers(".nested_absmax", (blocks + nf4_nested_block - 1) / nf4_nested_block);
    w.offset = static_cast<float>(sizes.number("nested_offset", {}, -1e12, 1e12));
  } else {
    w.absmax = numbers(".absmax", blocks);
  }
  m.nf4.push_back(w);
  return {&m.nf4.back(), Type::nf4, rows, cols, cols};
}

}  // namespace

void read_folder(const std::string& folder, Model& m) {
  const Config config(folder + "/config.json");
  const Sizes<Config> sizes{config};
  sizes.fill(m, hugging_face_keys);
  const std::string act = config.text("hidden_act", "silu");
  sizes.require(act == "silu", "hidden_act", "silu", act);
  for (const char* key : {"attention_bias", "mlp_bias"})
    sizes.require(!config.flag(key, false), key, "false", "true");
  if (config.has("quantization_config")) {
    const std::string at = "quantization_config/", method = config.text(at + "quant_method");
    sizes.require(method == "bitsandbytes" && config.flag(at + "load_in_4bit", false) &&
                      config.text(at + "bnb_4bit_quant_type", "fp4") == "nf4",
                  at + "quant_method", "bitsandbytes with load_in_4bit and nf4", method);
  }
  m.vocabulary = sizes.size("vocab_size");
  m.turns.halves = true;
  m.config = simdjson::minify(config.root());
  fill_turns(m, scaled_frequencies(config, m));

  const auto tensors = open_shards(folder, m);
  const std::string prefix = tensors.count("model.embed_tokens.weight") ? "model." : "";
  std::set<std::string> used;
  const auto find = [&](const std::string& name) -> const Tensor& {
    const auto found = tensors.find(name);
    if (found == tensors.end())
      fail(Exit::input, "%s: expected tensor '%s', found none; fetch the model again", folder.c_str(),
           name.c_str());
    used.insert(name);
    return found->second.first;
  };
  const auto refuse = [&](const std::string& name, const std::string& expected, const std::string& what) {
    fail(Exit::input, "%s: tensor '%s': expected %s, found %s; fetch the model again, or pass another",
         tensors.at(name).second->file.path().c_str(), name.c_str(), expected.c_str(), what.c_str());
  };
  each_weight(m, [&](View& w, int64_t l, auto, const char* part, int64_t rows, int64_t cols) {
    const std::string name = prefix + (l < 0 ? "" : format("layers.%ld.", l)) + part + ".weight";
    if (rows != 1 && tensors.count(name + nf4_state)) {
      w = read_nf4(m, name, rows, cols, find, refuse);
      return;
    }
    const Tensor& t = find(name);
    const bool norm = rows == 1;
    if (t.shape != (norm ? std::vector{cols} : std::vector{rows, cols})) {
      std::string shape;
      for (const int64_t n : t.shape) shape += (shape.empty() ? "" : " x ") + std::to_string(n);
      refuse(name, norm ? std::to_string(cols) : format("%ld x %ld (by config.json)", rows, cols), shape);
    }
    const auto type = plain_type(t.type);
    if (!type) refuse(name, "type F32, F16 or BF16", t.type);
    if (const int64_t bad = first_not_finite(*type, t.data, t.bytes); bad >= 0)
      refuse(name, "finite numbers", format("NaN or infinity in value %ld", bad));
    w = {const_cast<std::byte*>(t.data), *type, rows, cols, cols};
    if (!norm) return;
    m.numbers.push_back(decoded(w));
    w = {m.numbers.back().data(), Type::f32, 1, cols, cols};
  });
  for (const auto& [name, from] : tensors)
    if (!used.count(name) && name != "lm_head.weight" && !name.ends_with("rotary_emb.inv_freq"))
      fail(Exit::input, "%s: expected only the tensors of a llama, found '%.80s'; pass another model",
           from.second->file.path().c_str(), name.c_str());
}

}  // namespace quest
