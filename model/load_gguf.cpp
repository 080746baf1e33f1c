// GGUF -> Model: weights stay in the map.
#include <set>

#include "kernels/base/json.h"
#include "model/load.h"

namespace quest {

static constexpr Keys gguf_keys{
    "general.architecture",          "llama.block_count",          "llama.embedding_length",
    "llama.feed_forward_length",     "llama.context_length",       "llama.attention.head_count",
    "llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.layer_norm_rms_epsilon"};

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
  each_weight(m, [&](View& w, int64_t l, const char* name, auto, int64_t rows, int64_t cols) {
    w = find((l < 0 ? "" : format("blk.%ld.", l)) + name + ".weight", rows, cols);
  });
  const char* tokens = "tokenizer.ggml.tokens";
  if (const int64_t count = gguf.has(tokens) ? gguf.texts(tokens).size() : 0; count && count != m.vocabulary)
    gguf.refuse("tensor token_embd.weight", format("%ld rows, one a token", count),
                std::to_string(m.vocabulary));

  const double base = sizes.number("llama.rope.freq_base", 1e4, 1, 1e12);
  std::vector<float> frequencies = plain_frequencies(m, base);
  const std::string scaling = "llama.rope.scaling.";
  const double old = gguf.number("llama.rope.scale_linear", 1);  // of 2023
  const double factor = sizes.number(scaling + "factor", old == 0 ? 1 : old, 1e-6, 1e6);
  const std::string type = gguf.text(scaling + "type", factor == 1 ? "none" : "linear");
  sizes.require(type == "none" || type == "linear", scaling + "type", "none or linear", type);
  for (float& f : frequencies)
    if (type == "linear") f /= float(factor);
  if (gguf.find("rope_freqs.weight")) {  // Llama 3's scaling: what each frequency is divided by
    const View divisors = find("rope_freqs.weight", 1, head / 2);
    for (int64_t j = 0; j < head / 2; ++j) {
      const float divisor = static_cast<const float*>(divisors.data)[j];
      if (!(divisor >= 1e-6f))
        gguf.refuse("tensor rope_freqs.weight", "numbers of at least 1e-6", format("%g", divisor));
      frequencies[j] /= divisor;
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
    m.config = j.field("tie_word_embeddings", !gguf.find("output.weight"))
                   .field("torch_dtype", "float32")
                   .end()
                   .text();
  }
  fill_turns(m, frequencies);
  for (const Gguf::Tensor& t : gguf.tensors())
    if (!used.count(t.name))
      gguf.refuse("tensor " + std::string(t.name), "only the tensors of a llama", "this one",
                  "pass another model");
}

}  // namespace quest
