#include "model/gguf.h"
#include "model/pass.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

#include "kernels/base/hash.h"
#include "model/llama.h"
#include "tests/kernels/encode.h"
#include "tests/model/gguf_writer.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

using namespace testing_gguf;

class GgufTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path() const { return folder_ + "/model.gguf"; }

  std::unique_ptr<Model> load(const std::string& bytes) {
    write(bytes);
    return load_model(path());
  }
  void write(std::string_view bytes) { std::ofstream(path(), std::ios::binary) << bytes; }

  // Loading must throw Error(input) with the path and every one of `parts` in its sentence.
  void expect_refused(const std::string& bytes, std::vector<std::string> parts) {
    parts.push_back(path());
    expect_input_error(parts, [&] { load(bytes); });
  }
  void expect_refused(const GgufWriter& w, const std::vector<std::string>& parts) {
    expect_refused(w.bytes(), parts);
  }

 private:
  std::string folder_ = testing::TempDir() + "gguf-XXXXXX";
};

// Of rope's pair j: the angle of position 1.
double frequency(const Model& m, int64_t j) {
  return std::asin(static_cast<const float*>(m.turns.table.data)[m.heads.size + 2 * j + 1]);
}

void set_integer(GgufWriter& w, const std::string& key, uint32_t v) {
  w.remove(key);
  w.integer(key, v);
}

TEST_F(GgufTest, LoadsTheTinyModel) {
  TinyModel options;
  options.layers = 3;
  const GgufWriter w = tiny_model(options);
  const std::string bytes = w.bytes();
  const auto m = load(bytes);
  EXPECT_EQ(m->layers, 3);
  EXPECT_EQ(m->width, 64);
  EXPECT_EQ(m->mlp, 96);
  EXPECT_EQ(m->vocabulary, 272);
  EXPECT_EQ(m->max_positions, 512);
  EXPECT_EQ(m->heads.heads, 4);
  EXPECT_EQ(m->heads.kv_heads, 2);
  EXPECT_EQ(m->heads.size, 16);
  EXPECT_EQ(m->eps, static_cast<double>(1e-5f));
  EXPECT_NEAR(frequency(*m, 1), std::pow(1e4, -1 / 8.0), 1e-7);
  EXPECT_EQ(m->name, "tiny random LLaMA");
  EXPECT_EQ(m->path, path());
  EXPECT_EQ(m->sha256, sha256_hex(bytes));
  ASSERT_EQ(m->layer.size(), 3u);
  // by hand: per layer 2 (64*64 + 32*64 + 32*64 + 64*64 + 3 * 96*64)
  EXPECT_EQ(pass_flops(*m, 1, 1), 3.0 * 2 * (64 * 64 + 32 * 64 + 32 * 64 + 64 * 64 + 3 * 96 * 64));

  const auto same = [&](const View& v, const std::string& name, Type type, int64_t rows, int64_t cols) {
    const auto found =
        std::find_if(w.tensors.begin(), w.tensors.end(), [&](const auto& t) { return t.name == name; });
    ASSERT_NE(found, w.tensors.end()) << name;
    EXPECT_EQ(v.type, type) << name;
    EXPECT_EQ(v.rows, rows) << name;
    EXPECT_EQ(v.cols, cols) << name;
    EXPECT_EQ(v.stride, cols) << name;
    EXPECT_EQ(std::memcmp(v.data, found->data.data(), found->data.size()), 0) << name;
    const std::byte* at = static_cast<const std::byte*>(v.data);
    EXPECT_TRUE(rows == 1 || (at >= m->files[0].file.data() && at + found->data.size() <= m->files[0].file.data() + m->files[0].file.size())) << name;
  };
  same(m->embedding, "token_embd.weight", Type::q8_0, 272, 64);
  same(m->final_norm, "output_norm.weight", Type::f32, 1, 64);
  const Layer& l = m->layer[2];
  same(l.attention_norm, "blk.2.attn_norm.weight", Type::f32, 1, 64);
  same(l.q, "blk.2.attn_q.weight", Type::q4_1, 64, 64);
  same(l.k, "blk.2.attn_k.weight", Type::q4_1, 32, 64);
  same(l.v, "blk.2.attn_v.weight", Type::q4_1, 32, 64);
  same(l.o, "blk.2.attn_output.weight", Type::q4_1, 64, 64);
  same(l.mlp_norm, "blk.2.ffn_norm.weight", Type::f32, 1, 64);
  same(l.gate, "blk.2.ffn_gate.weight", Type::q4_1, 96, 64);
  same(l.up, "blk.2.ffn_up.weight", Type::q4_1, 96, 64);
  same(l.down, "blk.2.ffn_down.weight", Type::q4_1, 64, 96);
}

TEST_F(GgufTest, LoadsEveryTypeAndVersion2) {
  for (const Type type : stored_types) {
    TinyModel options;
    options.width = options.mlp = 256, options.layers = 1;
    options.type = options.embedding = type;
    GgufWriter w = tiny_model(options);
    w.version = 2;
    EXPECT_EQ(load(w.bytes())->layer[0].up.type, type);
  }
}

// cos and sin of position * base^(-2j/D), the angle rounded to fp32.
TEST_F(GgufTest, Turns) {
  const auto m = load(tiny_model().bytes());
  const View table = m->turns.table;
  EXPECT_FALSE(m->turns.halves);
  ASSERT_EQ(table.rows, 512);
  ASSERT_EQ(table.cols, 16);
  ASSERT_EQ(table.stride, 16);
  const float* turns = static_cast<const float*>(table.data);
  for (const int p : {0, 1, 2, 17, 255, 511})
    for (int j = 0; j < 8; ++j) {
      const double angle = p * std::pow(10000.0, -j / 8.0);
      const double tolerance = 1e-7 + 3 * 0x1p-24 * angle;
      EXPECT_TRUE(std::fabs(turns[p * 16 + 2 * j] - std::cos(angle)) <= tolerance) << p << " " << j;
      EXPECT_TRUE(std::fabs(turns[p * 16 + 2 * j + 1] - std::sin(angle)) <= tolerance) << p << " " << j;
    }
}

TEST_F(GgufTest, DefaultsOfMissingKeys) {
  TinyModel options;
  options.kv_heads = 4;
  options.max_positions = 20000;
  GgufWriter w = tiny_model(options);
  for (const char* key : {"llama.attention.head_count_kv", "llama.rope.dimension_count",
                          "llama.rope.freq_base", "general.name"})
    w.remove(key);
  const auto m = load(w.bytes());
  EXPECT_EQ(m->heads.kv_heads, 4);
  EXPECT_EQ(m->heads.size, 16);
  EXPECT_NEAR(frequency(*m, 1), std::pow(1e4, -1 / 8.0), 1e-7);
  EXPECT_EQ(m->name, "");
  EXPECT_EQ(m->max_positions, 8192);
}

TEST_F(GgufTest, IntegersOfAnyType) {
  GgufWriter w = tiny_model();
  w.entry("llama.block_count") = {"llama.block_count", 10, raw<uint64_t>(2)};
  w.entry("llama.embedding_length") = {"llama.embedding_length", 2, raw<uint16_t>(64)};
  w.entry("llama.feed_forward_length") = {"llama.feed_forward_length", 11, raw<int64_t>(96)};
  w.entry("llama.attention.head_count") = {"llama.attention.head_count", 0, raw<uint8_t>(4)};
  w.entry("llama.attention.head_count_kv") = {"llama.attention.head_count_kv", 1, raw<int8_t>(2)};
  w.entry("llama.context_length") = {"llama.context_length", 3, raw<int16_t>(77)};
  w.entry("llama.rope.dimension_count") = {"llama.rope.dimension_count", 5, raw<int32_t>(16)};
  w.entry("llama.rope.freq_base") = {"llama.rope.freq_base", 12, raw<double>(5e5)};
  const auto m = load(w.bytes());
  EXPECT_EQ(m->layers, 2);
  EXPECT_EQ(m->max_positions, 77);
  EXPECT_NEAR(frequency(*m, 1), std::pow(5e5, -1 / 8.0), 1e-7);
}

TEST_F(GgufTest, HeadOfTheLanguageModelIsIgnored) {
  GgufWriter w = tiny_model();
  GgufWriter::Tensor head = w.tensors[0];
  head.name = "output.weight";
  w.tensors.push_back(head);
  EXPECT_EQ(load(w.bytes())->layers, 2);
  w.tensors.back().name = "blk.0.attn_q.bias";
  expect_refused(w, {"blk.0.attn_q.bias", "tensors of a llama"});
}

TEST_F(GgufTest, OtherAlignment) {
  GgufWriter w = tiny_model();
  w.integer("general.alignment", w.alignment = 64);
  EXPECT_EQ(load(w.bytes())->layers, 2);
  set_integer(w, "general.alignment", 32);  // the data say otherwise
  w.tensor("blk.0.attn_norm.weight").ne = {64};
  EXPECT_THROW(load(w.bytes()), Error);
  for (const uint32_t bad : {0u, 4u, 48u}) {
    set_integer(w, "general.alignment", bad);
    expect_refused(w, {"general.alignment", std::to_string(bad), "power of two"});
  }
}

// Cut anywhere, the file is refused; and no cut reads outside the map (address sanitizer).
TEST_F(GgufTest, Truncated) {
  const std::string whole = tiny_model().bytes();
  std::vector<size_t> lengths(120);
  std::iota(lengths.begin(), lengths.end(), 0);
  for (size_t length = 121; length < whole.size(); length += 997) lengths.push_back(length);
  lengths.push_back(whole.size() - 32 * 4);
  for (const size_t length : lengths) {
    write(std::string_view(whole).substr(0, length));
    try {
      load_model(path());
      ADD_FAILURE() << "accepted " << length << " of " << whole.size();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input) << length;
    }
  }
  expect_refused("", {"GGUF"});
  expect_refused(whole.substr(0, whole.size() - 32 * 4), {"output_norm.weight", "cut short"});
}

// Any single damaged byte of the header is refused or gives a model; never a crash.
TEST_F(GgufTest, DamagedHeader) {
  const std::string whole = tiny_model().bytes();
  const size_t header = whole.size() - load(whole)->files[0].file.size() + 5800;
  size_t refused = 0;
  for (size_t at = 0; at < header; at += 7) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ (at % 2 ? 0xff : 0x80));
    write(bytes);
    try {
      load_model(path());
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
      ++refused;
    }
  }
  EXPECT_GT(refused, 200u);
}

TEST_F(GgufTest, RefusesAnotherContainer) {
  GgufWriter w = tiny_model();
  w.magic = "GGML";
  expect_refused(w, {"GGUF"});
  w.magic = "GGUF";
  for (const uint32_t version : {0u, 1u, 4u}) {
    w.version = version;
    expect_refused(w, {"version", "2 or 3", std::to_string(version)});
  }
  w.version = 3u << 24;
  expect_refused(w, {"big-endian"});
}

TEST_F(GgufTest, LyingCounts) {
  for (const int64_t error : {int64_t{1}, int64_t{1} << 32, std::numeric_limits<int64_t>::max() - 100}) {
    GgufWriter w = tiny_model();
    w.entry_count_error = error;
    EXPECT_THROW(load(w.bytes()), Error);
    w.entry_count_error = 0;
    w.tensor_count_error = error;
    EXPECT_THROW(load(w.bytes()), Error);
  }
  GgufWriter w = tiny_model();
  w.tensor_count_error = -1;  // the last tensor is left out
  EXPECT_THROW(load(w.bytes()), Error);
}

TEST_F(GgufTest, LyingLengths) {
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{1} << 31, uint64_t{1} << 30}) {
    GgufWriter w = tiny_model();
    w.entry("general.name").value.replace(0, 8, raw(length));
    expect_refused(w, {"general.name"});
    w = tiny_model();
    w.entry("tokenizer.ggml.token_type").value.replace(4, 8, raw(length));
    expect_refused(w, {"tokenizer.ggml.token_type"});
    w.entry("tokenizer.ggml.tokens").value.replace(4, 8, raw(length));
    expect_refused(w, {"tokenizer.ggml.tokens"});
    w.entries[0].key += std::string(8, 'x');
    std::string bytes = w.bytes();
    bytes.replace(24, 8, raw(length));  // the first key's length
    EXPECT_THROW(load(bytes), Error);
  }
}

TEST_F(GgufTest, BadKeys) {
  GgufWriter w = tiny_model();
  w.integer("llama.block_count", 2);
  expect_refused(w, {"llama.block_count", "repeated"});
  w = tiny_model();
  w.integer("", 2);
  expect_refused(w, {"empty"});
  w = tiny_model();
  w.text("key \xff", "x");
  expect_refused(w, {"UTF-8"});
  w = tiny_model();
  w.text("general.author", "caf\xe9");
  expect_refused(w, {"general.author", "UTF-8"});
  w = tiny_model();
  w.entries.push_back({"odd", 13, raw<uint64_t>(0)});
  expect_refused(w, {"odd", "13"});
  w.entries.back() = {"odd", 9, raw<uint32_t>(9) + raw<uint64_t>(0)};  // an array of arrays
  expect_refused(w, {"odd", "element type 9"});
  w.entries.back() = {"odd", 7, raw<uint8_t>(0)};
  EXPECT_EQ(load(w.bytes())->layers, 2);
}

TEST_F(GgufTest, BadTensorHeaders) {
  const std::string name = "blk.0.attn_q.weight";
  const auto refused = [&](auto change, const std::vector<std::string>& parts) {
    GgufWriter w = tiny_model();
    change(w.tensor(name));
    expect_refused(w, parts);
  };
  refused([](auto& t) { t.name = "blk.0.attn_k.weight"; }, {"blk.0.attn_k.weight", "repeated"});
  refused([](auto& t) { t.name = ""; }, {"empty"});
  refused([](auto& t) { t.name = std::string(64, 'n'); }, {"1 to 63 bytes"});
  refused([](auto& t) { t.name = "\xc3("; }, {"UTF-8"});
  refused([](auto& t) { t.ne = {}; }, {name, "1 to 4 dimensions", "found 0"});
  refused([](auto& t) { t.ne = {64, 64, 1, 1, 1}; }, {name, "1 to 4 dimensions", "found 5"});
  refused([](auto& t) { t.ne = {64, 0}; }, {name, "at least 1"});
  refused([](auto& t) { t.ne = {64, uint64_t{1} << 63}; }, {name, "at least 1"});
  refused([](auto& t) { t.ne = {uint64_t{1} << 40, uint64_t{1} << 40}; }, {name, "below 2^63"});
  refused([](auto& t) { t.ne = {uint64_t{1} << 62}, t.type = 0; }, {name, "2^63 bytes"});
  refused([](auto& t) { t.ne = {uint64_t{1} << 50}; }, {name, "end of the file"});
  refused([](auto& t) { t.ne = {48, 64}; }, {name, "whole blocks of 32", "48"});
  refused([](auto& t) { t.offset_error = 32; }, {name, "offset"});
  refused([](auto& t) { t.offset_error = -32; }, {name, "offset"});
  refused([](auto& t) { t.offset_error = std::numeric_limits<int64_t>::min(); }, {name, "offset"});
  refused([](auto& t) { t.type = 4; }, {name, "Q4_1", "Q4_2"});
  refused([](auto& t) { t.type = 39; }, {name, "39"});
}

TEST_F(GgufTest, OtherWeightTypesAreNamed) {
  GgufWriter w = tiny_model();
  auto& t = w.tensor("blk.1.ffn_up.weight");
  t.type = 10;
  expect_refused(w, {"blk.1.ffn_up.weight", "Q2_K", "F32, F16, BF16, Q4_0, Q4_1"});
  t.type = 12;
  expect_refused(w, {"blk.1.ffn_up.weight", "whole blocks of 256", "64"});
  w = tiny_model();
  auto& norm = w.tensor("blk.1.ffn_norm.weight");
  norm.type = 1;
  norm.data.assign(128, '\0');
  EXPECT_EQ(load(w.bytes())->layer[1].mlp_norm.type, Type::f32);
}

TEST_F(GgufTest, ShapesFollowTheMetadata) {
  const auto refused = [&](const std::string& name, std::vector<uint64_t> ne, const std::string& expected,
                           const std::string& found) {
    GgufWriter w = tiny_model();
    w.tensor(name).ne = ne;
    expect_refused(w, {name, "expected " + expected + " (", "found " + found + ";"});
  };
  refused("blk.0.ffn_down.weight", {64, 96}, "64 x 96", "96 x 64");
  refused("blk.1.attn_k.weight", {32, 64}, "32 x 64", "64 x 32");
  refused("blk.1.attn_v.weight", {64, 16, 2}, "32 x 64", "2 x 16 x 64");
  refused("output_norm.weight", {32, 2}, "64", "2 x 32");
  GgufWriter w = tiny_model();
  w.remove("tokenizer.ggml.tokens");
  EXPECT_EQ(load(w.bytes())->vocabulary, 272);
  w.texts("tokenizer.ggml.tokens", std::vector<std::string>(271, "x"));
  expect_refused(w, {"token_embd.weight", "271 rows", "272"});
  w.remove("tokenizer.ggml.tokens");
  w.integer("llama.vocab_size", 271);
  expect_refused(w, {"token_embd.weight", "271 x 64", "272 x 64"});
}

TEST_F(GgufTest, MissingTensorsAndKeysAreNamed) {
  for (const char* name :
       {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight",
        "blk.1.attn_k.weight", "blk.1.attn_v.weight", "blk.1.attn_output.weight", "blk.1.ffn_norm.weight",
        "blk.1.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"}) {
    GgufWriter w = tiny_model();
    w.remove_tensor(name);
    expect_refused(w, {name, "none"});
  }
  for (const char* key : {"general.architecture", "llama.block_count", "llama.context_length",
                          "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.layer_norm_rms_epsilon"}) {
    GgufWriter w = tiny_model();
    w.remove(key);
    expect_refused(w, {key, "no such key"});
  }
  GgufWriter w = tiny_model();
  set_integer(w, "llama.block_count", 4096);
  expect_refused(w, {"blk.2.attn_norm.weight"});
  set_integer(w, "llama.block_count", 0x7fffffff);  // nothing is made for as many
  expect_refused(w, {"llama.block_count", "at most 4096", "2147483647"});
}

TEST_F(GgufTest, BadSizes) {
  const auto refused = [&](const std::string& key, uint32_t v, const std::string& found) {
    GgufWriter w = tiny_model();
    set_integer(w, key, v);
    expect_refused(w, {key, found});
  };
  for (const char* key :
       {"llama.block_count", "llama.context_length", "llama.embedding_length", "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.head_count_kv"})
    refused(key, 0, "above 0");
  refused("llama.block_count", 0x80000000u, "2147483648");
  refused("llama.attention.head_count_kv", 3, "divisor");
  refused("llama.attention.head_count", 6, "divisor");
  refused("llama.attention.key_length", 15, "even");
  refused("llama.attention.value_length", 32, "head size 16");
  refused("llama.rope.dimension_count", 8, "head size 16");
  refused("split.count", 2, "one file");
  GgufWriter w = tiny_model();
  w.entry("llama.block_count") = {"llama.block_count", 6, raw(2.0f)};
  expect_refused(w, {"llama.block_count", "integer", "2.0"});
  w = tiny_model();
  w.entry("llama.block_count") = {"llama.block_count", 5, raw<int32_t>(-2)};
  expect_refused(w, {"llama.block_count", "-2"});
}

TEST_F(GgufTest, BadConstants) {
  for (const std::string key : {"llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"})
    for (const float bad : {0.0f, 1e-30f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
      GgufWriter w = tiny_model();
      w.entry(key).value = raw(bad);
      expect_refused(w, {key});
    }
  GgufWriter w = tiny_model();
  w.entry("general.architecture").value = raw_text("qwen2");
  expect_refused(w, {"general.architecture", "llama", "qwen2"});
  w.entry("general.architecture") = {"general.architecture", 4, raw<uint32_t>(1)};
  expect_refused(w, {"general.architecture", "a text", "found 1"});
}

TEST_F(GgufTest, ScaledRope) {
  const double plain = std::pow(1e4, -1 / 8.0);
  GgufWriter w = tiny_model();
  w.text("llama.rope.scaling.type", "none");
  EXPECT_NEAR(frequency(*load(w.bytes()), 1), plain, 1e-7);
  w.number("llama.rope.scaling.factor", 2);
  EXPECT_NEAR(frequency(*load(w.bytes()), 1), plain, 1e-7);
  w.entry("llama.rope.scaling.type").value = raw_text("linear");
  EXPECT_NEAR(frequency(*load(w.bytes()), 1), plain / 2, 1e-7);
  w.remove("llama.rope.scaling.type");
  EXPECT_NEAR(frequency(*load(w.bytes()), 1), plain / 2, 1e-7);
  w.text("llama.rope.scaling.type", "yarn");
  expect_refused(w, {"llama.rope.scaling.type", "none or linear", "yarn"});
  w = tiny_model();
  std::string divisors;
  for (int j = 0; j < 8; ++j) divisors += raw(1.0f + static_cast<float>(j));
  w.tensors.push_back({"rope_freqs.weight", 0, {8}, divisors});
  const auto m = load(w.bytes());
  for (int j = 1; j < 8; ++j) EXPECT_NEAR(frequency(*m, j), std::pow(1e4, -j / 8.0) / (1 + j), 1e-7) << j;
  w.tensors.back().data.replace(8, 4, raw(0.0f));
  expect_refused(w, {"rope_freqs.weight", "at least 1e-6"});
  w.tensors.back() = {"rope_freqs.weight", 0, {16}, std::string(64, '\0')};
  expect_refused(w, {"rope_freqs.weight", "expected 8 ", "found 16;"});
}

TEST_F(GgufTest, NotFiniteWeights) {
  struct Case {
    Type type;
    size_t value_bytes, at, number;
    uint16_t nan, infinity;
  };
  for (const Case& c : {Case{Type::f32, 2, 4 * 77 + 2, 77, 0x7fc0, 0xff80},
                        {Type::f16, 2, 2 * 77, 77, 0x7e00, 0xfc00},
                        {Type::bf16, 2, 2 * 77, 77, 0x7fc0, 0xff80},
                        {Type::q4_1, 2, 20 * 7, 7, 0x7e00, 0xfc00},
                        {Type::q4_1, 2, 20 * 7 + 2, 7, 0x7e00, 0x7c00},
                        {Type::q8_0, 2, 34 * 7, 7, 0xfe00, 0x7c00},
                        {Type::q4_0, 2, 18 * 7, 7, 0xfe00, 0x7c00},
                        {Type::q5_0, 2, 22 * 7, 7, 0xfe00, 0x7c00},
                        {Type::q5_1, 2, 24 * 7 + 2, 7, 0xfe00, 0x7c00},
                        {Type::q4_k, 2, 144 * 7 + 2, 7, 0xfe00, 0x7c00},
                        {Type::q5_k, 2, 176 * 7 + 2, 7, 0xfe00, 0x7c00},
                        {Type::q6_k, 2, 210 * 7 + 208, 7, 0xfe00, 0x7c00}}) {
    TinyModel options;
    options.type = options.embedding = c.type;
    if (format_of(c.type).elements == 256) options.width = options.mlp = 256;
    for (const uint16_t bad : {c.nan, c.infinity})
      for (const char* name : {"blk.1.ffn_down.weight", "token_embd.weight"}) {
        GgufWriter w = tiny_model(options);
        w.tensor(name).data.replace(c.at, c.value_bytes, raw(bad));
        expect_refused(w, {name, "NaN or infinity", " " + std::to_string(c.number)});
      }
  }
  GgufWriter w = tiny_model();
  w.tensor("output_norm.weight").data.replace(4 * 63, 4, raw(std::nanf("")));
  expect_refused(w, {"output_norm.weight", "63"});
}

// Metadata become JSON: a byte may take seven there.
TEST_F(GgufTest, MetadataAreBounded) {
  GgufWriter w = tiny_model();
  const uint64_t flags = uint64_t{40} << 20;
  w.entries.push_back({"general.flags", 9, raw<uint32_t>(7) + raw(flags) + std::string(flags, 0)});
  expect_refused(w, {"general.flags", "256 MiB"});
}

TEST_F(GgufTest, MetadataAccess) {
  GgufWriter w = tiny_model();
  w.texts("list", {"", "two", "drei"});
  w.integers("numbers", {-1, 0, 7});
  w.flag("yes", true);
  w.entries.push_back({"maybe", 7, raw<uint8_t>(1)});
  write(w.bytes());
  const MappedFile file(path());
  const Gguf gguf(file);
  EXPECT_EQ(gguf.list<std::string_view>("list"), (std::vector<std::string_view>{"", "two", "drei"}));
  EXPECT_EQ(gguf.list<int64_t>("numbers"), (std::vector<int64_t>{-1, 0, 7}));
  EXPECT_TRUE(gguf.flag("yes", false));
  EXPECT_TRUE(gguf.flag("absent", true));
  EXPECT_EQ(gguf.integer("absent", 5), 5);
  EXPECT_EQ(gguf.text("absent", "none"), "none");
  EXPECT_EQ(gguf.number("absent", 0.5), 0.5);
  EXPECT_EQ(gguf.tensors.size(), w.tensors.size());
  EXPECT_THROW(gguf.list<std::string_view>("numbers"), Error);
  EXPECT_THROW(gguf.list<int64_t>("list"), Error);
  EXPECT_THROW(gguf.list<int64_t>("yes"), Error);
  EXPECT_THROW(gguf.flag("list", false), Error);
  EXPECT_THROW(gguf.text("yes"), Error);
  EXPECT_THROW(gguf.number("yes"), Error);
  w.entry("maybe").value = raw<uint8_t>(2);
  expect_refused(w, {"maybe", "0 or 1"});
}

}  // namespace
}  // namespace quest
