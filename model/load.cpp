// A GGUF, or the config.json and safetensors files of a Hugging Face folder -> Model. The weights stay
// mapped.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <numbers>
#include <set>

#include "kernels/base/hash.h"
#include "kernels/base/json.h"
#include "kernels/base/random.h"
#include "kernels/tile.h"
#include "model/gguf.h"
#include "model/llama.h"

namespace quest {

namespace {

// ---- both

// Fills the sizes of the model, within their bounds.
void read_sizes(const Config& config, bool gguf, Model& m) {
  constexpr int64_t position_limit = 8192;  // rows of the table of turns
  const auto either = [&](const char* of_gguf, const char* of_folder) { return gguf ? of_gguf : of_folder; };
  const std::string architecture = either("general.architecture", "model_type");
  config.require(config.text(architecture) == "llama", architecture, "llama");
  const std::string layers = either("llama.block_count", "num_hidden_layers");
  m.layers = config.size(layers);
  config.require(m.layers <= 4096, layers, "at most 4096 layers");
  m.layer.resize(m.layers);
  m.width = config.size(either("llama.embedding_length", "hidden_size"));
  m.mlp = config.size(either("llama.feed_forward_length", "intermediate_size"));
  m.max_positions =
      std::min(config.size(either("llama.context_length", "max_position_embeddings")), position_limit);
  const std::string heads = either("llama.attention.head_count", "num_attention_heads");
  const std::string kv_heads = either("llama.attention.head_count_kv", "num_key_value_heads");
  const std::string head = either("llama.attention.key_length", "head_dim");
  Heads& h = m.heads;
  h.heads = config.size(heads);
  h.kv_heads = config.size(kv_heads, h.heads);
  config.require(h.heads % h.kv_heads == 0, kv_heads, "a divisor of the heads");
  config.require(m.width % h.heads == 0 || config.has(head), heads, "a divisor of the width");
  h.size = config.size(head, m.width / h.heads);
  config.require(h.size % 2 == 0 && h.size <= 1024, head, "an even number of at most 1024");
  m.eps = config.number(either("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"), {}, 1e-12, 1);
}

// The number of the first block (of one value, in plain types) with NaN or infinity in it; -1 when there is
// none. Looks at the exponents of a block's 16-bit floats: its value, or scale and least value, or the upper
// half of an fp32.
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

// The tensors of the model's files by name; all members throw Error(input).
class Weights {
 public:
  explicit Weights(Model& m) : model_(m) {
    for (const TensorFile& f : m.files)
      for (const auto& [name, tensor] : f.tensors)
        if (!found_.emplace(name, Found{&tensor, &f.file, false}).second)
          fail(Exit::input,
               "%s: expected every tensor once, found '%.80s' in two files; fetch the model again",
               f.file.path().c_str(), name.c_str());
  }

  bool has(const std::string& name) const { return found_.count(name) != 0; }

  const Tensor& take(const std::string& name) {
    const auto found = found_.find(name);
    if (found == found_.end())
      fail(Exit::input, "%s: expected tensor '%s', found none; fetch the model again", model_.path.c_str(),
           name.c_str());
    found->second.taken = true;
    return *found->second.tensor;
  }

  // A weight with finite numbers. One row of them is decoded to f32.
  View take(const std::string& name, int64_t rows, int64_t cols) {
    const Tensor& t = take(name);
    const auto spelled = [](const std::vector<int64_t>& shape) {
      std::string out;
      for (const int64_t n : shape) out += (out.empty() ? "" : " x ") + std::to_string(n);
      return out;
    };
    const std::vector<int64_t> shape = rows == 1 ? std::vector{cols} : std::vector{rows, cols};
    if (t.shape != shape) refuse(name, spelled(shape) + " (by the model's sizes)", spelled(t.shape));
    const auto type = type_named(t.type);
    if (!type) refuse(name, "type F32, F16 or BF16", t.type);
    if (const int64_t bad = first_not_finite(*type, t.data, t.bytes); bad >= 0)
      refuse(name, "finite numbers", format("NaN or infinity in value or block %ld", bad));
    const View w{const_cast<std::byte*>(t.data), *type, rows, cols, cols};
    if (rows > 1) return w;
    model_.numbers.push_back(decoded(w));
    return {model_.numbers.back().data(), Type::f32, rows, cols, cols};
  }

  // But for those that a llama's embeddings do not need.
  void expect_all_taken() const {
    for (const auto& [name, found] : found_)
      if (!found.taken && name != "output.weight" && name != "lm_head.weight" &&
          !name.ends_with("rotary_emb.inv_freq"))
        fail(Exit::input, "%s: expected only the tensors of a llama, found '%.80s'; pass another model",
             found.file->path().c_str(), name.c_str());
  }

  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& found) const {
    fail(Exit::input, "%s: tensor '%.80s': expected %s, found %s; fetch the model again, or pass another",
         found_.at(name).file->path().c_str(), name.c_str(), expected.c_str(), found.c_str());
  }

 private:
  struct Found {
    const Tensor* tensor;
    const MappedFile* file;
    bool taken;
  };
  Model& model_;
  std::map<std::string, Found> found_;
};

// Frequencies of rope's pairs as transformers computes them: rounded to fp32.
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

// ---- GGUF

void read_gguf(const Gguf& gguf, Model& m) {
  read_sizes(gguf, true, m);
  gguf.require(gguf.integer("split.count", 1) <= 1, "split.count", "a model in one file");
  m.name = gguf.text("general.name", "");
  const int64_t head = m.heads.size;
  for (const char* key : {"llama.attention.value_length", "llama.rope.dimension_count"})
    gguf.require(gguf.size(key, head) == head, key, format("the head size %ld", head));

  Weights weights(m);
  m.vocabulary = gguf.integer("llama.vocab_size", weights.take("token_embd.weight").shape[0]);
  each_weight(m, [&](View& w, int64_t l, const char* name, auto, int64_t rows, int64_t cols) {
    w = weights.take((l < 0 ? "" : format("blk.%ld.", l)) + name + ".weight", rows, cols);
  });
  const char* tokens = "tokenizer.ggml.tokens";
  if (const int64_t count = gguf.has(tokens) ? gguf.list<std::string_view>(tokens).size() : 0;
      count && count != m.vocabulary)
    gguf.refuse("tensor token_embd.weight", format("%ld rows, one a token", count),
                std::to_string(m.vocabulary));

  const double base = gguf.number("llama.rope.freq_base", 1e4, 1, 1e12);
  std::vector<float> frequencies = plain_frequencies(m, base);
  const std::string scaling = "llama.rope.scaling.";
  const double old = gguf.number("llama.rope.scale_linear", 1, 0, 1e6);  // of 2023
  const double factor = gguf.number(scaling + "factor", old == 0 ? 1 : old, 1e-6, 1e6);
  const std::string type = gguf.text(scaling + "type", factor == 1 ? "none" : "linear");
  gguf.require(type == "none" || type == "linear", scaling + "type", "none or linear");
  for (float& f : frequencies)
    if (type == "linear") f /= float(factor);
  const std::string divisors = "rope_freqs.weight";  // Llama 3's scaling: what each frequency is divided by
  if (weights.has(divisors)) {
    const auto* divisor = static_cast<const float*>(weights.take(divisors, 1, head / 2).data);
    for (float& f : frequencies) {
      if (!(*divisor >= 1e-6f)) weights.refuse(divisors, "numbers of at least 1e-6", format("%g", *divisor));
      f /= *divisor++;
    }
  } else {
    JsonWriter j;
    j.object().key("architectures").array().value("LlamaForCausalLM").end().field("model_type", "llama");
    j.field("num_hidden_layers", m.layers).field("hidden_size", m.width).field("intermediate_size", m.mlp);
    j.field("num_attention_heads", m.heads.heads).field("num_key_value_heads", m.heads.kv_heads);
    j.field("head_dim", head).field("max_position_embeddings", gguf.integer("llama.context_length"));
    j.field("vocab_size", m.vocabulary).field("rms_norm_eps", m.eps).field("rope_theta", base);
    if (type == "linear") j.key("rope_scaling").object().field("type", type).field("factor", factor).end();
    j.field("hidden_act", "silu").field("attention_bias", false).field("mlp_bias", false);
    m.config = j.field("tie_word_embeddings", !weights.has("output.weight"))
                   .field("torch_dtype", "float32")
                   .end()
                   .text();
  }
  fill_turns(m, frequencies);
  weights.expect_all_taken();
}

// ---- Hugging Face folders

// rope_parameters (transformers 5) or rope_theta with rope_scaling. llama3: long waves are stretched by the
// factor, short ones stay, those between change smoothly.
std::vector<float> scaled_frequencies(const Config& config, const Model& m) {
  const std::string at = config.has("rope_parameters") ? "rope_parameters/" : "rope_scaling/";
  const std::string base = config.has(at + "rope_theta") ? at + "rope_theta" : "rope_theta";
  std::vector<float> frequencies = plain_frequencies(m, config.number(base, 1e4, 1, 1e12));
  std::optional<std::string> missing;  // where nothing is said of rope at all
  if (!config.has(at.substr(0, at.size() - 1)) || at == "rope_parameters/") missing = "default";
  const std::string key =
      at + (config.has(at + "type") && !config.has(at + "rope_type") ? "type" : "rope_type");
  const std::string type = config.text(key, missing);
  if (type == "default") return frequencies;
  config.require(type == "linear" || type == "llama3", key, "default, linear or llama3");
  const double factor = config.number(at + "factor", {}, 1e-6, 1e6);
  if (type == "linear") {
    for (float& f : frequencies) f /= float(factor);
    return frequencies;
  }
  const double low = config.number(at + "low_freq_factor", {}, 1e-6, 1e6);
  const double high = config.number(at + "high_freq_factor", {}, 1e-6, 1e6);
  const double original = config.size(at + "original_max_position_embeddings");
  config.require(low < high, at + "high_freq_factor", "more than low_freq_factor");
  for (float& f : frequencies) {
    const double wave = 2 * std::numbers::pi / f;
    const double smooth = std::clamp((original / wave - low) / (high - low), 0.0, 1.0);
    f = static_cast<float>((1 - smooth) * f / factor + smooth * f);
  }
  return frequencies;
}

// model.safetensors, or the shards that its index names.
void open_files(const std::string& folder, Model& m) {
  std::set<std::string> names = {"model.safetensors"};
  const std::string index = folder + "/model.safetensors.index.json";
  if (exists(index)) {
    const Config json(index);
    names.clear();
    for (const auto& [tensor, file] : json.value<simdjson::dom::object>("weight_map", "an object")) {
      std::string_view name;
      if (file.get(name) || name.empty() || name.find('/') != name.npos || name.starts_with("."))
        json.refuse("tensor " + std::string(tensor), "the name of a file of this folder",
                    simdjson::minify(file));
      names.emplace(name);
    }
  }
  for (const std::string& name : names) m.files.push_back(read_tensors(folder + "/" + name));
}

const char* const nf4_state = ".quant_state.bitsandbytes__nf4";

// A weight of bitsandbytes' NF4: packed codes under its name, of whatever type; beside it code book, scales,
// and what they mean, as JSON.
View read_nf4(Model& m, Weights& weights, const std::string& name, int64_t rows, int64_t cols) {
  const auto numbers = [&](const std::string& part, int64_t count) {
    const View v = weights.take(name + part, 1, count);
    const auto* x = static_cast<const float*>(v.data);
    if (!std::all_of(x, x + count, [](float f) { return std::fabs(f) <= 1e12f; }))
      weights.refuse(name + part, "finite numbers", "some above 1e12");
    return x;
  };
  const auto bytes = [&](const std::string& part, int64_t count) {
    const Tensor& t = weights.take(name + part);
    if (t.bytes != count) weights.refuse(name + part, format("%ld bytes", count), std::to_string(t.bytes));
    return reinterpret_cast<const uint8_t*>(t.data);
  };
  const Tensor& text = weights.take(name + nf4_state);
  const Config state(m.path + ": tensor " + name + nf4_state,
                     {reinterpret_cast<const char*>(text.data), static_cast<size_t>(text.bytes)});
  const auto exactly = [&](const std::string& key, int64_t n) {
    state.require(state.integer(key) == n, key, std::to_string(n));
  };
  exactly("blocksize", nf4_block), exactly("shape/0", rows), exactly("shape/1", cols);
  const int64_t blocks = (rows * cols + nf4_block - 1) / nf4_block;
  const bool nested = weights.take(name + ".absmax").type == "U8";
  Nf4 w{};
  w.codes = bytes("", (rows * cols + 1) / 2), w.book = numbers(".quant_map", 16);
  if (nested) {
    exactly("nested_blocksize", nf4_nested_block);
    w.scale_codes = bytes(".absmax", blocks);
    w.scale_map = numbers(".nested_quant_map", 256);
    w.nested = numbers(".nested_absmax", (blocks + nf4_nested_block - 1) / nf4_nested_block);
    w.offset = static_cast<float>(state.number("nested_offset", {}, -1e12, 1e12));
  } else {
    w.absmax = numbers(".absmax", blocks);
  }
  m.nf4.push_back(w);
  return {&m.nf4.back(), Type::nf4, rows, cols, cols};
}

void read_folder(const std::string& folder, Model& m) {
  const Config config(folder + "/config.json");
  read_sizes(config, false, m);
  config.require(config.text("hidden_act", "silu") == "silu", "hidden_act", "silu");
  for (const char* key : {"attention_bias", "mlp_bias"})
    config.require(!config.flag(key, false), key, "false");
  const std::string quantized = "quantization_config", at = quantized + "/";
  config.require(!config.has(quantized) || (config.text(at + "quant_method") == "bitsandbytes" &&
                                            config.flag(at + "load_in_4bit", false) &&
                                            config.text(at + "bnb_4bit_quant_type", "fp4") == "nf4"),
                 quantized, "bitsandbytes with load_in_4bit and nf4");
  m.vocabulary = config.size("vocab_size");
  m.turns.halves = true;
  m.config = simdjson::minify(config.root());
  fill_turns(m, scaled_frequencies(config, m));

  open_files(folder, m);
  Weights weights(m);
  const std::string prefix = weights.has("model.embed_tokens.weight") ? "model." : "";
  each_weight(m, [&](View& w, int64_t l, auto, const char* part, int64_t rows, int64_t cols) {
    const std::string name = prefix + (l < 0 ? "" : format("layers.%ld.", l)) + part + ".weight";
    const bool nf4 = rows > 1 && weights.has(name + nf4_state);
    w = nf4 ? read_nf4(m, weights, name, rows, cols) : weights.take(name, rows, cols);
  });
  weights.expect_all_taken();
}

// ---- without weights

constexpr struct {
  const char* name;
  int layers, width, mlp, heads, kv_heads, head, vocabulary, positions;
} known_models[] = {{"llama-7b", 32, 4096, 11008, 32, 32, 128, 32000, 2048},
                    {"llama-13b", 40, 5120, 13824, 40, 40, 128, 32000, 2048},
                    {"llama-2-70b", 80, 8192, 28672, 64, 8, 128, 32000, 4096},
                    {"llama-3-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192},
                    {"llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, 131072},
                    {"tinyllama-1.1b", 22, 2048, 5632, 32, 4, 64, 32000, 2048},
                    {"smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, 8192},
                    {"smollm2-360m", 32, 960, 2560, 15, 5, 64, 49152, 8192},
                    {"smollm2-1.7b", 24, 2048, 8192, 32, 32, 64, 49152, 8192}};

// The config.json of a known model; anything else is a file.
std::string shape_text(const std::string& name) {
  std::string names;
  for (const auto& k : known_models) {
    if (name == k.name)
      return format(R"({"model_type":"llama","num_hidden_layers":%d,"hidden_size":%d,"intermediate_size":%d,)"
                    R"("num_attention_heads":%d,"num_key_value_heads":%d,"head_dim":%d,"vocab_size":%d,)"
                    R"("max_position_embeddings":%d,"rms_norm_eps":1e-5})",
                    k.layers, k.width, k.mlp, k.heads, k.kv_heads, k.head, k.vocabulary, k.positions);
    names += std::string(k.name) + ", ";
  }
  const std::string path = is_folder(name) ? name + "/config.json" : name;
  if (!exists(path))
    fail(Exit::usage, "--model: expected %sor a config.json, found '%s'", names.c_str(), name.c_str());
  return read_file(path);
}

// ---- NF4 at load

// Every linear layer becomes NF4, quantised from its decoded values.
void quantize_linear_layers(Model& m) {
  each_weight(m, [&](View& w, int64_t layer, auto, auto, int64_t rows, int64_t cols) {
    if (layer < 0 || rows == 1 || w.type == Type::nf4) return;
    const std::vector<float> values = decoded(w);
    m.quantized.push_back(quantize_nf4(values.data(), std::ssize(values)));
    m.nf4.push_back(m.quantized.back().view());
    w = {&m.nf4.back(), Type::nf4, rows, cols, cols};
  });
}

}  // namespace

std::vector<float> decoded(const View& w) {
  std::vector<float> values(w.rows * w.cols);
  rows_portable.decode[static_cast<int>(w.type)](w.data, 0, std::ssize(values), values.data());
  return values;
}

std::unique_ptr<Model> load_shape(const std::string& name, bool nf4) {
  auto m = std::make_unique<Model>();
  const Config config(name, shape_text(name));
  read_sizes(config, false, *m);
  m->vocabulary = config.size("vocab_size");
  m->name = name;
  nf4 = nf4 || config.text("quantization_config/quant_method", "") == "bitsandbytes";
  m->turns.table = {nullptr, Type::f32, m->max_positions, m->heads.size, m->heads.size};
  each_weight(*m, [&](View& w, int64_t layer, auto, auto, int64_t rows, int64_t cols) {
    w = {nullptr, rows == 1 ? Type::f32 : nf4 && layer >= 0 ? Type::nf4 : Type::bf16, rows, cols, cols};
    if (__builtin_mul_overflow(rows, cols, &rows) || rows > int64_t{1} << 48)
      config.refuse("the sizes", "a model that a machine can hold", format("a weight of %ld columns", cols));
  });
  return m;
}

std::unique_ptr<Model> random_model(const std::string& name, Type type) {
  auto m = load_shape(name, type == Type::nf4);
  fill_turns(*m, scaled_frequencies(Config(name, shape_text(name)), *m));
  int64_t tensors = 0;
  const auto bytes = [&](int64_t count, uint64_t mask, uint64_t set) {  // random, of 8 bytes so much
    m->numbers.emplace_back((count + 7) / 8 * 2);
    for (int64_t i = 0; i * 8 < count; ++i) {
      const uint64_t word = (random_bits(1, tensors, i) & mask) | set;
      memcpy(m->numbers.back().data() + 2 * i, &word, 8);
    }
    return m->numbers.back().data();
  };
  each_weight(*m, [&](View& w, int64_t layer, auto, auto, int64_t rows, int64_t cols) {
    ++tensors;
    if (w.type == Type::nf4) {
      const int64_t blocks = (rows * cols + nf4_block - 1) / nf4_block;
      m->quantized.emplace_back();
      Nf4Matrix& q = m->quantized.back();
      q.codes.resize((rows * cols + 1) / 2), q.scale_codes.resize(blocks, 128);
      q.nested.resize((blocks + nf4_nested_block - 1) / nf4_nested_block, 0.01f), q.offset = 0.02f;
      memcpy(q.codes.data(), bytes(q.codes.size(), ~0ull, 0), q.codes.size());
      m->numbers.pop_back();
      m->nf4.push_back(q.view());
      w.data = &m->nf4.back();
    } else if (rows == 1) {
      m->numbers.emplace_back(cols, 1.0f);
      w.data = m->numbers.back().data();
    } else if (layer < 0) {  // bf16 of 0.008 to 0.12, of either sign
      w.data = bytes(rows * cols * 2, 0x81ff81ff81ff81ff, 0x3c003c003c003c00);
    } else {  // any two bytes are a positive f16 below 0.01
      if (cols % format_of(type).elements)
        fail(Exit::usage,
             "%s: expected rows of whole blocks of %d for %s, found %ld columns; take another type",
             name.c_str(), int(format_of(type).elements), format_of(type).name, cols);
      w = {bytes(rows * row_bytes(type, cols), 0x1f1f1f1f1f1f1f1f, 0), type, rows, cols, cols};
    }
  });
  return m;
}

std::unique_ptr<Model> load_model(const std::string& path, bool nf4) {
  auto m = std::make_unique<Model>();
  m->path = path;
  if (is_folder(path)) {
    m->name = std::filesystem::path(path).filename();
    read_folder(path, *m);
    std::string hashes;
    for (const char* name : {"/config.json", "/tokenizer.json", "/tokenizer.model"})
      if (exists(path + name)) hashes += sha256_hex(read_file(path + name));
    for (const TensorFile& f : m->files) hashes += sha256_hex(f.file.text());
    m->sha256 = sha256_hex(hashes);
  } else {
    const MappedFile file(path);
    const Gguf gguf(file);
    m->files.push_back({gguf.tensors, {}, file});
    read_gguf(gguf, *m);
    m->sha256 = sha256_hex(file.text());
  }
  if (nf4) {
    quantize_linear_layers(*m);
    m->sha256 += " as nf4";
  }
  return m;
}

}  // namespace quest
