#include "model/tokenizer.h"

#include <algorithm>

#include "kernels/base/words.h"

namespace quest {

namespace {

// Byte-level vocabularies write a byte as a character (GPT-2): itself when it is a visible character of
// Latin-1, else U+0100 + its number among the others. The byte of each such character, -1 where it is none.
std::array<int32_t, 0x144> byte_alphabet() {
  std::array<int32_t, 0x144> bytes;
  bytes.fill(-1);
  for (int32_t b = 0, next = 0x100; b < 256; ++b)
    bytes[static_cast<size_t>((b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad) ? b : next++)] = b;
  return bytes;
}

enum class Class { letter, number, space, other };

Class class_of(int32_t c) {
  if (c < 0x80) {
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return Class::letter;
    if (c >= '0' && c <= '9') return Class::number;
    return c == ' ' || (c >= 9 && c <= 13) ? Class::space : Class::other;
  }
  const auto category = utf8proc_category(c);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return Class::letter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return Class::number;
  const bool separator = category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
  return separator || c == 0x85 ? Class::space : Class::other;  // = White_Space
}

// The end of the run of one class that starts at `at`.
size_t run_end(std::string_view text, size_t at, Class kind) {
  for (size_t next = at; at < text.size(); at = next)
    if (class_of(next_code_point(text, next)) != kind) break;
  return at;
}

// The end of the match at `at` of GPT-2's pattern, in a text without numbers:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t match_end(std::string_view text, size_t at) {
  for (std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(at).starts_with(suffix)) return at + suffix.size();
  size_t next = at;
  Class kind = class_of(next_code_point(text, next));
  if (text[at] == ' ' && next < text.size()) {
    size_t after = next;
    if (const Class following = class_of(next_code_point(text, after)); following != Class::space)
      return run_end(text, next, following);
  }
  const size_t end = run_end(text, at, kind);
  if (kind != Class::space || end == text.size() || end == next) return end;
  size_t last = end - 1;  // the last white space of a run goes to what follows
  while ((static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
  return last;
}

// Every byte that is not UTF-8 becomes U+FFFD.
std::string repaired(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const int32_t c = next_code_point(text, at);
    append_utf8(out, c < 0 ? 0xfffd : c);
  }
  return out;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(const Gguf& gguf) {
  const std::string model = gguf.text("tokenizer.ggml.model"),
                    pre = gguf.text("tokenizer.ggml.pre", "default");
  if (model != "gpt2" || pre != "smollm")
    gguf.refuse("key tokenizer.ggml.pre", "model gpt2 with pre smollm (others are not read yet)",
                "model " + model + " with pre " + pre, "pass another model");
  read_tokens(gguf);
  read_merges(gguf);
  bos_ = special(gguf, "tokenizer.ggml.bos_token_id");
  eos_ = special(gguf, "tokenizer.ggml.eos_token_id");
  add_bos_ = gguf.flag("tokenizer.ggml.add_bos_token", false) && bos_ >= 0;
  add_eos_ = gguf.flag("tokenizer.ggml.add_eos_token", false) && eos_ >= 0;
}

void Tokenizer::read_tokens(const Gguf& gguf) {
  const std::string key = "key tokenizer.ggml.tokens";
  const std::vector<std::string_view> tokens = gguf.texts("tokenizer.ggml.tokens");
  const std::vector<int64_t> types = gguf.integers("tokenizer.ggml.token_type");
  if (types.size() != tokens.size())
    gguf.refuse("key tokenizer.ggml.token_type", std::to_string(tokens.size()) + " types, one a token",
                std::to_string(types.size()));
  const auto alphabet = byte_alphabet();
  byte_ids_.fill(-1);
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    if (token.empty()) gguf.refuse(key, "no empty token", "one, number " + std::to_string(id));
    const bool added = types[id] == 3 || types[id] == 4;  // control, user-defined
    std::string bytes(added ? token : "");
    for (size_t at = 0; at < token.size() && !added;) {
      const size_t c = static_cast<size_t>(next_code_point(token, at));
      if (c < alphabet.size() && alphabet[c] >= 0) bytes += static_cast<char>(alphabet[c]);
    }
    if (added)
      added_.push_back(static_cast<int32_t>(id)), starts_added_[static_cast<unsigned char>(token[0])] = true;
    else if (bytes.size() == 1)
      byte_ids_[static_cast<unsigned char>(bytes[0])] = static_cast<int32_t>(id);
    texts_.push_back(bytes);
  }
  std::sort(added_.begin(), added_.end(),
            [&](int32_t a, int32_t b) { return text(a).size() > text(b).size(); });
  // Bytes above 0xf0 and control characters are rare, and SmolLM2 lacks some; others are never missing.
  for (int b = 0x20; b <= 0xef; ++b)
    if (byte_ids_[static_cast<size_t>(b)] < 0 && b != 0x7f && b != 0xc0 && b != 0xc1)
      gguf.refuse(key, "a token for each byte", "none for byte " + std::to_string(b));
}

void Tokenizer::read_merges(const Gguf& gguf) {
  const std::string place = "key tokenizer.ggml.merges, merge ";
  std::unordered_map<std::string_view, int32_t> ids;
  for (std::string_view token : gguf.texts("tokenizer.ggml.tokens"))
    if (!ids.emplace(token, static_cast<int32_t>(ids.size())).second)
      gguf.refuse("key tokenizer.ggml.tokens", "every token once", std::string(token) + " twice");
  int32_t rank = 0;
  for (std::string_view merge : gguf.texts("tokenizer.ggml.merges")) {
    const size_t space = merge.find(' ');
    const std::string_view left = merge.substr(0, space),
                           right = merge.substr(std::min(left.size() + 1, merge.size()));
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(std::string(left).append(right));
    if (l == ids.end() || r == ids.end() || both == ids.end() ||
        !merges_.emplace(pair_key(l->second, r->second), Merge{rank, both->second}).second)
      gguf.refuse(place + std::to_string(rank), "two tokens whose concatenation is a token, once",
                  std::string(merge));
    ++rank;
  }
}

int32_t Tokenizer::special(const Gguf& gguf, const char* key) const {
  if (!gguf.has(key)) return -1;
  const int64_t id = gguf.integer(key);
  if (id >= size())
    gguf.refuse(std::string("key ") + key, "an id below " + std::to_string(size()), std::to_string(id));
  return static_cast<int32_t>(id);
}

int32_t Tokenizer::added_at(std::string_view text) const {
  if (!starts_added_[static_cast<unsigned char>(text[0])]) return -1;
  for (int32_t id : added_)
    if (text.starts_with(texts_[static_cast<size_t>(id)])) return id;
  return -1;
}

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  std::string copy;
  if (!valid_utf8(text)) text = copy = repaired(text);
  Scratch scratch;
  if (add_bos_) ids.push_back(bos_);
  size_t plain = 0;
  for (size_t at = 0; at < text.size();) {
    const int32_t id = added_at(text.substr(at++));
    if (id < 0) continue;
    encode_plain(text.substr(plain, at - 1 - plain), scratch, ids);
    ids.push_back(id);
    plain = at += texts_[static_cast<size_t>(id)].size() - 1;
  }
  encode_plain(text.substr(plain), scratch, ids);
  if (add_eos_) ids.push_back(eos_);
}

// Numbers stand alone, character by character; the pattern sees only what is between them.
void Tokenizer::encode_plain(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  const auto split = [&](std::string_view part) {
    for (size_t at = 0, end; at < part.size(); at = end) {
      end = match_end(part, at);
      encode_piece(part.substr(at, end - at), scratch, ids);
    }
  };
  size_t start = 0;
  for (size_t at = 0, next = 0; at < text.size(); at = next) {
    if (class_of(next_code_point(text, next)) != Class::number) continue;
    split(text.substr(start, at - start));
    encode_piece(text.substr(at, next - at), scratch, ids);
    start = next;
  }
  split(text.substr(start));
}

// The merge of the symbol at `position` with its right neighbour; nullptr when there is none.
const Tokenizer::Merge* Tokenizer::merge_at(int32_t position, const Scratch& scratch) const {
  if (position < 0) return nullptr;
  const Symbol& left = scratch.symbols[static_cast<size_t>(position)];
  if (left.id < 0 || left.next < 0) return nullptr;
  const auto found = merges_.find(pair_key(left.id, scratch.symbols[static_cast<size_t>(left.next)].id));
  return found == merges_.end() ? nullptr : &found->second;
}

// BPE (Sennrich et al. 2016): the merge of lowest rank first, the leftmost of equal ones; O(n log n) in the
// piece.
void Tokenizer::encode_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& [symbols, heap] = scratch;
  symbols.clear();
  for (unsigned char c : piece) {
    const int32_t n = static_cast<int32_t>(symbols.size());
    if (byte_ids_[c] >= 0) symbols.push_back({byte_ids_[c], n - 1, n + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  const auto propose = [&](int32_t position) {
    if (const Merge* m = merge_at(position, scratch)) heap.push(pair_key(m->rank, position));
  };
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) propose(i);
  while (!heap.empty()) {
    const uint64_t best = heap.top();
    heap.pop();
    const int32_t position = static_cast<int32_t>(best & 0xffffffff);
    const Merge* m = merge_at(position, scratch);
    if (!m || pair_key(m->rank, position) != best) continue;  // a neighbour has merged meanwhile
    Symbol& left = symbols[static_cast<size_t>(position)];
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left = {m->id, left.previous, right.next};
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = position;
    propose(position);
    propose(left.previous);
  }
  for (const Symbol& s : symbols)
    if (s.id >= 0) ids.push_back(s.id);
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  for (int32_t id : ids) out += text(id);
  return out;
}

}  // namespace quest
