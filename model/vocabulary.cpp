#include "model/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "kernels/base/json.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

namespace quest {

void Vocabulary::refuse(const std::string& field, const std::string& expected,
                        const std::string& found) const {
  fail(Exit::input, "%s: %s%.120s: expected %s, found %.120s; pass another model", file.c_str(),
       place.c_str(), field.c_str(), expected.c_str(), found.c_str());
}

// ---- GGUF

static Vocabulary read_gguf_vocabulary(const std::string& path) {
  const MappedFile file(path);
  const Gguf gguf(file);
  const std::string keys = "tokenizer.ggml.";
  Vocabulary v;
  v.file = path, v.place = "key " + keys;
  const std::string model = gguf.text(keys + "model"), pre = gguf.text(keys + "pre", "default");
  const std::map<std::string_view, Pattern> patterns = {{"smollm", Pattern::smollm},
                                                        {"gpt-2", Pattern::gpt2},
                                                        {"llama-bpe", Pattern::llama3},
                                                        {"llama3", Pattern::llama3}};
  const auto found = patterns.find(pre);
  if (model != "llama" && (model != "gpt2" || found == patterns.end()))
    v.refuse("pre", "model llama, or model gpt2 with pre smollm, gpt-2 or llama-bpe",
             "model " + model + " with pre " + pre);
  const bool sentence_piece = model == "llama";
  v.pattern = sentence_piece ? Pattern::sentence_piece : found->second;
  for (const std::string_view token : gguf.list<std::string_view>(keys + "tokens"))
    v.tokens.emplace_back(token);
  for (const int64_t kind : gguf.list<int64_t>(keys + "token_type")) {
    if (kind < 1 || kind > 6) v.refuse("token_type", "types of 1 to 6", std::to_string(kind));
    v.kinds.push_back(static_cast<Vocabulary::Kind>(kind));
  }
  if (sentence_piece) {
    const std::vector<double> scores = gguf.list<double>(keys + "scores");
    v.scores.assign(scores.begin(), scores.end());
  } else {
    for (const std::string_view merge : gguf.list<std::string_view>(keys + "merges")) {
      const size_t space = std::min(merge.find(' '), merge.size());
      v.merges.emplace_back(merge.substr(0, space), merge.substr(std::min(space + 1, merge.size())));
    }
  }
  const auto always = [&](const std::string& name, bool missing) {
    const int64_t id = gguf.integer(keys + name + "_token_id", -1);
    return gguf.flag(keys + "add_" + name + "_token", missing) ? id : -1;
  };
  v.bos = always("bos", sentence_piece || v.pattern == Pattern::llama3);
  v.eos = always("eos", false);
  if (sentence_piece && gguf.flag(keys + "add_space_prefix", true)) v.prefix = Prefix::always;
  v.whole_pieces = v.pattern == Pattern::llama3;
  return v;
}

// ---- SentencePiece: a ModelProto of protocol buffers

namespace {

// Fields one after another; text, number or bits are those of the last.
class Fields {
 public:
  Fields(const Vocabulary& v, std::string_view bytes) : v_(v), left_(bytes) {}
  std::string_view text;
  uint64_t number = 0;

  int next() {  // the field's number, 0 at the end
    if (left_.empty()) return 0;
    const uint64_t tag = varint();
    switch (tag & 7) {
      case 0: number = varint(); break;
      case 1: text = take(8); break;
      case 2: text = take(varint()); break;
      case 5: text = take(4); break;
      default: v_.refuse("", "protocol buffers", format("wire type %lu", tag & 7));
    }
    if (tag >> 3 == 0 || tag >> 3 > 1 << 29) v_.refuse("", "a field number", std::to_string(tag >> 3));
    return static_cast<int>(tag >> 3);
  }
  float real() const {
    float f = NAN;
    if (text.size() == 4) memcpy(&f, text.data(), 4);
    return f;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
    v_.refuse("", "a number of at most ten bytes", "a longer one");
  }
  std::string_view take(uint64_t count) {
    if (count > left_.size()) v_.refuse("", format("%lu more bytes", count), format("%zu", left_.size()));
    const std::string_view out = left_.substr(0, count);
    left_.remove_prefix(count);
    return out;
  }
  const Vocabulary& v_;
  std::string_view left_;
};

Vocabulary read_sentence_piece(const std::string& path) {
  const MappedFile file(path);
  Vocabulary v;
  v.file = path, v.place = "SentencePiece model ", v.prefix = Prefix::always;
  int64_t type = 1, bos = 1;
  bool remove_spaces = true, escape = true, characters_map = false;
  for (Fields f(v, file.text()); const int field = f.next();) {
    if (field == 1) {  // a piece
      std::string piece;
      float score = 0;
      uint64_t kind = Vocabulary::normal;
      for (Fields p(v, f.text); const int part = p.next();) {
        if (part == 1) piece = p.text;
        if (part == 2) score = p.real();
        if (part == 3) kind = p.number;
      }
      if (kind < 1 || kind > 6) v.refuse("type of a piece", "1 to 6", std::to_string(kind));
      if (kind == Vocabulary::user_defined) v.refuse("type of a piece", "none that is user-defined", piece);
      v.tokens.push_back(piece), v.scores.push_back(score);
      v.kinds.push_back(static_cast<Vocabulary::Kind>(kind));
    }
    if (field == 2)  // how it was trained
      for (Fields p(v, f.text); const int part = p.next();) {
        if (part == 3) type = p.number;
        if (part == 41) bos = static_cast<int32_t>(p.number);
        if (part == 24 && p.number) v.refuse("treat_whitespace_as_suffix", "false", "true");
      }
    if (field == 3)  // how text is normalised
      for (Fields p(v, f.text); const int part = p.next();) {
        if (part == 2) characters_map = !p.text.empty();
        if (part == 3) v.prefix = p.number ? Prefix::always : Prefix::none;
        if (part == 4) remove_spaces = p.number;
        if (part == 5) escape = p.number;
      }
  }
  if (type != 2) v.refuse("type", "BPE (2)", std::to_string(type));
  if (characters_map || remove_spaces || !escape)
    v.refuse("normaliser", "the identity of LLaMA, which keeps all spaces", "another");
  v.bos = bos;
  return v;
}

// ---- tokenizer.json

constexpr std::string_view llama3_pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

// The members of a Sequence, or the one member that is none; of null nothing.
void each_member(const Config& config, const std::string& key, const char* list, auto&& f) {
  if (!config.has(key)) return;
  if (config.text(key + "/type") != "Sequence") return f(key);
  for (int64_t i = 0; config.has(format("%s/%s/%ld", key.c_str(), list, i)); ++i)
    f(format("%s/%s/%ld", key.c_str(), list, i));
}

Vocabulary read_tokenizer_json(const std::string& path) {
  const Config json(path);
  Vocabulary v;
  v.file = path;
  const auto require = [&](const std::string& key, const std::string& expected) {
    if (json.text(key) != expected) v.refuse(key, expected, json.text(key));
  };
  require("model/type", "BPE");
  v.whole_pieces = json.flag("model/ignore_merges", false);

  // Which of the four it is shows in the pre-tokeniser.
  std::string said;
  bool marked = false;  // spaces become U+2581
  each_member(json, "pre_tokenizer", "pretokenizers", [&](const std::string& key) {
    const std::string type = json.text(key + "/type");
    said += (said.empty() ? "" : ", ") + type;
    if (type == "Digits" && json.flag(key + "/individual_digits", false)) said += " one by one";
    if (type == "Split" && json.text(key + "/behavior") == "Isolated" && !json.flag(key + "/invert", false) &&
        json.text(key + "/pattern/Regex", "") == llama3_pattern)
      said += " of Llama 3";
    if (type == "Metaspace") {
      require(key + "/replacement", "\u2581");
      if (json.flag(key + "/split", true)) v.refuse(key + "/split", "false", "true or none");
      marked = true;
      const std::string scheme = json.text(key + "/prepend_scheme", "always");
      v.prefix = scheme == "never"   ? Prefix::none
                 : scheme == "first" ? Prefix::if_absent_at_first
                                     : Prefix::if_absent;
    }
    if (type == "ByteLevel") {
      if (json.flag(key + "/add_prefix_space", true)) v.refuse(key + "/add_prefix_space", "false", "true");
      if (json.flag(key + "/use_regex", true)) said += " of GPT-2";
    }
  });
  const std::map<std::string_view, Pattern> patterns = {
      {"", Pattern::sentence_piece},
      {"Metaspace", Pattern::sentence_piece},
      {"ByteLevel of GPT-2", Pattern::gpt2},
      {"Digits one by one, ByteLevel of GPT-2", Pattern::smollm},
      {"Split of Llama 3, ByteLevel", Pattern::llama3}};
  const auto found = patterns.find(said);
  if (found == patterns.end())
    v.refuse("pre_tokenizer", "that of GPT-2, SmolLM2, Llama 3 or SentencePiece", said);
  v.pattern = found->second;
  const bool bytes = v.pattern != Pattern::sentence_piece;
  each_member(json, "normalizer", "normalizers", [&](const std::string& key) {
    const std::string type = json.text(key + "/type");
    if (type == "Prepend" && !bytes) {
      require(key + "/prepend", "\u2581");
      v.prefix = Prefix::always;
    } else if (type == "Replace" && !bytes) {
      require(key + "/pattern/String", " "), require(key + "/content", "\u2581");
      marked = true;
    } else {
      v.refuse(key, "none, or SentencePiece's", type);
    }
  });

  if (!bytes && (!marked || !json.flag("model/byte_fallback", false)))
    v.refuse("model/byte_fallback", "SentencePiece's, with U+2581 for a space and bytes for the unknown",
             "others");
  for (const char* key : {"model/continuing_subword_prefix", "model/end_of_word_suffix"})
    if (!json.text(key, "").empty()) v.refuse(key, "none", json.text(key));
  const auto ids = json.value<simdjson::dom::object>("model/vocab", "an object");
  const auto merges = json.value<simdjson::dom::array>("model/merges", "a list");
  const size_t added =
      json.has("added_tokens") ? json.value<simdjson::dom::array>("added_tokens", "a list").size() : 0;
  const auto place = [&](int64_t id, std::string_view text, Vocabulary::Kind kind) {
    if (id < 0 || id > 1 << 24) v.refuse("id", "an id in [0, 2^24]", std::to_string(id));
    if (id >= std::ssize(v.tokens)) v.tokens.resize(id + 1), v.kinds.resize(id + 1, Vocabulary::unused);
    if (!v.tokens[id].empty() && v.tokens[id] != text)
      v.refuse("id " + std::to_string(id), "one token", std::string(text));
    v.tokens[id] = text, v.kinds[id] = kind;
  };
  for (const auto& [token, id] : ids) {
    int64_t n = -1;
    if (id.get(n)) n = -1;
    const bool byte = !bytes && token.size() == 6 && token.starts_with("<0x") && token.ends_with(">");
    place(n, token, byte ? Vocabulary::byte : Vocabulary::normal);
  }
  for (size_t i = 0; i < added; ++i) {
    const std::string key = format("added_tokens/%zu/", i);
    for (const char* side : {"lstrip", "rstrip", "single_word"})
      if (json.flag(key + side, false)) v.refuse(key + side, "false", "true");
    place(json.integer(key + "id"), json.text(key + "content"),
          json.flag(key + "special", true) ? Vocabulary::control : Vocabulary::user_defined);
  }
  for (const auto merge : merges) {
    std::string_view whole;
    simdjson::dom::array pair;
    std::string_view left, right;
    if (!merge.get(whole))
      left = whole.substr(0, whole.find(' ')), right = whole.substr(std::min(left.size() + 1, whole.size()));
    else if (merge.get(pair) || pair.size() != 2 || pair.at(0).get(left) || pair.at(1).get(right))
      v.refuse("model/merges", "two tokens each", simdjson::minify(merge));
    v.merges.emplace_back(left, right);
  }
  each_member(json, "post_processor", "processors", [&](const std::string& key) {
    const std::string type = json.text(key + "/type");
    if (type == "ByteLevel") return;
    if (type != "TemplateProcessing") v.refuse(key, "ByteLevel or TemplateProcessing", type);
    bool text_seen = false;
    for (int64_t i = 0; json.has(format("%s/single/%ld", key.c_str(), i)); ++i) {
      const std::string special = format("%s/single/%ld/SpecialToken/id", key.c_str(), i);
      if (!json.has(special)) {
        text_seen = true;
        continue;
      }
      int64_t& id = text_seen ? v.eos : v.bos;
      if (id >= 0) v.refuse(special, "one token on each side of the text", "more");
      id = std::find(v.tokens.begin(), v.tokens.end(), json.text(special)) - v.tokens.begin();
    }
  });
  return v;
}

// A field of a protocol buffer: a number, or a text with its length.
std::string field(int number, uint64_t value) {
  std::string out(1, static_cast<char>(number % 16 << 3));
  if (number >= 16) out[0] |= static_cast<char>(0x80), out += static_cast<char>(number >> 4);
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  return out += static_cast<char>(value);
}
std::string field(int number, const std::string& text) {
  std::string out = field(number, text.size());
  out[0] |= 2;
  return out + text;
}

std::string sentence_piece_model(const Vocabulary& v) {
  std::string out;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    std::string score(4, '\0');
    memcpy(score.data(), &v.scores[i], 4);
    out += field(1, field(1, v.tokens[i]) + std::string("\x15") + score + field(3, v.kinds[i]));
  }
  const bool bytes = std::count(v.kinds.begin(), v.kinds.end(), Vocabulary::byte) == 256;
  out += field(2, field(3, 2) + field(4, v.tokens.size()) + field(35, bytes) +
                      field(41, static_cast<uint64_t>(v.bos)));
  return out + field(3, field(1, "identity") + field(3, v.prefix != Prefix::none) + field(4, uint64_t{0}) +
                            field(5, 1));
}

std::string tokenizer_json(const Vocabulary& v) {
  const std::string byte_level =
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": )";
  JsonWriter j;
  j.object().field("version", "1.0").key("added_tokens").array();
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (v.kinds[i] == Vocabulary::control || v.kinds[i] == Vocabulary::user_defined) {
      j.object().field("id", i).field("content", v.tokens[i]);
      for (const char* no : {"single_word", "lstrip", "rstrip", "normalized"}) j.field(no, false);
      j.field("special", v.kinds[i] == Vocabulary::control).end();
    }
  j.end().key("normalizer").raw("null");
  j.key("pre_tokenizer").object().field("type", "Sequence").key("pretokenizers").array();
  if (v.pattern == Pattern::smollm) j.raw(R"({"type": "Digits", "individual_digits": true})");
  if (v.pattern == Pattern::llama3) {
    j.object().field("type", "Split").key("pattern").object().field("Regex", llama3_pattern).end();
    j.field("behavior", "Isolated").field("invert", false).end();
  }
  j.raw(byte_level + (v.pattern == Pattern::llama3 ? "false}" : "true}")).end().end();
  j.key("post_processor").object().field("type", "TemplateProcessing").key("single").array();
  const auto special = [&](int64_t id) {
    if (id >= 0)
      j.object().key("SpecialToken").object().field("id", v.tokens[id]).field("type_id", 0).end().end();
  };
  special(v.bos);
  j.raw(R"({"Sequence": {"id": "A", "type_id": 0}})");
  special(v.eos);
  j.end().key("pair").array().end().key("special_tokens").object();
  for (const int64_t id : std::set{v.bos, v.eos})
    if (id >= 0) {
      j.key(v.tokens[id]).object().field("id", v.tokens[id]).key("ids").array().value(id).end();
      j.key("tokens").array().value(v.tokens[id]).end().end();
    }
  j.end().end().key("decoder").raw(byte_level + "true}");
  j.key("model").object().field("type", "BPE").field("ignore_merges", v.whole_pieces).key("vocab").object();
  for (size_t i = 0; i < v.tokens.size(); ++i)
    if (!v.tokens[i].empty()) j.field(v.tokens[i], i);
  j.end().key("merges").array();
  for (const auto& [left, right] : v.merges) j.value(left + " " + right);
  return j.end().end().end().text() + "\n";
}

}  // namespace

Vocabulary read_vocabulary(const std::string& path) {
  if (!is_folder(path)) return read_gguf_vocabulary(path);
  if (exists(path + "/tokenizer.json")) return read_tokenizer_json(path + "/tokenizer.json");
  if (exists(path + "/tokenizer.model")) return read_sentence_piece(path + "/tokenizer.model");
  fail(Exit::input, "%s: expected tokenizer.json or tokenizer.model, found neither; fetch the whole model",
       path.c_str());
}

void copy_tokenizer(const std::string& path, const std::string& folder) {
  if (!is_folder(path)) {
    const Vocabulary v = read_vocabulary(path);
    const Tokenizer checked(v);  // refuses what does not fit together
    if (v.pattern == Pattern::sentence_piece)
      write_file(folder + "/tokenizer.model", sentence_piece_model(v));
    else
      write_file(folder + "/tokenizer.json", tokenizer_json(v));
    return;
  }
  for (const char* name : {"/tokenizer.json", "/tokenizer.model"})
    if (exists(path + name)) write_file(folder + name, read_file(path + name));
}

}  // namespace quest
