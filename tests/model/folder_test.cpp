// Hugging Face folders: the model of a GGUF written as one gives the same embeddings; what is wrong is refused.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <numbers>

#include "kernels/base/json.h"
#include "kernels/ref.h"
#include "model/encode.h"
#include "model/save.h"
#include "tests/check.h"
#include "tests/model/gguf_writer.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

using namespace testing_gguf;
namespace fs = std::filesystem;

// A random LLaMA of 8 heads of 8 over 2, as a GGUF and as tensors under Hugging Face's names.
struct Pieces {
  GgufWriter gguf;
  std::map<std::string, std::vector<float>> values;
  std::map<std::string, std::vector<int64_t>> shapes;

  Pieces() {
    TinyModel options;
    options.heads = 8, options.type = options.embedding = Type::f32;
    gguf = tiny_model(options);
    const std::pair<std::string, std::string> names[] = {
        {"token_embd", "embed_tokens"},      {"output_norm", "norm"},           {"attn_norm", "input_layernorm"},
        {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},    {"attn_v", "self_attn.v_proj"},
        {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"},     {"ffn_up", "mlp.up_proj"},
        {"ffn_down", "mlp.down_proj"},       {"ffn_norm", "post_attention_layernorm"}};
    for (const auto& t : gguf.tensors) {
      std::string name = t.name.substr(0, t.name.size() - 7), prefix = "model.";
      if (name.starts_with("blk.")) prefix += "layers." + name.substr(4, 2), name = name.substr(6);
      for (const auto& [from, to] : names)
        if (name == from) name = prefix + to + ".weight";
      const auto* x = reinterpret_cast<const float*>(t.data.data());
      std::vector<float> v(x, x + t.data.size() / 4);
      const int64_t cols = static_cast<int64_t>(t.ne[0]), rows = std::ssize(v) / cols, D = 8;
      if (name.find("q_proj") != name.npos || name.find("k_proj") != name.npos)
        for (int64_t r = 0; r < rows; ++r) {  // row h D + 2 j + s of the GGUF is row h D + s D/2 + j here
          const int64_t at = r % D, to = r / D * D + at % 2 * (D / 2) + at / 2;
          std::copy_n(x + r * cols, cols, v.data() + to * cols);
        }
      values[name] = v;
      shapes[name] = t.ne.size() == 1 ? std::vector{cols} : std::vector{rows, cols};
    }
  }
};

const char* const config_json =
    R"({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
        "max_position_embeddings": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": null,
        "rms_norm_eps": 9.999999747378752e-06, "rope_theta": 10000.0, "vocab_size": 272, "hidden_act": "silu",
        "attention_bias": false, "rope_scaling": null, "tie_word_embeddings": true})";

class FolderTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    write_file(at("config.json"), config_json);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string at(const std::string& name) const { return folder_ + "/" + name; }

  // Those tensors of which `take` says so, in the given type.
  void write(const std::string& file, const std::string& type = "F32",
             const std::function<bool(const std::string&)>& take = [](const std::string&) { return true; }) {
    TensorFile out;
    std::vector<std::vector<uint16_t>> halves;
    for (const auto& [name, v] : pieces_.values) {
      if (!take(name)) continue;
      const void* data = v.data();
      if (type != "F32") {
        halves.emplace_back();
        for (const float f : v) halves.back().push_back(type == "F16" ? to_f16(f) : to_bf16(f));
        data = halves.back().data();
      }
      out.tensors.emplace(name, Tensor(type, pieces_.shapes[name], data, std::ssize(v) * (type == "F32" ? 4 : 2)));
    }
    out.metadata["format"] = "pt";
    write_tensors(at(file), out);
  }
  std::string with(const std::string& part, const std::string& by) const {
    std::string text = config_json;
    const size_t found = text.find(part);
    EXPECT_NE(found, text.npos) << part;
    return text.replace(found, part.size(), by);
  }

  Matrix embeddings(const std::string& path) const {
    const auto model = load_model(path);
    Bench bench(ref::ref_ops<double>());
    const std::vector<int32_t> a = {5, 100, 3, 7, 271}, b = {9};
    const Text texts[] = {{a.data(), 5, {}}, {b.data(), 1, {}}};
    Matrix e(2, 64, Type::ref_double);
    embed_texts({.model = *model, .context = bench.context, .prompt = {}}, texts, 2, e.view());
    return e;
  }
  void expect_embeddings(Matrix& want, double tolerance, const std::string& what) const {
    Matrix got = embeddings(folder_);
    expect_close(got, want, tolerance, what);
  }
  Matrix of_gguf() {
    write_file(at("tiny.gguf"), pieces_.gguf.bytes());
    return embeddings(at("tiny.gguf"));
  }
  void expect_refused(const std::vector<std::string>& parts) {
    expect_input_error(parts, [&] { load_model(folder_); });
  }
  void expect_config_refused(const std::string& part, const std::string& by, const std::string& key) {
    write_file(at("config.json"), with(part, by));
    expect_refused({"config.json", key});
  }

  std::string folder_ = testing::TempDir() + "folder-XXXXXX";
  Pieces pieces_;
};

TEST_F(FolderTest, TheSameModelGivesTheSameEmbeddings) {
  Matrix want = of_gguf();
  write("model.safetensors");
  expect_embeddings(want, 1e-12, "F32");
  const auto m = load_model(folder_);
  EXPECT_TRUE(m->turns.halves);
  EXPECT_EQ(m->heads.size, 8);
  EXPECT_EQ(m->name, fs::path(folder_).filename());
  for (const bool half : {true, false}) {  // as of the same weights rounded, in F32
    const char* type = half ? "F16" : "BF16";
    write("model.safetensors", type);
    EXPECT_EQ(load_model(folder_)->layer[1].down.type, half ? Type::f16 : Type::bf16);
    Matrix got = embeddings(folder_);
    const auto exact = pieces_.values;
    for (auto& [name, v] : pieces_.values)
      for (float& x : v) x = half ? from_f16(to_f16(x)) : round_bf16(x);
    EXPECT_NE(pieces_.values, exact);
    write("model.safetensors");
    pieces_.values = exact;
    expect_embeddings(got, 1e-12, type);
  }
}

TEST_F(FolderTest, ShardsAndNamesWithoutPrefix) {
  Matrix want = of_gguf();
  const auto first = [](const std::string& name) { return name.find("mlp") == name.npos; };
  write("a.safetensors", "F32", first);
  write("b.safetensors", "F32", [&](const std::string& name) { return !first(name); });
  JsonWriter index;
  index.object().key("weight_map").object();
  for (const auto& [name, v] : pieces_.values) index.field(name, first(name) ? "a.safetensors" : "b.safetensors");
  write_file(at("model.safetensors.index.json"), index.end().end().text());
  expect_embeddings(want, 1e-12, "shards");
  write("b.safetensors");
  expect_refused({"b.safetensors", "every tensor once"});
  for (const char* name : {"../b.safetensors", "/etc/passwd", "", ".hidden"}) {
    write_file(at("model.safetensors.index.json"), format("{\"weight_map\": {\"x\": \"%s\"}}", name));
    expect_refused({"index.json", "file of this folder"});
  }
  write_file(at("model.safetensors.index.json"), "{\"weight_map\": 7}");
  expect_refused({"weight_map"});
  fs::remove(at("model.safetensors.index.json"));

  const auto values = pieces_.values;
  pieces_.values.clear();
  for (const auto& [name, v] : values)
    pieces_.values[name.substr(6)] = v, pieces_.shapes[name.substr(6)] = pieces_.shapes[name];
  pieces_.values["lm_head.weight"] = {1, 2}, pieces_.shapes["lm_head.weight"] = {1, 2};  // not needed
  pieces_.values["layers.0.self_attn.rotary_emb.inv_freq"] = {1}, pieces_.shapes["layers.0.self_attn.rotary_emb.inv_freq"] = {1};
  write("model.safetensors");
  expect_embeddings(want, 1e-12, "without prefix");
}

// The angle of position 1 for each pair, by the formula of the Llama 3.1 release.
TEST_F(FolderTest, ScaledRope) {
  write("model.safetensors");
  const auto angles = [&](const std::string& rope) {
    write_file(at("config.json"), with("\"rope_scaling\": null", rope));
    const auto m = load_model(folder_);
    std::vector<double> out;
    for (int64_t j = 0; j < 4; ++j) out.push_back(std::asin(static_cast<const float*>(m->turns.table.data)[8 + 2 * j + 1]));
    return out;
  };
  const auto plain = angles("\"rope_scaling\": null");
  for (int j = 1; j < 4; ++j) EXPECT_NEAR(plain[j], std::pow(1e4, -j / 4.0), 1e-7);
  const auto linear = angles(R"("rope_scaling": {"type": "linear", "factor": 4})");
  for (int j = 0; j < 4; ++j) EXPECT_NEAR(linear[j], j ? plain[j] / 4 : 0.25, 1e-6);
  const auto llama3 = angles(R"("rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
      "high_freq_factor": 4, "original_max_position_embeddings": 128, "rope_theta": 10000})");
  const auto smooth = [&](double f) {
    const double s = (128 * f / (2 * std::numbers::pi) - 1) / 3;
    return s >= 1 ? f : s <= 0 ? f / 8 : (1 - s) * f / 8 + s * f;
  };
  for (int j = 1; j < 4; ++j) EXPECT_NEAR(llama3[j], smooth(plain[j]), 1e-7) << j;
  expect_config_refused("\"rope_scaling\": null", R"("rope_scaling": {"rope_type": "yarn", "factor": 4})", "rope_type");
  expect_config_refused("\"rope_scaling\": null", R"("rope_scaling": {"rope_type": "linear"})", "factor");
  expect_config_refused("\"rope_scaling\": null", R"("rope_scaling": {"rope_type": "llama3", "factor": 8})", "low_freq");
}

TEST_F(FolderTest, BadConfigs) {
  write("model.safetensors");
  expect_config_refused("\"llama\"", "\"qwen2\"", "model_type");
  expect_config_refused("\"num_hidden_layers\": 2,", "", "num_hidden_layers");
  expect_config_refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2.5", "num_hidden_layers");
  expect_config_refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": -2", "num_hidden_layers");
  expect_config_refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3000000000", "num_hidden_layers");
  expect_config_refused("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "divisor");
  expect_config_refused("\"silu\"", "\"gelu\"", "hidden_act");
  expect_config_refused("\"attention_bias\": false", "\"attention_bias\": true", "attention_bias");
  expect_config_refused("9.999999747378752e-06", "\"1e-5\"", "rms_norm_eps");
  expect_config_refused("9.999999747378752e-06", "7", "rms_norm_eps");
  expect_config_refused("10000.0", "0", "rope_theta");
  expect_config_refused("\"rope_scaling\": null", "\"quantization_config\": {}", "quantization_config");
  for (const char* bad : {"", "{", "[]", "7", "\xff"}) {
    write_file(at("config.json"), bad);
    expect_refused({"config.json", "JSON object"});
  }
  fs::remove(at("config.json"));
  expect_refused({"config.json"});
}

TEST_F(FolderTest, BadTensors) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  auto& v = pieces_.values[name];
  v[77] = NAN;
  write("model.safetensors");
  expect_refused({name, "NaN or infinity", "77"});
  v[77] = 0;
  pieces_.shapes[name] = {64, 96};
  write("model.safetensors");
  expect_refused({name, "96 x 64", "64 x 96"});
  pieces_.shapes[name] = {96, 64};
  write("model.safetensors", "F32", [&](const std::string& n) { return n != name; });
  expect_refused({name, "found none"});
  pieces_.values["model.layers.1.mlp.up_proj.bias"] = {1}, pieces_.shapes["model.layers.1.mlp.up_proj.bias"] = {1};
  write("model.safetensors");
  expect_refused({"up_proj.bias", "only the tensors"});
  pieces_.values.erase("model.layers.1.mlp.up_proj.bias");
  write("model.safetensors");
  const std::string whole = read_file(at("model.safetensors"));
  std::string lies = whole;
  lies.replace(lies.find("\"F32\""), 5, "\"F64\"");
  write_file(at("model.safetensors"), lies);
  expect_refused({"model.safetensors", "dtype"});
}

// The whole way: a GGUF quantised and saved, read back, and the same decoded numbers as quantised at load.
TEST_F(FolderTest, Nf4) {
  write("model.safetensors");
  const auto plain = load_model(folder_);
  save_nf4(*plain, folder_);
  const auto at_load = [&] {
    write_file(at("tiny.gguf"), pieces_.gguf.bytes());
    return load_model(at("tiny.gguf"), true);
  }();
  const auto saved = load_model(folder_);
  EXPECT_EQ(saved->layer[1].q.type, Type::nf4);
  EXPECT_EQ(at_load->layer[1].q.type, Type::nf4);
  EXPECT_NE(at_load->sha256, load_model(at("tiny.gguf"))->sha256);
  EXPECT_EQ(decoded(saved->layer[1].down), decoded(at_load->layer[1].down));  // no row of it stands elsewhere
  EXPECT_EQ(decoded(saved->embedding), decoded(plain->embedding));
  Matrix a = embeddings(folder_), b = of_gguf();
  double apart = 0, size = 0;
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 64; ++j) apart += std::pow(a.at(i, j) - b.at(i, j), 2), size += std::pow(b.at(i, j), 2);
  EXPECT_TRUE(apart > 0 && apart <= 0.1 * size) << apart / size;  // of the same kind; the weights are compared above
  fs::create_directory(at("again"));
  save_nf4(*load_model(at("tiny.gguf")), at("again"));  // rows of q and k change places before they are quantised
  Matrix c = embeddings(at("again"));
  expect_close(c, a, 1e-12, "by way of the GGUF");
}

// What is wrong with a quantised weight is said with its name.
TEST_F(FolderTest, BadNf4) {
  write("model.safetensors");
  save_nf4(*load_model(folder_), folder_);
  const std::string name = "model.layers.0.mlp.up_proj.weight", state = name + ".quant_state.bitsandbytes__nf4";
  const auto refused = [&](const std::function<void(TensorFile&)>& change, const std::vector<std::string>& parts) {
    TensorFile f = read_tensors(at("model.safetensors"));
    std::string text(reinterpret_cast<const char*>(f.tensors.at(state).data), f.tensors.at(state).bytes);
    change(f);
    const std::string whole = read_file(at("model.safetensors"));
    write_tensors(at("changed"), f);
    fs::rename(at("changed"), at("model.safetensors"));
    expect_refused(parts);
    write_file(at("model.safetensors"), whole);
  };
  std::string text;
  const auto lie = [&](const std::string& part, const std::string& by, const std::vector<std::string>& parts) {
    refused([&](TensorFile& f) {
      Tensor& t = f.tensors.at(state);
      text.assign(reinterpret_cast<const char*>(t.data), t.bytes);
      ASSERT_NE(text.find(part), text.npos) << text;
      text.replace(text.find(part), part.size(), by);
      t = Tensor("U8", {std::ssize(text)}, text.data(), std::ssize(text));
    }, parts);
  };
  lie("\"blocksize\": 64", "\"blocksize\": 128", {state, "blocksize", "64", "128"});
  lie("256", "128", {state, "nested_blocksize"});
  lie("[96, 64]", "[64, 96]", {state, "shape/0", "96"});
  lie("\"nested_offset\": 0", "\"nested_offset\": 1e99, \"x\": 0", {state, "nested_offset"});
  lie("{", "", {state, "JSON object"});
  for (const char* part : {"", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    refused([&](TensorFile& f) { f.tensors.erase(name + part); }, {name + part, "found none"});
    refused([&](TensorFile& f) {
      Tensor& t = f.tensors.at(name + part);
      const int64_t less = t.bytes - 4;
      t = Tensor(t.type, {t.type == "U8" ? less : less / 4}, t.data, less);
    }, {name + part});
  }
  static const std::vector<float> nan(256, NAN);
  for (const auto& [part, count] : {std::pair(".quant_map", 16), {".nested_quant_map", 256}})
    refused([&](TensorFile& f) { f.tensors.at(name + part).data = reinterpret_cast<const std::byte*>(nan.data()); },
            {name + part, "finite"});
  refused([&](TensorFile& f) { f.tensors.emplace(name + ".odd", Tensor("U8", {1}, nan.data(), 1)); },
          {"only the tensors", ".odd"});
}

// ---- the container

class TensorsTest : public FolderTest {
 protected:
  std::string header(const std::string& json, size_t data) {
    return raw<uint64_t>(json.size()) + json + std::string(data, '\0');
  }
  void refused(const std::string& bytes, const std::string& part) {
    write_file(at("x.safetensors"), bytes);
    try {
      read_tensors(at("x.safetensors"));
      ADD_FAILURE() << "accepted; expected: " << part;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  }
};

TEST_F(TensorsTest, AnyOrderTypeAndShape) {
  write_file(at("x.safetensors"), header(R"({"b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
      "a": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]}, "e": {"dtype": "F32", "shape": [0, 7], "data_offsets": [4, 4]},
      "c": {"dtype": "BF16", "shape": [1, 2, 1], "data_offsets": [0, 4]}})", 11));
  const TensorFile f = read_tensors(at("x.safetensors"));
  EXPECT_EQ(f.tensors.size(), 4u);
  EXPECT_EQ(f.tensors.at("b").bytes, 3);
  EXPECT_EQ(f.tensors.at("c").shape, (std::vector<int64_t>{1, 2, 1}));
  EXPECT_EQ(f.tensors.at("a").bytes, 4);
}

TEST_F(TensorsTest, RefusesWhatLies) {
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return format("{\"a\": {\"dtype\": \"%s\", \"shape\": %s, \"data_offsets\": %s}}", dtype, shape, offsets);
  };
  write_file(at("x.safetensors"), header(one("F32", "[2]", "[0, 8]"), 8));
  read_tensors(at("x.safetensors"));
  refused("", "0 bytes");
  refused(raw<uint64_t>(1), "header");
  refused(raw(~uint64_t{0}) + "{}", "header");
  refused(raw(uint64_t{1} << 63) + "{}", "header");
  refused(header("[]", 0), "JSON object");
  refused(header("{", 0), "JSON object");
  refused(header("{\"a\": \xff}", 0), "JSON object");
  refused(header(std::string(5000, '['), 0), "JSON object");
  refused(header("{\"a\": 7}", 0), "tensor 'a'");
  refused(header(one("Q4", "[2]", "[0, 8]"), 8), "dtype");
  refused(header(one("F32", "[3]", "[0, 8]"), 8), "tensor 'a'");
  refused(header(one("F32", "[-2]", "[0, 8]"), 8), "tensor 'a'");
  refused(header(one("F32", "[2.0]", "[0, 8]"), 8), "tensor 'a'");
  refused(header(one("F32", "[4611686018427387904, 4]", "[0, 8]"), 8), "tensor 'a'");
  refused(header(one("F32", "[2]", "[8, 0]"), 8), "tensor 'a'");
  refused(header(one("F32", "[2]", "[0, 8, 9]"), 8), "tensor 'a'");
  refused(header(one("F32", "[2]", "[0, 18446744073709551615]"), 8), "tensor 'a'");
  refused(header(one("F32", "[2]", "[0, 8]"), 7), "tensor 'a'");
  refused(header(one("F32", "[2]", "[0, 8]"), 9), "behind the last");
  refused(header(one("F32", "[2]", "[4, 12]"), 12), "hole");
  const std::string a = R"("dtype": "F32", "shape": [2], "data_offsets": )";
  refused(header("{\"a\": {" + a + "[0, 8]}, \"b\": {" + a + "[4, 12]}}", 12), "overlap");
  refused(header("{\"a\": {" + a + "[0, 8]}, \"a\": {" + a + "[0, 8]}}", 8), "two tensors");
  refused(header("{\"__metadata__\": {\"x\": 7}}", 0), "no string");
}

}  // namespace
}  // namespace quest
