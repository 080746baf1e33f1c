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
    bytes[(b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad) ? b : next++] = b;
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
  const std::string keys = "tokenizer.ggml.", place = "key " + keys;
  const std::string model = gguf.text(keys + "model"), pre = gguf.text(keys + "pre", "default");
  if (model != "gpt2" || pre != "smollm")
    gguf.refuse(place + "pre", "model gpt2 with pre smollm (others are not read yet)",
                "model " + model + " with pre " + pre, "pass another model");
  const std::vector<std::string_view>& tokens = gguf.texts(keys + "tokens");
  const std::vector<double>& types = gguf.integers(keys + "token_type");
  if (types.size() != tokens.size())
    gguf.refuse(place + "token_type", format("%zu types, one a token", tokens.size()),
                std::to_string(types.size()));
  const auto alphabet = byte_alphabet();
  byte_ids_.fill(-1);
  for (const std::string_view token : tokens) {
    const int32_t id = size();
    if (token.empty()) gguf.refuse(place + "tokens", "no empty token", format("one, number %d", id));
    const bool added = types[id] == 3 || types[id] == 4;  // control, user-defined
    std::string bytes(added ? token : "");
    for (size_t at = 0; at < token.size() && !added;)
      if (const size_t c = next_code_point(token, at); c < alphabet.size() && alphabet[c] >= 0)
        bytes += static_cast<char>(alphabet[c]);
    if (added)
      added_.push_back(id);
    else if (bytes.size() == 1)
      byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    texts_.push_back(bytes);
  }
  std::sort(added_.begin(), added_.end(),
            [&](int32_t a, int32_t b) { return text(a).size() > text(b).size(); });
  for (const int32_t id : added_) added_starts_ += text(id)[0];
  // Bytes above 0xf0 and control characters are rare, and SmolLM2 lacks some; others are never missing.
  for (int b = 0x20; b <= 0xef; ++b)
    if (byte_ids_[b] < 0 && b != 0x7f && b != 0xc0 && b != 0xc1)
      gguf.refuse(place + "tokens", "a token for each byte", format("none for byte %d", b));

  std::unordered_map<std::string_view, int32_t> ids;
  for (const std::string_view token : tokens)
    if (!ids.emplace(token, ids.size()).second)
      gguf.refuse(place + "tokens", "every token once", std::string(token) + " twice");
  for (const std::string_view merge : gguf.texts(keys + "merges")) {
    const size_t space = std::min(merge.find(' '), merge.size());
    const std::string left(merge.substr(0, space)), right(merge.substr(std::min(space + 1, merge.size())));
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(left + right);
    const int32_t rank = merges_.size();
    if (l == ids.end() || r == ids.end() || both == ids.end() ||
        !merges_.emplace(pair_key(l->second, r->second), Merge{rank, both->second}).second)
      gguf.refuse(format("%smerges, merge %d", place.c_str(), rank),
                  "two tokens whose concatenation is a token, once", std::string(merge));
  }
  const auto always_added = [&](const std::string& name) {  // "bos" or "eos"; -1 where the file asks for none
    const int64_t id = gguf.integer(keys + name + "_token_id", -1);
    if (id >= size())
      gguf.refuse(place + name + "_token_id", format("an id below %ld", size()), std::to_string(id));
    return gguf.flag(keys + "add_" + name + "_token", false) ? id : -1;
  };
  bos_ = always_added("bos");
  eos_ = always_added("eos");
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
// piece, times the length of a token.
void Tokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
  constexpr int32_t end = -1, gone = -2;
  std::vector<int32_t> at = {end};  // ids; `gone` is what has merged into the symbol before it
  for (const unsigned char c : piece)
    if (byte_ids_[c] >= 0) at.push_back(byte_ids_[c]);
  at.push_back(end);

  const auto neighbour = [&](int32_t position, int32_t step) {  // no further than a token is long
    do position += step;
    while (at[position] == gone);
    return position;
  };
  const auto merge_at = [&](int32_t position) {  // of a symbol and the next
    return merges_.find(pair_key(at[position], at[neighbour(position, 1)]));
  };
  using Proposal = std::pair<int32_t, int32_t>;  // rank, position
  std::priority_queue<Proposal, std::vector<Proposal>, std::greater<>> heap;
  const auto propose = [&](int32_t position) {
    if (const auto m = merge_at(position); m != merges_.end()) heap.emplace(m->second.rank, position);
  };
  for (int32_t i = 0; i + 1 < std::ssize(at); ++i) propose(i);
  while (!heap.empty()) {
    const auto [rank, position] = heap.top();
    heap.pop();
    const auto m = merge_at(position);
    if (m == merges_.end() || m->second.rank != rank) continue;  // a neighbour has merged meanwhile
    at[neighbour(position, 1)] = gone;
    at[position] = m->second.id;
    propose(position);
    propose(neighbour(position, -1));
  }
  std::copy_if(at.begin(), at.end(), std::back_inserter(ids), [](int32_t id) { return id >= 0; });
}

}  // namespace quest
