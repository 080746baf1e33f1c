// Writes GGUF files for tests: the container piece by piece (so that any piece can lie), and a tiny random
// LLaMA with a byte-level vocabulary of its own.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/random.h"
#include "kernels/base/words.h"
#include "tests/kernels/encode.h"

namespace quest::testing_gguf {

template <class T>
inline std::string raw(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string raw_text(std::string_view text) { return raw<uint64_t>(text.size()) + std::string(text); }

// Everything is public: a test changes what it wants to be wrong, then calls bytes().
struct GgufWriter {
  struct Entry {
    std::string key;
    uint32_t type;
    std::string value;
  };
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<uint64_t> ne;
    std::string data;
    int64_t offset_error = 0;
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  int64_t tensor_count_error = 0, entry_count_error = 0;
  uint64_t alignment = 32;  // of the data; write the key general.alignment too when it is another
  std::vector<Entry> entries;
  std::vector<Tensor> tensors;

  void integer(const std::string& key, uint32_t v) { entries.push_back({key, 4, raw(v)}); }
  void number(const std::string& key, float v) { entries.push_back({key, 6, raw(v)}); }
  void flag(const std::string& key, bool v) { entries.push_back({key, 7, raw<uint8_t>(v)}); }
  void text(const std::string& key, std::string_view v) { entries.push_back({key, 8, raw_text(v)}); }
  void texts(const std::string& key, const std::vector<std::string>& list) {
    std::string value = raw<uint32_t>(8) + raw<uint64_t>(list.size());
    for (const std::string& s : list) value += raw_text(s);
    entries.push_back({key, 9, value});
  }
  void integers(const std::string& key, const std::vector<int32_t>& list) {
    std::string value = raw<uint32_t>(5) + raw<uint64_t>(list.size());
    for (int32_t v : list) value += raw(v);
    entries.push_back({key, 9, value});
  }

  Entry& entry(std::string_view key) {
    return *std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
  }
  void remove(std::string_view key) {
    std::erase_if(entries, [&](const Entry& e) { return e.key == key; });
  }
  Tensor& tensor(std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
  }
  void remove_tensor(std::string_view name) {
    std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
  }

  std::string bytes() const {
    std::string out = magic + raw(version) +
                      raw<uint64_t>(tensors.size() + static_cast<uint64_t>(tensor_count_error)) +
                      raw<uint64_t>(entries.size() + static_cast<uint64_t>(entry_count_error));
    for (const Entry& e : entries) out += raw_text(e.key) + raw(e.type) + e.value;
    std::string data;
    for (const Tensor& t : tensors) {
      out += raw_text(t.name) + raw<uint32_t>(static_cast<uint32_t>(t.ne.size()));
      for (uint64_t n : t.ne) out += raw(n);
      out += raw(t.type) + raw<uint64_t>(data.size() + static_cast<uint64_t>(t.offset_error));
      data += t.data;
      data.resize((data.size() + alignment - 1) / alignment * alignment);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

// The character that stands for a byte in byte-level vocabularies (GPT-2): itself, or U+0100 + n for the 68
// others.
inline std::string byte_character(int byte) {
  const auto plain = [](int b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad); };
  int code = byte;
  if (!plain(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += !plain(b);
  }
  std::string out;
  append_utf8(out, code);
  return out;
}

// 0 is the control token <|endoftext|>, 1 + b is byte b, then one token for each merge: 257 + i.
inline std::vector<std::string> tiny_merges() {
  return {"Ġ t", "h e",  "Ġt he", "i n", "e r", "Ġ Ġ",   "o n", "Ġ a",
          "a n", "in g", "l l",   "' s", "Ã ¤", "ĠĠ ĠĠ", "t h"};
}

inline void add_tiny_vocabulary(GgufWriter& w, const std::vector<std::string>& merges = tiny_merges()) {
  std::vector<std::string> tokens = {"<|endoftext|>"};
  std::vector<int32_t> types = {3};
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_character(b));
  for (std::string merge : merges) tokens.push_back(merge.erase(merge.find(' '), 1));
  types.resize(tokens.size(), 1);
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", "smollm");
  w.texts("tokenizer.ggml.tokens", tokens);
  w.integers("tokenizer.ggml.token_type", types);
  w.texts("tokenizer.ggml.merges", merges);
  w.integer("tokenizer.ggml.bos_token_id", 0);
  w.integer("tokenizer.ggml.eos_token_id", 0);
  w.flag("tokenizer.ggml.add_bos_token", false);
}

inline std::string half(float v) { return raw(to_f16(v)); }

// Rows of `values` (a multiple of 32 long for packed types) in one of the ggml types; returns its bytes.
inline std::string pack(Type type, const std::vector<float>& values) {
  std::string out;
  if (type == Type::f32) return {reinterpret_cast<const char*>(values.data()), values.size() * 4};
  if (type != Type::f16 && type != Type::bf16 && type != Type::q4_1 && type != Type::q8_0) {
    const std::vector<uint8_t> blocks = random_blocks(type, std::ssize(values));
    return {blocks.begin(), blocks.end()};
  }
  if (type == Type::f16)
    for (float v : values) out += half(v);
  if (type == Type::bf16)
    for (float v : values) {  // round to nearest even
      uint32_t bits;
      std::memcpy(&bits, &v, 4);
      out += raw(static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16));
    }
  if (type == Type::q4_1 || type == Type::q8_0)
    for (size_t b = 0; b < values.size(); b += 32) {
      const float* x = &values[b];
      const auto [low, high] = std::minmax_element(x, x + 32);
      const bool four = type == Type::q4_1;
      const float d = four ? (*high - *low) / 15 : std::max(std::fabs(*low), std::fabs(*high)) / 127;
      const float inverse = d > 0 ? 1 / d : 0;
      out += half(d);
      if (four) out += half(*low);
      const auto nibble = [&, low = low](int i) {
        return std::min(15, static_cast<int>((x[i] - *low) * inverse + 0.5f));
      };
      for (int i = 0; i < (four ? 16 : 32); ++i)
        out += static_cast<char>(four ? nibble(i) | nibble(i + 16) << 4 : std::lround(x[i] * inverse));
    }
  return out;
}

inline uint32_t ggml_type(Type type) {
  constexpr uint32_t ids[] = {0, 1, 30, 2, 3, 6, 7, 8, 12, 13, 14};
  return ids[static_cast<int>(type)];
}

struct TinyModel {
  uint32_t layers = 2, width = 64, heads = 4, kv_heads = 2, mlp = 96, max_positions = 512;
  Type type = Type::q4_1;  // of the linear layers
  Type embedding =
      Type::q8_0;  // of the embedding; weights of type f32, f16, bf16 go with an embedding of any type
  uint64_t seed = 1;
};

// Linear weights ~ N(0, 1/in), embedding ~ N(0, 0.3^2), norms 1 +- 0.1: activations stay of order 1.
inline GgufWriter tiny_model(const TinyModel& o = {}) {
  GgufWriter w;
  w.text("general.architecture", "llama");
  w.text("general.name", "tiny random LLaMA");
  w.integer("llama.block_count", o.layers);
  w.integer("llama.context_length", o.max_positions);
  w.integer("llama.embedding_length", o.width);
  w.integer("llama.feed_forward_length", o.mlp);
  w.integer("llama.attention.head_count", o.heads);
  w.integer("llama.attention.head_count_kv", o.kv_heads);
  w.number("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.number("llama.rope.freq_base", 10000);
  w.integer("llama.rope.dimension_count", o.width / o.heads);
  add_tiny_vocabulary(w);

  const auto add = [&](const std::string& name, Type type, uint32_t in, uint32_t out, double mean,
                       double deviation) {
    std::vector<float> values(size_t{in} * out);
    for (size_t i = 0; i < values.size(); ++i) {  // Box-Muller
      const uint64_t stream = w.tensors.size();
      const double u = random_uniform(o.seed, stream, 2 * i), v = random_uniform(o.seed, stream, 2 * i + 1);
      values[i] = static_cast<float>(mean + deviation * std::sqrt(-2 * std::log(u)) *
                                                std::cos(2 * std::numbers::pi * v));
    }
    std::vector<uint64_t> ne = {in};
    if (mean == 0) ne.push_back(out);
    w.tensors.push_back({name, ggml_type(type), ne, pack(type, values)});
  };
  const auto linear = [&](const std::string& name, uint32_t in, uint32_t out) {
    add(name, o.type, in, out, 0, 1 / std::sqrt(in));
  };
  const uint32_t d = o.width, kv = o.width / o.heads * o.kv_heads;
  add("token_embd.weight", o.embedding, d, static_cast<uint32_t>(257 + tiny_merges().size()), 0, 0.3);
  for (uint32_t l = 0; l < o.layers; ++l) {
    const std::string block = "blk." + std::to_string(l) + ".";
    add(block + "attn_norm.weight", Type::f32, d, 1, 1, 0.1);
    linear(block + "attn_q.weight", d, d);
    linear(block + "attn_k.weight", d, kv);
    linear(block + "attn_v.weight", d, kv);
    linear(block + "attn_output.weight", d, d);
    add(block + "ffn_norm.weight", Type::f32, d, 1, 1, 0.1);
    linear(block + "ffn_gate.weight", d, o.mlp);
    linear(block + "ffn_up.weight", d, o.mlp);
    linear(block + "ffn_down.weight", o.mlp, d);
  }
  add("output_norm.weight", Type::f32, d, 1, 1, 0.1);
  return w;
}

}  // namespace quest::testing_gguf

namespace quest {

using testing_gguf::TinyModel;

// A model file for end-to-end tests: returns `path`.
inline std::string write_tiny_model(const std::string& path, const TinyModel& options = {}) {
  write_file(path, testing_gguf::tiny_model(options).bytes());
  return path;
}

}  // namespace quest
