#include "model/tokenizer.h"

#include <algorithm>
#include <functional>
#include <queue>

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

// Of the character at `at`. Numbers stand alone, character by character, and the pattern sees only what is
// between them: it cannot tell a number from the end of the text, so that end counts as one.
Class class_at(std::string_view text, size_t at) {
  if (at == text.size()) return Class::number;
  const int32_t c = next_code_point(text, at);
  const auto category = utf8proc_category(c);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return Class::letter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return Class::number;
  const bool separator = category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
  return separator || (c >= 9 && c <= 13) || c == 0x85 ? Class::space : Class::other;  // = White_Space
}

// The end of the run of one class that goes on at `at`.
size_t run_end(std::string_view text, size_t at, Class kind) {
  while (at < text.size() && class_at(text, at) == kind) next_code_point(text, at);
  return at;
}

// The end of the number at `at`, or of the match of GPT-2's pattern between numbers:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t match_end(std::string_view text, size_t at) {
  for (std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(at).starts_with(suffix)) return at + suffix.size();
  const Class kind = class_at(text, at);
  size_t next = at;
  const bool blank = next_code_point(text, next) == ' ';
  if (kind == Class::number) return next;
  const Class following = class_at(text, next);
  if (blank && (following == Class::letter || following == Class::other))
    return run_end(text, next, following);
  const size_t end = run_end(text, next, kind);
  if (kind != Class::space || end == next || class_at(text, end) == Class::number) return end;
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
  bos_ = always_added(gguf, "bos");
  eos_ = always_added(gguf, "eos");
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
      added_.push_back(static_cast<int32_t>(id));
    else if (bytes.size() == 1)
      byte_ids_[static_cast<unsigned char>(bytes[0])] = static_cast<int32_t>(id);
    texts_.push_back(bytes);
  }
  std::sort(added_.begin(), added_.end(),
            [&](int32_t a, int32_t b) { return text(a).size() > text(b).size(); });
  for (const int32_t id : added_)
    if (added_starts_.find(text(id)[0]) == std::string::npos) added_starts_ += text(id)[0];
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

// The id of the token "bos" or "eos" where the file asks for it, else -1.
int32_t Tokenizer::always_added(const Gguf& gguf, const std::string& name) const {
  const std::string key = "tokenizer.ggml." + name + "_token_id";
  const int64_t id = gguf.integer(key, -1);
  if (id >= size()) gguf.refuse("key " + key, "an id below " + std::to_string(size()), std::to_string(id));
  return gguf.flag("tokenizer.ggml.add_" + name + "_token", false) ? static_cast<int32_t>(id) : -1;
}

void Tokenizer::encode(std::string_view given, std::vector<int32_t>& ids) const {
  const std::string clean = repaired(given);
  std::string_view rest = clean;  // what is not encoded yet
  if (bos_ >= 0) ids.push_back(bos_);
  for (size_t at = 0; (at = rest.find_first_of(added_starts_, at)) != rest.npos;) {
    const auto found = std::find_if(added_.begin(), added_.end(),
                                    [&](int32_t id) { return rest.substr(at).starts_with(text(id)); });
    if (found == added_.end()) {
      ++at;
      continue;
    }
    encode_plain(rest.substr(0, at), ids);
    ids.push_back(*found);
    rest.remove_prefix(at + text(*found).size());
    at = 0;
  }
  encode_plain(rest, ids);
  if (eos_ >= 0) ids.push_back(eos_);
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  for (size_t at = 0, end; at < text.size(); at = end) {
    end = match_end(text, at);
    encode_piece(text.substr(at, end - at), ids);
  }
}

// BPE (Sennrich et al. 2016): the merge of lowest rank first, the leftmost of equal ones; O(n log n) in the
// piece.
void Tokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
  struct Symbol {
    int32_t id, previous, next;  // id -1: the two ends, and what has merged into the symbol before it
  };
  std::vector<Symbol> symbols = {{-1, 0, 1}};
  const auto append = [&](int32_t id) {
    const int32_t n = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, n - 1, n + 1});
  };
  for (unsigned char c : piece)
    if (byte_ids_[c] >= 0) append(byte_ids_[c]);
  append(-1);

  using Proposal = std::pair<int32_t, int32_t>;  // rank, position
  std::priority_queue<Proposal, std::vector<Proposal>, std::greater<>> heap;
  const auto merge_at = [&](int32_t position) -> const Merge* {  // of a symbol and the next
    const auto& [id, previous, next] = symbols[position];
    const auto found = id < 0 ? merges_.end() : merges_.find(pair_key(id, symbols[next].id));
    return found == merges_.end() ? nullptr : &found->second;
  };
  const auto propose = [&](int32_t position) {
    if (const Merge* m = merge_at(position)) heap.emplace(m->rank, position);
  };
  for (size_t i = 0; i < symbols.size(); ++i) propose(static_cast<int32_t>(i));
  while (!heap.empty()) {
    const auto [rank, position] = heap.top();
    heap.pop();
    const Merge* m = merge_at(position);
    if (!m || m->rank != rank) continue;  // a neighbour has merged meanwhile
    Symbol& left = symbols[position];
    Symbol& right = symbols[left.next];
    left = {m->id, left.previous, right.next};
    right.id = -1;
    symbols[left.next].previous = position;
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
