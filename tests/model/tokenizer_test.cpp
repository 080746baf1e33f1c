#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/base/json.h"
#include "model/fetch.h"
#include "tests/model/gguf_writer.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

using namespace testing_gguf;
using Ids = std::vector<int32_t>;

class TokenizerTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Tokenizer make(const GgufWriter& w) {
    std::ofstream(folder_ + "/vocabulary.gguf", std::ios::binary) << w.bytes();
    return Tokenizer(read_vocabulary(folder_ + "/vocabulary.gguf"));
  }
  Tokenizer tiny(const std::vector<std::string>& merges = tiny_merges()) {
    GgufWriter w;
    add_tiny_vocabulary(w, merges);
    return make(w);
  }
  void expect_refused(const GgufWriter& w, const std::vector<std::string>& parts) {
    expect_input_error(parts, [&] { make(w); });
  }

  const std::string& folder() const { return folder_; }
  std::string file(const std::string& name) const { return folder_ + "/" + name; }

 private:
  std::string folder_ = testing::TempDir() + "tokenizer-XXXXXX";
};

Ids encode(const Tokenizer& t, std::string_view text) {
  Ids ids;
  t.encode(text, ids);
  return ids;
}

std::string decode(const Tokenizer& t, const Ids& ids) {
  std::string out;
  for (const int32_t id : ids) out += t.text(id);
  return out;
}

// The bytes of each token, joined by '|': what a test can be read by.
std::string pieces(const Tokenizer& t, std::string_view text) {
  std::string out;
  for (const int32_t id : encode(t, text)) out += (out.empty() ? "" : "|") + t.text(id);
  return out;
}

TEST_F(TokenizerTest, BytesAndMerges) {
  const Tokenizer t = tiny();
  EXPECT_EQ(t.size(), 257 + static_cast<int64_t>(tiny_merges().size()));
  EXPECT_EQ(encode(t, ""), Ids());
  EXPECT_EQ(encode(t, "Z"), Ids{1 + 'Z'});
  EXPECT_EQ(encode(t, std::string_view("\0\x7f", 2)), (Ids{1, 1 + 0x7f}));
  EXPECT_EQ(encode(t, "he"), Ids{257 + 1});
  EXPECT_EQ(encode(t, " the"), Ids{257 + 2});            // " t", "he", then both
  EXPECT_EQ(encode(t, "the"), (Ids{1 + 't', 257 + 1}));  // "h e" has a lower rank than "t h"
  EXPECT_EQ(pieces(t, " than thing"), " t|h|an| t|h|ing");
  EXPECT_EQ(pieces(t, "ä"), "ä");
  EXPECT_EQ(pieces(t, "ö"), "\xc3|\xb6");
}

TEST_F(TokenizerTest, LowestRankFirstThenLeftmost) {
  EXPECT_EQ(pieces(tiny({"b c", "a b"}), "abc"), "a|bc");
  EXPECT_EQ(pieces(tiny({"a b", "b c"}), "abc"), "ab|c");
  EXPECT_EQ(pieces(tiny({"a a"}), "aaaaa"), "aa|aa|a");
  EXPECT_EQ(pieces(tiny({"a a", "aa aa"}), "aaaaaaa"), "aaaa|aa|a");
  EXPECT_EQ(pieces(tiny({"a a", "a aa"}), "aaa"), "aa|a");  // the merge "a aa" waits for "aa" on the right
  EXPECT_EQ(pieces(tiny({"b b", "a bb", "c abb", "a b"}), "cabbab"), "cabb|ab");
  // merging the middle changes both neighbours: neither stale pair may be used
  EXPECT_EQ(pieces(tiny({"b c", "a b", "c d"}), "abcd"), "a|bc|d");
}

// GPT-2's pattern on the text between numbers; numbers stand alone.
TEST_F(TokenizerTest, PreTokeniser) {
  // every pair of neighbours merges, were they in one piece
  const Tokenizer t =
      tiny({"' s", "Ġ x", "Ġ Ġ", "ĠĠ x", "1 2",  "Ġ 1", "x 1", "x y", "! !",  "Ġ !", "x !",  "! x", "Ċ Ċ",
            "Ċ x", "Ċ Ġ", "Ġ Ċ", "Ċ 1",  "ĊĊ 1", "x '", "' x", "l l", "' ll", "' r", "'r e", "ĠĠ Ġ"});
  EXPECT_EQ(pieces(t, "x's"), "x|'s");
  EXPECT_EQ(pieces(t, "x's's"), "x|'s|'s");
  EXPECT_EQ(pieces(t, "'ll're"), "'ll|'re");
  EXPECT_EQ(pieces(t, "'x"), "'|x");
  EXPECT_EQ(pieces(t, " x"), " x");
  EXPECT_EQ(pieces(t, "  x"), " | x");
  EXPECT_EQ(pieces(t, "   x"), "  | x");
  EXPECT_EQ(pieces(t, "x  "), "x|  ");
  EXPECT_EQ(pieces(t, "12"), "1|2");
  EXPECT_EQ(pieces(t, " 1"), " |1");    // a number takes no space
  EXPECT_EQ(pieces(t, "  1"), "  |1");  // and what is before it is seen as ending there
  EXPECT_EQ(pieces(t, "\n\n1"), "\n\n|1");
  EXPECT_EQ(pieces(t, "\n\nx"), "\n|\n|x");
  EXPECT_EQ(pieces(t, "\nx"), "\n|x");
  EXPECT_EQ(pieces(t, "\n x"), "\n| x");
  EXPECT_EQ(pieces(t, " \nx"), " |\n|x");
  EXPECT_EQ(pieces(t, "xy1xy"), "xy|1|xy");
  EXPECT_EQ(pieces(t, "x!!x !"), "x|!!|x| !");
  EXPECT_EQ(pieces(t, "١x"), "\xd9|\xa1|x");  // an Arabic digit is a number too
}

TEST_F(TokenizerTest, UnicodeWhiteSpace) {
  // U+00A0 is C2 A0, written "Âł"; U+3000 is E3 80 80, written "ãĢĢ"
  const Tokenizer t = tiny({"Â ł", "Âł Âł", "ã Ģ", "ãĢ Ģ", "ãĢĢ ãĢĢ", "Âł x", "Â ħ", "Âħ Âħ"});
  EXPECT_EQ(pieces(t, "\u00a0\u00a0"), "\u00a0\u00a0");
  EXPECT_EQ(pieces(t, "\u00a0\u00a0x"), "\u00a0|\u00a0|x");  // only the space joins a word
  EXPECT_EQ(pieces(t, "\u3000\u3000\u3000x"), "\u3000\u3000|\u3000|x");
  EXPECT_EQ(pieces(t, "\u0085\u0085x"), "\u0085|\u0085|x");
}

TEST_F(TokenizerTest, AddedTokens) {
  GgufWriter w;
  add_tiny_vocabulary(w);
  std::vector<std::string> tokens = {"<|endoftext|>", "<|", "<|endof", "ENDE"};
  Ids types = {3, 4, 3, 4};
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_character(b)), types.push_back(1);
  w.remove("tokenizer.ggml.tokens");
  w.remove("tokenizer.ggml.token_type");
  w.remove("tokenizer.ggml.merges");
  w.texts("tokenizer.ggml.tokens", tokens);
  w.integers("tokenizer.ggml.token_type", types);
  w.texts("tokenizer.ggml.merges", {});
  const Tokenizer t = make(w);
  EXPECT_EQ(encode(t, "<|endoftext|>"), Ids{0});  // the longest
  EXPECT_EQ(encode(t, "<|endof|"), (Ids{2, 4 + '|'}));
  EXPECT_EQ(encode(t, "a<|b"), (Ids{4 + 'a', 1, 4 + 'b'}));
  EXPECT_EQ(encode(t, "<<|endoftext|>ENDE<"), (Ids{4 + '<', 0, 3, 4 + '<'}));
  EXPECT_EQ(decode(t, encode(t, "x<|endoftext|>ENDEy")), "x<|endoftext|>ENDEy");
}

TEST_F(TokenizerTest, AddedTokenEndsThePiece) {
  const Tokenizer t = tiny();
  EXPECT_EQ(pieces(t, "  <|endoftext|>  a"), "  |<|endoftext|>| | a");
}

TEST_F(TokenizerTest, BosAndEos) {
  GgufWriter w;
  add_tiny_vocabulary(w);
  w.remove("tokenizer.ggml.add_bos_token");
  EXPECT_EQ(encode(make(w), "x"), Ids{1 + 'x'});
  w.flag("tokenizer.ggml.add_bos_token", true);
  EXPECT_EQ(encode(make(w), "x"), (Ids{0, 1 + 'x'}));
  w.entry("tokenizer.ggml.eos_token_id").value = raw<uint32_t>(5);
  w.flag("tokenizer.ggml.add_eos_token", true);
  EXPECT_EQ(encode(make(w), "x"), (Ids{0, 1 + 'x', 5}));
  w.entry("tokenizer.ggml.eos_token_id").value = raw<uint32_t>(272);
  expect_refused(w, {"eos_token_id", "272"});
  w.remove("tokenizer.ggml.bos_token_id");
  w.remove("tokenizer.ggml.eos_token_id");
  EXPECT_EQ(encode(make(w), "x"), Ids{1 + 'x'});
}

TEST_F(TokenizerTest, BadBytesAreReplacementCharacters) {
  const Tokenizer t = tiny();
  for (const char* bad : {"a\xff z", "a\xc3 z", "a\x80 z"}) EXPECT_EQ(decode(t, encode(t, bad)), "a\ufffd z");
  EXPECT_EQ(decode(t, encode(t, "\xed\xa0\x80")), "\ufffd\ufffd\ufffd");  // a surrogate
  EXPECT_EQ(decode(t, encode(t, "\xe4\xb8")), "\ufffd\ufffd");
}

// Random valid UTF-8 comes back; a long piece takes n log n.
TEST_F(TokenizerTest, RoundTrip) {
  const Tokenizer t = tiny();
  for (uint64_t i = 0; i < 2000; ++i) {
    std::string text;
    for (uint64_t n = 0; n < i % 41; ++n) {
      static constexpr int32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
      const int32_t c =
          static_cast<int32_t>(random_uniform(1, i, 2 * n) * limits[random_bits(1, i, 2 * n + 1) % 5]);
      append_utf8(text, c >= 0xd800 && c < 0xe000 ? ' ' : c);
    }
    ASSERT_EQ(decode(t, encode(t, text)), text);
  }
  EXPECT_EQ(encode(t, std::string(1 << 20, ' ')).size(), size_t{1} << 18);  // 4 spaces a token
  EXPECT_EQ(decode(t, encode(t, std::string(1 << 20, 'e'))), std::string(1 << 20, 'e'));
}

TEST_F(TokenizerTest, AByteWithoutTokenIsDropped) {
  GgufWriter w;
  add_tiny_vocabulary(w, {"! !"});
  std::string& tokens = w.entry("tokenizer.ggml.tokens").value;
  const std::string four = raw_text(byte_character(4));
  tokens.replace(tokens.find(four), four.size(), raw_text("@@"));
  EXPECT_EQ(encode(make(w), "!\x04!"), Ids{257});  // as in the Hugging Face library, the neighbours merge
}

TEST_F(TokenizerTest, MalformedVocabularies) {
  const auto with = [](auto change) {
    GgufWriter w;
    add_tiny_vocabulary(w);
    change(w);
    return w;
  };
  expect_refused(with([](auto& w) { w.entry("tokenizer.ggml.model").value = raw_text("t5"); }),
                 {"tokenizer.ggml.pre", "t5"});
  expect_refused(with([](auto& w) { w.entry("tokenizer.ggml.pre").value = raw_text("qwen2"); }),
                 {"smollm, gpt-2 or llama-bpe", "qwen2"});
  expect_refused(with([](auto& w) { w.entry("tokenizer.ggml.model").value = raw_text("llama"); }),
                 {"tokenizer.ggml.scores"});
  expect_refused(with([](auto& w) { w.remove("tokenizer.ggml.pre"); }), {"tokenizer.ggml.pre", "default"});
  for (const char* key : {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                          "tokenizer.ggml.merges"})
    expect_refused(with([&](auto& w) { w.remove(key); }), {key});
  for (const char* merge : {"q", "q zz", "zz q", "q q", "h e", " q", "q ", "", "h e r"})
    expect_refused(with([&](auto& w) {
                     std::vector<std::string> merges = tiny_merges();
                     merges.push_back(merge);
                     w.remove("tokenizer.ggml.merges");
                     w.texts("tokenizer.ggml.merges", merges);
                   }),
                   {"merge " + std::to_string(tiny_merges().size()), merge});
  expect_refused(with([](auto& w) {
                   w.remove("tokenizer.ggml.token_type");
                   w.integers("tokenizer.ggml.token_type", Ids(271, 1));
                 }),
                 {"token_type", "272", "271"});
  const auto replaced = [&](const std::string& token, const std::string& by) {
    return with([&](auto& w) {
      std::string& tokens = w.entry("tokenizer.ggml.tokens").value;
      tokens.replace(tokens.find(raw_text(token)), raw_text(token).size(), raw_text(by));
    });
  };
  expect_refused(replaced("Q", "QQ"), {"tokens", "byte 81"});
  expect_refused(replaced("Q", "P"), {"tokens", "P twice"});
  expect_refused(replaced("in", "he"), {"tokens", "he twice"});
  expect_refused(replaced("in", ""), {"tokens", "empty"});
  expect_refused(replaced("in", "\xff"), {"tokens", "UTF-8"});
}

// The lines of tests/peers/tokenizer.py --golden: ids, a tab, the text with \xHH for control characters.
void expect_golden(const Tokenizer& t, const std::string& file, int expected_lines) {
  std::istringstream lines(read_file(SOURCE_ROOT "/tests/golden/" + file));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const size_t tab = line.find('\t');
    std::string text;
    for (size_t i = tab + 1; i < line.size(); ++i) {
      if (line[i] != '\\')
        text += line[i];
      else
        text += static_cast<char>(std::stoi(line.substr(i + 2, 2), nullptr, 16)), i += 3;
    }
    std::istringstream numbers(line.substr(0, tab));
    Ids expected;
    for (int32_t id; numbers >> id;) expected.push_back(id);
    EXPECT_EQ(encode(t, text), expected) << file << ": " << line;
  }
  EXPECT_EQ(count, expected_lines);
}

TEST_F(TokenizerTest, GoldenLinesOverTheDefaultVocabulary) {
  const char* chosen = std::getenv("QUEST_MODEL");
  const std::string path = chosen ? chosen : cached_model_path();
  if (!exists(path)) GTEST_SKIP() << path << ": the default model is not there (./quest train fetches it)";
  Vocabulary v = read_vocabulary(path);
  expect_golden(Tokenizer(v), "tokenizer_smollm2.txt", 200);
  v.pattern = Pattern::gpt2;
  expect_golden(Tokenizer(v), "tokenizer_gpt2.txt", 100);
  v.pattern = Pattern::llama3, v.whole_pieces = true;
  expect_golden(Tokenizer(v), "tokenizer_llama3.txt", 100);
}

// ---- SentencePiece

// llama2.c's vocabulary of 512 pieces (MIT licence) as a .model; golden lines by the sentencepiece library.
TEST_F(TokenizerTest, GoldenLinesOfSentencePiece) {
  std::filesystem::copy_file(SOURCE_ROOT "/tests/golden/tok512.model", file("tokenizer.model"));
  Vocabulary v = read_vocabulary(folder());
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(encode(Tokenizer(v), "a"), (Ids{1, 261}));
  v.bos = -1;
  std::erase(v.kinds, Vocabulary::control);  // the library finds no control tokens in text
  v.kinds.insert(v.kinds.begin() + 1, 2, Vocabulary::unused);
  expect_golden(Tokenizer(v), "tokenizer_tok512.txt", 100);
}

// llama.cpp's vocabulary of LLaMA 1 and 2 with its texts and ids.
TEST_F(TokenizerTest, LlamaCppVectors) {
  const std::string base = SOURCE_ROOT "/../shared/models/ggml-vocab-llama-spm.gguf";
  if (!exists(base)) GTEST_SKIP() << base << " is not there; GoldenLinesOfSentencePiece proves the same";
  const Tokenizer t(read_vocabulary(base));
  std::string texts = read_file(base + ".inp");
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::istringstream lines(read_file(base + ".out"));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const size_t end = std::min(texts.find(separator), texts.size());
    std::istringstream numbers(line);
    Ids expected = {1};
    for (int32_t id; numbers >> id;) expected.push_back(id);
    EXPECT_EQ(encode(t, texts.substr(0, end)), expected) << texts.substr(0, end);
    texts.erase(0, end + separator.size());
  }
  EXPECT_GE(count, 46);
}

Vocabulary sentence_piece(const std::vector<std::pair<std::string, float>>& pieces) {
  Vocabulary v;
  v.tokens = {"<unk>"}, v.kinds = {Vocabulary::unknown}, v.scores = {0};
  for (const auto& [piece, score] : pieces) v.tokens.push_back(piece), v.scores.push_back(score);
  v.kinds.resize(v.tokens.size(), Vocabulary::normal);
  return v;
}

TEST_F(TokenizerTest, SentencePieceMergesByScore) {
  Vocabulary v = sentence_piece({{"a", -9}, {"b", -9}, {"c", -9}, {"ab", -2}, {"bc", -1}, {"abc", -3}, {"▁", -9}});
  EXPECT_EQ(encode(Tokenizer(v), "abc"), Ids{6});      // "bc" first, then "a" with it
  EXPECT_EQ(encode(Tokenizer(v), "abcab"), (Ids{6, 4}));
  v.scores[5] = -2;                                    // as high as "ab": the leftmost
  v.tokens[6] = "xyz";
  EXPECT_EQ(encode(Tokenizer(v), "abc"), (Ids{4, 3}));
  EXPECT_EQ(encode(Tokenizer(v), "xyz"), (Ids{0, 0, 0}));  // "xy" is no token
  v.tokens[6] = "xy";  // of characters that are no tokens themselves
  EXPECT_EQ(encode(Tokenizer(v), "xyx"), (Ids{6, 0}));
  v.prefix = Prefix::always;
  EXPECT_EQ(encode(Tokenizer(v), "a"), (Ids{7, 1}));
  EXPECT_EQ(encode(Tokenizer(v), " a"), (Ids{7, 7, 1}));
  v.prefix = Prefix::if_absent;
  EXPECT_EQ(encode(Tokenizer(v), " a"), (Ids{7, 1}));
  EXPECT_EQ(encode(Tokenizer(v), ""), Ids());
  v.kinds[3] = Vocabulary::user_defined;               // frozen, and each segment gets its prefix
  EXPECT_EQ(encode(Tokenizer(v), "acb"), (Ids{7, 1, 3, 7, 2}));
  v.prefix = Prefix::if_absent_at_first;
  EXPECT_EQ(encode(Tokenizer(v), "acb"), (Ids{7, 1, 3, 2}));
}

TEST_F(TokenizerTest, SentencePieceSplitsUnusedPieces) {
  Vocabulary v = sentence_piece({{"a", -9}, {"b", -9}, {"ab", -1}, {"abab", -2}, {"aba", -3}});
  v.kinds[3] = Vocabulary::unused;
  EXPECT_EQ(encode(Tokenizer(v), "ab"), (Ids{1, 2}));
  EXPECT_EQ(encode(Tokenizer(v), "abab"), Ids{4});
  v.kinds[4] = Vocabulary::unused;
  EXPECT_EQ(encode(Tokenizer(v), "abab"), (Ids{1, 2, 1, 2}));
}

TEST_F(TokenizerTest, BytesStandForUnknownCharacters) {
  Vocabulary v = sentence_piece({{"a", -1}});
  EXPECT_EQ(encode(Tokenizer(v), "aäa"), (Ids{1, 0, 1}));
  for (int b = 0; b < 256; ++b) v.tokens.push_back(format("<0x%02X>", b)), v.scores.push_back(0);
  v.kinds.resize(v.tokens.size(), Vocabulary::byte);
  const Tokenizer t(v);
  EXPECT_EQ(encode(t, "aäa"), (Ids{1, 2 + 0xc3, 2 + 0xa4, 1}));
  EXPECT_EQ(decode(t, encode(t, "日本a")), "日本a");
  EXPECT_EQ(decode(t, encode(t, "<0x41>")), "<0x41>");  // a name in the text is no byte
  v.tokens[5] = "<0xZZ>";
  EXPECT_THROW(Tokenizer{v}, Error);
}

TEST_F(TokenizerTest, MalformedSentencePieceModels) {
  const std::string whole = read_file(SOURCE_ROOT "/tests/golden/tok512.model");
  const auto refused = [&](const std::string& bytes, const std::string& part) {
    write_file(file("tokenizer.model"), bytes);
    try {
      Tokenizer t(read_vocabulary(folder()));
      ADD_FAILURE() << "accepted; expected " << part;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  for (size_t length = 1; length < whole.size(); length += 13) {  // never a crash; some cuts fall between fields
    write_file(file("tokenizer.model"), whole.substr(0, length));
    try {
      Tokenizer t(read_vocabulary(folder()));
      ADD_FAILURE() << length;  // without the trainer's part the type is not BPE
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
    }
  }
  refused("\x0b", "wire type 3");
  refused(std::string("\x00\x01", 2), "field number");
  refused(std::string(11, '\xff'), "ten bytes");
  refused("\x0a\xff\xff\xff\xff\x0f" "abc", "more bytes");
  refused(whole + "\x12\x02\x18\x01", "BPE");
  refused(whole + "\x1a\x02\x20\x01", "normaliser");
  refused(whole + "\x0a\x05\x0a\x01z\x18\x07", "type of a piece");
}

// ---- tokenizer.json

std::string tokenizer_json(const std::string& pre, const std::string& model, const std::string& rest = "") {
  return "{\"pre_tokenizer\": " + pre + ", \"model\": {\"type\": \"BPE\"" + model + "}" + rest + "}";
}

TEST_F(TokenizerTest, JsonOfByteLevelVocabularies) {
  std::string vocab, merges = ", \"merges\": [\"1 2\", [\"12\", \"3\"], \"a b\"]}";
  for (int b = 0; b < 256; ++b) {
    JsonWriter name(true);
    name.value(byte_character(b));
    vocab += name.text() + ": " + std::to_string(b + 1) + ", ";
  }
  const std::string model = ", \"vocab\": {" + vocab + "\"12\": 257, \"123\": 258, \"ab\": 259, \"xy\": 260}" +
                            merges.substr(0, merges.size() - 1);
  const std::string added = R"(, "added_tokens": [{"id": 0, "content": "<s>", "special": true}])";
  const std::string bytes = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": )";
  const std::string digits = R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, )";
  const auto make_json = [&](const std::string& text) {
    write_file(file("tokenizer.json"), text);
    return Tokenizer(read_vocabulary(folder()));
  };
  const Tokenizer gpt2 = make_json(tokenizer_json(bytes + "true}", model, added));
  EXPECT_EQ(pieces(gpt2, "1234 1ab<s>xy"), "123|4| |1|ab|<s>|x|y");
  EXPECT_EQ(encode(gpt2, "<s>"), Ids{0});
  const Tokenizer smollm = make_json(tokenizer_json(digits + bytes + "true}]}", model, added));
  EXPECT_EQ(pieces(smollm, "123ab"), "1|2|3|ab");
  std::string pattern =
      R"({"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}})";
  const std::string sequence = R"({"type": "Sequence", "pretokenizers": [)" + pattern + ", " + bytes + "false}]}";
  const std::string template_ = R"(, "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
      {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]})";
  const Tokenizer llama3 = make_json(tokenizer_json(sequence, ", \"ignore_merges\": true" + model, added + template_));
  EXPECT_EQ(pieces(llama3, "1231234"), "<s>|123|123|4");
  EXPECT_EQ(pieces(llama3, "xy"), "<s>|xy");  // a whole piece needs no merge
  EXPECT_EQ(pieces(llama3, "xyz"), "<s>|x|y|z");

  const auto refused = [&](const std::string& text, const std::string& part) {
    try {
      make_json(text);
      ADD_FAILURE() << "accepted; expected " << part;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  refused("{", "JSON object");
  refused("{}", "model/type");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": [], \"merges\": []"), "model/vocab");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": {}"), "model/merges");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": {\"a\": -1}, \"merges\": []"), "id");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": {\"a\": 1e9}, \"merges\": []"), "id");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": {\"a\": 1, \"b\": 1}, \"merges\": []"), "one token");
  refused(tokenizer_json(bytes + "true}", ", \"vocab\": {\"a\": 1}, \"merges\": []"), "each byte");
  refused(tokenizer_json(bytes + "true}", model + ", \"x\": 0", R"(, "normalizer": {"type": "NFC"})"), "NFC");
  refused(tokenizer_json(R"({"type": "Whitespace"})", model), "Whitespace");
  refused(tokenizer_json(R"({"type": "ByteLevel", "add_prefix_space": true})", model), "add_prefix_space");
  refused(tokenizer_json(bytes + "false}", model), "pre_tokenizer");
  pattern.replace(pattern.find("{1,3}"), 5, "{1,2}");
  refused(tokenizer_json(R"({"type": "Sequence", "pretokenizers": [)" + pattern + ", " + bytes + "false}]}", model), "Split");
  refused(tokenizer_json(bytes + "true}", model, R"(, "added_tokens": [{"id": 0, "content": "<s>", "lstrip": true}])"), "lstrip");
  std::string bad = model;
  bad.replace(bad.find("[\"12\", \"3\"]"), 11, "[\"12\", 3]");
  refused(tokenizer_json(bytes + "true}", bad), "two tokens");
}

TEST_F(TokenizerTest, JsonOfSentencePiece) {
  std::string model = R"(, "byte_fallback": true, "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "▁": 4, "▁a": 5},
      "merges": ["a b", "▁ a"])", added = R"(, "added_tokens": [{"id": 0, "content": "<unk>", "special": true}])";
  const std::string legacy = R"(, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})";
  for (int b = 0; b < 256; ++b) model.insert(model.find("\"<unk>\""), format("\"<0x%02X>\": %d, ", b, 6 + b));
  write_file(file("tokenizer.json"), tokenizer_json("null", model, added + legacy));
  const Tokenizer t(read_vocabulary(folder()));
  EXPECT_EQ(encode(t, "ab a"), (Ids{4, 3, 5}));  // "a b" has the lower rank
  EXPECT_EQ(encode(t, "ä"), (Ids{4, 6 + 0xc3, 6 + 0xa4}));
  for (const auto& [scheme, ids] : {std::pair("first", Ids{5, 5}), {"always", Ids{5, 5}}, {"never", Ids{1, 5}}}) {
    write_file(file("tokenizer.json"),
               tokenizer_json(format(R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "%s", "split": false})",
                                     scheme), model, added));
    EXPECT_EQ(encode(Tokenizer(read_vocabulary(folder())), "a a"), ids) << scheme;
    EXPECT_EQ(encode(Tokenizer(read_vocabulary(folder())), " a"), Ids{5}) << scheme;
  }
}

}  // namespace
}  // namespace quest
