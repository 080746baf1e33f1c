#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/fetch.h"
#include "tests/model/gguf_writer.h"

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
    const MappedFile file(folder_ + "/vocabulary.gguf");
    return Tokenizer(Gguf(file));  // keeps nothing of the file
  }
  Tokenizer tiny(const std::vector<std::string>& merges = tiny_merges()) {
    GgufWriter w;
    add_tiny_vocabulary(w, merges);
    return make(w);
  }
  void expect_refused(const GgufWriter& w, const std::vector<std::string>& parts) {
    try {
      make(w);
      ADD_FAILURE() << "accepted; expected a sentence with: " << parts[0];
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::input);
      const std::string sentence = e.what();
      for (const std::string& part : parts)
        EXPECT_NE(sentence.find(part), std::string::npos) << part << " | " << sentence;
    }
  }

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
  expect_refused(with([](auto& w) { w.entry("tokenizer.ggml.model").value = raw_text("llama"); }),
                 {"not read yet", "llama"});
  expect_refused(with([](auto& w) { w.entry("tokenizer.ggml.pre").value = raw_text("qwen2"); }),
                 {"not read yet", "qwen2"});
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
  expect_refused(replaced("Q", "P"), {"tokens", "byte 81"});
  expect_refused(replaced("in", "he"), {"tokens", "he twice"});
  expect_refused(replaced("in", ""), {"tokens", "empty"});
  expect_refused(replaced("in", "\xff"), {"tokens", "UTF-8"});
}

// The lines of tests/peers/tokenizer.py --golden: ids, a tab, the text with \xHH for control characters.
TEST_F(TokenizerTest, GoldenLinesOfSmolLM2) {
  const char* chosen = std::getenv("QUEST_MODEL");
  const std::string path = chosen ? chosen : cached_model_path();
  if (!exists(path)) GTEST_SKIP() << path << ": the default model is not there (./quest train fetches it)";
  const MappedFile file(path);
  const Tokenizer t{Gguf(file)};
  std::istringstream lines(read_file("tests/golden/tokenizer_smollm2.txt"));
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
    EXPECT_EQ(encode(t, text), expected) << line;
  }
  EXPECT_EQ(count, 200);
}

}  // namespace
}  // namespace quest
