// Small valid inputs of every target.
#pragma once
#include <zlib.h>

#include "kernels/base/json.h"
#include "model/save.h"
#include "tests/fuzz/targets.h"
#include "tests/model/gguf_writer.h"

namespace quest::fuzz {

inline std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) out += (i ? separator : "") + parts[i];
  return out;
}
inline std::string written(const std::string& name) { return read_file(folder() + "/" + name); }

inline std::string gguf_seed(bool sentence_piece) {
  TinyModel o;
  o.layers = 1, o.width = 32, o.heads = 2, o.kv_heads = 1, o.mlp = 32, o.max_positions = 8;
  testing_gguf::GgufWriter w = testing_gguf::tiny_model(o);
  if (sentence_piece) {  // as many tokens, one of each byte
    std::vector<std::string> tokens = {"<unk>", "<s>", "\u2581", "a", "b", "ab", "\u2581ab"};
    for (int b = 0; b < 256; ++b) tokens.push_back(format("<0x%02X>", b));
    std::vector<int32_t> kinds = {2, 3, 1, 1, 1, 1, 5};
    kinds.resize(tokens.size(), 6);
    while (tokens.size() < 272) tokens.push_back("t" + std::to_string(tokens.size())), kinds.push_back(1);
    for (const char* key : {"tokens", "token_type", "merges", "pre"}) w.remove(std::string("tokenizer.ggml.") + key);
    w.entry("tokenizer.ggml.model").value = testing_gguf::raw_text("llama");
    w.texts("tokenizer.ggml.tokens", tokens), w.integers("tokenizer.ggml.token_type", kinds);
    std::string scores = testing_gguf::raw<uint32_t>(6) + testing_gguf::raw<uint64_t>(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) scores += testing_gguf::raw(-static_cast<float>(i % 9));
    w.entries.push_back({"tokenizer.ggml.scores", 9, scores});
  }
  return w.bytes();
}

// config.json and model.safetensors of a LLaMA with 2 heads of 2 over 1.
inline std::vector<std::string> folder_seed(bool nf4) {
  static const std::vector<float> numbers(64, 0.25f);
  TensorFile f;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    f.tensors.emplace("model." + name + ".weight", Tensor("F32", shape, numbers.data(), 4 * count));
  };
  add("embed_tokens", {5, 4}), add("norm", {4});
  const std::string l = "layers.0.";
  add(l + "input_layernorm", {4}), add(l + "post_attention_layernorm", {4});
  add(l + "self_attn.q_proj", {4, 4}), add(l + "self_attn.k_proj", {2, 4}), add(l + "self_attn.v_proj", {2, 4});
  add(l + "self_attn.o_proj", {4, 4}), add(l + "mlp.gate_proj", {6, 4}), add(l + "mlp.up_proj", {6, 4});
  add(l + "mlp.down_proj", {4, 6});
  fs::create_directories(folder() + "/seed");
  write_tensors(folder() + "/seed/model.safetensors", f);
  put("seed/config.json", R"({"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 6,
    "max_position_embeddings": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
    "vocab_size": 5, "rope_theta": 10000, "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
    "high_freq_factor": 4, "original_max_position_embeddings": 64}})");
  if (nf4) save_nf4(*load_model(folder() + "/seed"), folder() + "/seed");
  return {written("seed/config.json"), written("seed/model.safetensors")};
}

inline std::vector<std::string> seeds(const std::string& target) {
  const std::string raw_lbl = "{\"uid\": \"a\", \"title\": \"Alpha\", \"content\": \"\\u00e9\"}\n{\"uid\": \"b\", \"title\": \"B\"}\n",
                    raw_trn = "{\"uid\": \"x\", \"title\": \"t\", \"target_ind\": [0, 1], \"target_rel\": [1, 0.5]}\n",
                    raw_tst = "{\"uid\": \"b\", \"title\": \"u\", \"content\": \"v\", \"target_ind\": [0]}\n";
  const std::string tsv = "one text\tl\tm\nanother\tl\nthird thing\tn\n";
  if (target == "gguf") return {gguf_seed(false), gguf_seed(true)};
  if (target == "safetensors") return {folder_seed(false)[1], folder_seed(true)[1]};
  if (target == "folder")
    return {joined(folder_seed(false)), joined(folder_seed(true)),
            joined({folder_seed(false)[0], folder_seed(false)[1], "{\"weight_map\": {\"x\": \"model.safetensors\"}}"})};
  if (target == "tokenizer_json") {
    put("seed.gguf", gguf_seed(false));
    fs::create_directories(folder() + "/t");
    copy_tokenizer(folder() + "/seed.gguf", folder() + "/t");
    std::string bytes;
    for (int b = 0; b < 256; ++b) bytes += format("\"<0x%02X>\": %d, ", b, b + 5);
    return {written("t/tokenizer.json"),
            R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
                "added_tokens": [{"id": 0, "content": "<unk>"}], "model": {"type": "BPE", "byte_fallback": true, "vocab": {)" + bytes +
                R"("<unk>": 0, "a": 1, "b": 2, "ab": 3, "▁": 4}, "merges": ["a b"]}})"};
  }
  if (target == "sentencepiece") {
    put("seed.gguf", gguf_seed(true));
    fs::create_directories(folder() + "/t");
    copy_tokenizer(folder() + "/seed.gguf", folder() + "/t");
    return {written("t/tokenizer.model")};
  }
  if (target == "raw") return {joined({raw_lbl, raw_trn, raw_tst, "0 1\n"})};
  if (target == "sparse")
    return {joined({"Alpha\nB\n", "t\nu\n", "2 2\n0:1.0 1:0.5\n\n", "v\n", "1 2\n1:1\n", "0 0\n"})};
  if (target == "tsv") return {tsv};
  if (target == "json_lines") return {"{\"title\": \"t\", \"content\": \"c\", \"labels\": [\"l\", \"m\"], \"uid\": \"u\"}\n"
                                      "{\"text\": \"v\", \"labels\": [\"m\"]}\n"};
  if (target == "gzip") {
    const std::string path = folder() + "/seed.gz";
    gzFile file = gzopen(path.c_str(), "wb9");
    gzwrite(file, tsv.data(), static_cast<unsigned>(tsv.size()));
    gzclose(file);
    return {written("seed.gz")};
  }
  if (target == "dataset") {
    put("in/lbl.json", raw_lbl), put("in/trn.json", raw_trn), put("in/tst.json", raw_tst);
    put("in/filter_labels_test.txt", "0 1\n");
    import_dataset(folder() + "/in", folder() + "/d", {false, "", false});
    std::vector<std::string> parts;
    for (const char* name : {"meta.json", "labels.text", "labels.ends", "train.text", "train.ends", "train.offsets",
                             "train.labels", "train.own", "test.text", "test.ends", "test.offsets", "test.labels",
                             "test.own", "test.filter.offsets", "test.filter.labels"})
      parts.push_back(written(std::string("d/") + name));
    return {joined(parts)};
  }
  if (target == "hnsw") {
    std::vector<float> v;
    for (int i = 0; i < 36; ++i) v.push_back(static_cast<float>(i % 7) - 3);
    Hnsw({v.data(), 12, 3}).save(folder() + "/index");
    return {joined({written("index"), written("index.meta")})};
  }
  static const std::vector<float> rows(8, 0.5f);
  const View prompt{const_cast<float*>(rows.data()), Type::f32, 2, 4, 4}, none{prompt.data, Type::f32, 0, 4, 4};
  if (target == "prompt") {
    write_tensors(folder() + "/seed.safetensors",
                  {{{"prompt", prompt}, {"mean", none}}, {{"placement", "suffix"}, {"pooling", "last"}}, {}});
    return {written("seed.safetensors")};
  }
  if (target == "peft") {
    Model m;
    m.width = 4, m.layers = 1, m.heads = {2, 1, 2};
    fs::create_directories(folder() + "/p");
    write_peft({rows, {}, "prefix", "last"}, m, folder() + "/p");
    return {joined({written("p/adapter_config.json"), written("p/adapter_model.safetensors")})};
  }
  if (target == "checkpoint") {
    TrainState s;
    s.start = s.prompt = s.m = s.v = s.best = rows, s.step = 3;
    write_tensors(folder() + "/seed.safetensors", s.file(4));
    return {written("seed.safetensors")};
  }
  if (target == "run_config") {
    Settings s;
    JsonWriter j;
    j.object();
    write_options(j, job_options(s));
    return {j.end().text()};
  }
  if (target == "npy") {
    write_npy(folder() + "/seed.npy", {rows.data(), 2, 4});
    return {written("seed.npy")};
  }
  return {};
}

}  // namespace quest::fuzz
