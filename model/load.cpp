// A model file or folder -> Model: sizes come from the metadata, every tensor is checked against them,
// weights stay in the map.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numbers>
#include <set>
#include <sstream>

#include "kernels/base/hash.h"
#include "kernels/tile.h"
#include "model/config.h"
#include "model/gguf.h"
#include "model/llama.h"
#include "model/tensors.h"

namespace quest {

namespace {

constexpr int64_t position_limit = 8192;  // rows of the table of turns

// The number of the first block (of one value, in plain types) with NaN or infinity in it; -1 when there is
// none. Looks at the exponents of the block's 16-bit floats: its value, or scale and least value, or the
// upper half of an fp32.
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

// What the same size is called by llama.cpp and by Hugging Face.
struct Keys {
  const char *architecture, *layers, *width, *mlp, *positions, *heads, *kv_heads, *head, *eps, *rope_base;
};
constexpr Keys gguf_keys{
    "general.architecture",          "llama.block_count",          "llama.embedding_length",
    "llama.feed_forward_length",     "llama.context_length",       "llama.attention.head_count",
    "llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base"};
constexpr Keys hugging_face_keys{"model_type",
                                 "num_hidden_layers",
                                 "hidden_size",
                                 "intermediate_size",
                                 "max_position_embeddings",
                                 "num_attention_heads",
                                 "num_key_value_heads",
                                 "head_dim",
                                 "rms_norm_eps",
                                 "rope_theta"};

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
    m.width = size(k.width);
    m.mlp = size(k.mlp);
    m.max_positions = std::min(size(k.positions), position_limit);
    auto& [heads, kv_heads, head] = m.heads;
    heads = size(k.heads);
    kv_heads = size(k.kv_heads, heads);
    require(heads % kv_heads == 0, k.kv_heads, "a divisor of the heads", kv_heads);
    require(m.width % heads == 0 || from.has(k.head), k.heads, "a divisor of the width", heads);
    head = size(k.head, m.width / heads);
    require(head % 2 == 0, k.head, "an even number", head);
    m.eps = number(k.eps, {}, 1e-12, 1);
  }
};

// Frequencies of the pairs as transformers computes them: rounded to fp32.
std::vector<float> plain_frequencies(const Model& m, double base) {
  std::vector<float> f;
  for (int64_t j = 0; j < m.heads.size; j += 2)
    f.push_back(1.0f / float(std::pow(base, double(float(j) / float(m.heads.size)))));
  return f;
}

// The angle is rounded to fp32, then its cosine and sine.
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

// take(layer or -1, llama.cpp's name, Hugging Face's name, rows, cols): a tensor, with .weight behind its
// name.
void take_weights(Model& m, auto&& take) {
  const int64_t d = m.width, q = m.q_width(), kv = m.kv_width() / 2;
  m.embedding = take(-1, "token_embd", "embed_tokens", m.vocabulary, d);
  m.final_norm = take(-1, "output_norm", "norm", 1, d);
  for (int64_t l = 0; l < m.layers; ++l)
    m.layer.push_back(
        {take(l, "attn_norm", "input_layernorm", 1, d), take(l, "attn_q", "self_attn.q_proj", q, d),
         take(l, "attn_k", "self_attn.k_proj", kv, d), take(l, "attn_v", "self_attn.v_proj", kv, d),
         take(l, "attn_output", "self_attn.o_proj", d, q),
         take(l, "ffn_norm", "post_attention_layernorm", 1, d),
         take(l, "ffn_gate", "mlp.gate_proj", m.mlp, d), take(l, "ffn_up", "mlp.up_proj", m.mlp, d),
         take(l, "ffn_down", "mlp.down_proj", d, m.mlp)});
}

// ---- GGUF

void read_gguf(const Gguf& gguf, Model& m) {
  const Sizes<Gguf> sizes{gguf};
  sizes.fill(m, gguf_keys);
  sizes.require(gguf.integer("split.count", 1) <= 1, "split.count", "a model in one file", "several");
  m.name = gguf.text("general.name", "");
  const int64_t head = m.heads.size;
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"})
    sizes.require(sizes.size(key, head) == head, key, format("the head size %ld", head),
                  sizes.size(key, head));

  std::set<std::string_view> used = {"output.weight"};  // the language model's head is not needed
  const auto find = [&](const std::string& name, int64_t rows, int64_t cols) -> View {
    const std::string place = "tensor " + name, right = format("%ld x %ld", cols, rows);
    const Gguf::Tensor* t = gguf.find(name);
    if (!t) gguf.refuse(place, "it in every llama model", "none", "pass a complete model");
    used.insert(t->name);
    const std::string found =
        format("%ld x %ld%s", t->ne[0], t->ne[1], t->ne[2] * t->ne[3] > 1 ? " x more" : "");
    if (found != right) gguf.refuse(place, right + " (inputs x outputs, by the metadata)", found);
    if (rows == 1 && t->type != Type::f32)
      gguf.refuse(place, "numbers of type F32", "another type", "convert the model");
    if (const int64_t bad = first_not_finite(t->type, t->data, t->bytes); bad >= 0)
      gguf.refuse(place, "finite numbers", format("NaN or infinity in value or block %ld", bad));
    return {const_cast<std::byte*>(t->data), t->type, rows, cols, cols};
  };
  const Gguf::Tensor* embedding = gguf.find("token_embd.weight");
  m.vocabulary = gguf.integer("llama.vocab_size", embedding ? embedding->ne[1] : 0);
  take_weights(m, [&](int64_t l, const char* name, const char*, int64_t rows, int64_t cols) {
    return find((l < 0 ? "" : format("blk.%ld.", l)) + name + ".weight", rows, cols);
  });
  const char* tokens = "tokenizer.ggml.tokens";
  if (const int64_t count = gguf.has(tokens) ? gguf.texts(tokens).size() : 0; count && count != m.vocabulary)
    gguf.refuse("tensor token_embd.weight", format("%ld rows, one a token", count),
                std::to_string(m.vocabulary));

  std::vector<float> frequencies = plain_frequencies(m, sizes.number("llama.rope.freq_base", 1e4, 1, 1e12));
  const std::string scaling = "llama.rope.scaling.";
  const double factor = sizes.number(scaling + "factor", 1, 1e-6, 1e6);
  const std::string type = gguf.text(scaling + "type", factor == 1 ? "none" : "linear");
  sizes.require(type == "none" || type == "linear", scaling + "type", "none or linear", type);
  for (float& f : frequencies)
    if (type == "linear") f /= float(factor);
  if (gguf.find("rope_freqs.weight")) {  // Llama 3's scaling: what each frequency is divided by
    const View divisors = find("rope_freqs.weight", 1, head / 2);
    for (int64_t j = 0; j < head / 2; ++j) {
      const float divisor = static_cast<const float*>(divisors.data)[j];
      if (!(divisor > 0)) gguf.refuse("tensor rope_freqs.weight", "numbers above 0", format("%g", divisor));
      frequencies[j] /= divisor;
    }
  }
  fill_turns(m, frequencies);
  for (const Gguf::Tensor& t : gguf.tensors())
    if (!used.count(t.name))
      gguf.refuse("tensor " + std::string(t.name), "only the tensors of a llama", "this one",
                  "pass another model");
}

// ---- Hugging Face folders

// rope_parameters (transformers 5) or rope_theta with rope_scaling. llama3: long waves are stretched by the
// factor, short ones stay, those between change smoothly.
std::vector<float> scaled_frequencies(const Config& config, const Model& m) {
  const Sizes<Config> sizes{config};
  const std::string at = config.has("rope_parameters") ? "rope_parameters/" : "rope_scaling/";
  const std::string base = config.has(at + "rope_theta") ? at + "rope_theta" : "rope_theta";
  std::vector<float> frequencies = plain_frequencies(m, sizes.number(base, 1e4, 1, 1e12));
  const std::string type = config.text(at + "rope_type", config.text(at + "type", "default"));
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

void read_folder(const std::string& folder, Model& m) {
  const Config config(folder + "/config.json");
  const Sizes<Config> sizes{config};
  sizes.fill(m, hugging_face_keys);
  for (const auto& [key, right] : {std::pair("hidden_act", "silu")})
    sizes.require(config.text(key, right) == right, key, right, config.text(key, right));
  for (const char* key : {"attention_bias", "mlp_bias"})
    sizes.require(!config.flag(key, false), key, "false", "true");
  sizes.require(!config.has("quantization_config"), "quantization_config", "none", "one");
  m.vocabulary = sizes.size("vocab_size");
  m.turns.halves = true;
  fill_turns(m, scaled_frequencies(config, m));

  const auto tensors = open_shards(folder, m);
  const std::string prefix = tensors.count("model.embed_tokens.weight") ? "model." : "";
  std::set<std::string> used;
  take_weights(m, [&](int64_t l, const char*, const char* name, int64_t rows, int64_t cols) -> View {
    const std::string full = prefix + (l < 0 ? "" : format("layers.%ld.", l)) + name + ".weight";
    const auto found = tensors.find(full);
    if (found == tensors.end())
      fail(Exit::input, "%s: expected tensor '%s' of every llama, found none; fetch the model again",
           folder.c_str(), full.c_str());
    used.insert(full);
    const auto& [t, file] = found->second;
    const auto refuse = [&](const std::string& expected, const std::string& what) {
      fail(Exit::input, "%s: tensor '%s': expected %s, found %s; fetch the model again, or pass another",
           file->file.path().c_str(), full.c_str(), expected.c_str(), what.c_str());
    };
    const bool norm = rows == 1;
    if (t.shape != (norm ? std::vector{cols} : std::vector{rows, cols})) {
      std::string shape;
      for (const int64_t n : t.shape) shape += (shape.empty() ? "" : " x ") + std::to_string(n);
      refuse(norm ? std::to_string(cols) : format("%ld x %ld (by config.json)", rows, cols), shape);
    }
    if (t.type != "F32" && t.type != "F16" && t.type != "BF16") refuse("type F32, F16 or BF16", t.type);
    const Type type = t.type == "F32" ? Type::f32 : t.type == "F16" ? Type::f16 : Type::bf16;
    if (const int64_t bad = first_not_finite(type, t.data, t.bytes); bad >= 0)
      refuse("finite numbers", format("NaN or infinity in value %ld", bad));
    if (!norm) return {const_cast<std::byte*>(t.data), type, rows, cols, cols};
    m.numbers.emplace_back(cols);
    rows_portable.decode[static_cast<int>(type)](t.data, 0, cols, m.numbers.back().data());
    return {m.numbers.back().data(), Type::f32, 1, cols, cols};
  });
  for (const auto& [name, from] : tensors)
    if (!used.count(name) && name != "lm_head.weight" && !name.ends_with("rotary_emb.inv_freq"))
      fail(Exit::input, "%s: expected only the tensors of a llama, found '%s'; pass another model",
           from.second->file.path().c_str(), name.c_str());
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& path) {
  auto m = std::make_unique<Model>();
  m->path = path;
  if (std::filesystem::is_directory(path)) {
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
  return m;
}

}  // namespace quest
