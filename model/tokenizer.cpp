#include "model/tokenizer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <queue>

#include "kernels/base/error.h"
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

enum class Class { letter, number, space, other, end };

Class class_at(std::string_view text, size_t at) {  // of the character there
  if (at == text.size()) return Class::end;
  const int32_t c = next_code_point(text, at);
  const auto category = utf8proc_category(c);
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return Class::letter;
  if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return Class::number;
  const bool separator = category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
  return separator || (c >= 9 && c <= 13) || c == 0x85 ? Class::space : Class::other;  // = White_Space
}

// The end of the run of one class that goes on at `at`, of at most so many characters.
size_t run_end(std::string_view text, size_t at, Class kind, size_t most = SIZE_MAX) {
  for (; most && class_at(text, at) == kind; --most) next_code_point(text, at);
  return at;
}

// The end of a run of white space that begins at `at`: its last character goes to what follows, if anything
// does and the run has another (\s+(?!\S)|\s+).
size_t space_end(std::string_view text, size_t at, bool follows) {
  size_t next = at;
  next_code_point(text, next);
  const size_t end = run_end(text, at, Class::space);
  if (end == next || !follows) return end;
  size_t last = end - 1;
  while ((static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
  return last;
}

// The end of GPT-2's match at `at`:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// SmolLM2 first takes numbers out, character by character: its pattern sees the text as ending there.
size_t match_gpt2(std::string_view text, size_t at, bool numbers_apart) {
  for (std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(at).starts_with(suffix)) return at + suffix.size();
  const Class kind = class_at(text, at);
  size_t next = at;
  const bool blank = next_code_point(text, next) == ' ';
  if (kind == Class::number && numbers_apart) return next;
  const Class following = class_at(text, next);
  const bool ends = following == Class::end || (following == Class::number && numbers_apart);
  if (blank && following != Class::space && !ends) return run_end(text, next, following);
  if (kind != Class::space) return run_end(text, next, kind);
  const Class after = class_at(text, run_end(text, at, Class::space));
  return space_end(text, at, after != Class::end && !(after == Class::number && numbers_apart));
}

// The end of Llama 3's match at `at`:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
//   \s*[\r\n]+|\s+(?!\S)|\s+
size_t match_llama3(std::string_view text, size_t at) {
  for (std::string_view suffix :
       {"'s", "'\u017f", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {  // U+017F folds to s
    const auto same = [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; };
    const std::string_view here = text.substr(at, suffix.size());
    if (std::equal(here.begin(), here.end(), suffix.begin(), suffix.end(), same)) return at + suffix.size();
  }
  const Class kind = class_at(text, at);
  size_t next = at;
  const int32_t c = next_code_point(text, next);
  if (kind == Class::letter) return run_end(text, next, Class::letter);
  if (kind == Class::number) return run_end(text, at, Class::number, 3);
  const Class following = class_at(text, next);
  if (following == Class::letter && c != '\r' && c != '\n') return run_end(text, next, Class::letter);
  const auto line_end = [&](size_t i) { return text[i] == '\r' || text[i] == '\n'; };
  if (kind == Class::other || (c == ' ' && following == Class::other)) {
    size_t end = run_end(text, next, Class::other);
    while (end < text.size() && line_end(end)) ++end;
    return end;
  }
  const size_t end = run_end(text, at, Class::space);
  for (size_t last = end; last > at; --last)
    if (line_end(last - 1)) return last;
  return space_end(text, at, end < text.size());
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

Tokenizer::Tokenizer(const Vocabulary& v)
    : pattern_(v.pattern), prefix_(v.prefix), count_(std::ssize(v.tokens)), bos_(v.bos), eos_(v.eos) {
  const int64_t count = count_;
  if (std::ssize(v.kinds) != count)
    v.refuse("token_type", format("%ld types, one a token", count), std::to_string(v.kinds.size()));
  byte_ids_.fill(-1);
  texts_.resize(count), unused_.resize(count);
  for (int32_t id = 0; id < count; ++id) {
    const std::string& token = v.tokens[id];
    const auto kind = v.kinds[id];
    unused_[id] = kind == Vocabulary::unused;
    if (token.empty() && !unused_[id]) v.refuse("tokens", "no empty token", format("one, number %d", id));
    if (kind == Vocabulary::control || kind == Vocabulary::user_defined)
      added_.push_back(id), texts_[id] = token;
    else if (!token.empty() && !symbols_.emplace(token, id).second)
      v.refuse("tokens", "every token once", token + " twice");
  }
  std::sort(added_.begin(), added_.end(),
            [&](int32_t a, int32_t b) { return text(a).size() > text(b).size(); });
  for (const int32_t id : added_) added_starts_ += text(id)[0];
  for (const auto& [name, id] : {std::pair("bos_token_id", v.bos), {"eos_token_id", v.eos}})
    if (id >= count) v.refuse(name, format("an id below %ld", count), std::to_string(id));

  if (pattern_ == Pattern::sentence_piece)
    read_sentence_piece(v);
  else
    read_bytes(v);
  int32_t rank = 0;
  for (const auto& [left, right] : v.merges) {
    const auto l = symbols_.find(left), r = symbols_.find(right), both = symbols_.find(left + right);
    if (l == symbols_.end() || r == symbols_.end() || both == symbols_.end() ||
        !merges_.emplace(pair_key(l->second, r->second), Merge{rank, both->second}).second)
      v.refuse(format("merges, merge %d", rank), "two tokens whose concatenation is a token, once",
               left + " " + right);
    ++rank;
  }
  if (pattern_ == Pattern::sentence_piece) return;
  symbols_.clear();
  for (int32_t id = 0; id < count && v.whole_pieces; ++id)
    if (v.kinds[id] == Vocabulary::normal && !texts_[id].empty()) symbols_.emplace(texts_[id], id);
}

void Tokenizer::read_bytes(const Vocabulary& v) {
  const auto alphabet = byte_alphabet();
  for (const auto& [token, id] : symbols_) {
    std::string& bytes = texts_[id];
    for (size_t at = 0; at < token.size();) {
      const size_t c = next_code_point(token, at);
      if (c >= alphabet.size() || alphabet[c] < 0) {  // no text becomes this token
        bytes.clear();
        break;
      }
      bytes += static_cast<char>(alphabet[c]);
    }
    if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
  }
  // Bytes above 0xf0 and control characters are rare, and SmolLM2 lacks some; others are never missing.
  for (int b = 0x20; b <= 0xef; ++b)
    if (byte_ids_[b] < 0 && b != 0x7f && b != 0xc0 && b != 0xc1)
      v.refuse("tokens", "a token for each byte", format("none for byte %d", b));
}

// The pair that becomes the token of highest score merges first: with ranks by score, SentencePiece's BPE is
// the BPE of listed merges, over every way to part a token in two.
void Tokenizer::read_sentence_piece(const Vocabulary& v) {
  for (int32_t id = 0; id < size(); ++id) {
    if (v.kinds[id] == Vocabulary::unknown) unknown_ = id;
    if (v.kinds[id] == Vocabulary::byte) {
      int byte = -1;
      if (sscanf(v.tokens[id].c_str(), "<0x%2X>", &byte) != 1 || byte < 0)
        v.refuse("tokens", "a byte as <0xNN>", v.tokens[id]);
      byte_ids_[byte] = id, texts_[id] = static_cast<char>(byte);
    }
    if (v.kinds[id] == Vocabulary::byte || v.kinds[id] == Vocabulary::unknown) symbols_.erase(v.tokens[id]);
  }
  const bool bytes = std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  if (!bytes && unknown_ < 0) v.refuse("tokens", "the 256 bytes, or a token for what is unknown", "neither");
  if (v.merges.empty() && v.scores.size() != v.tokens.size())
    v.refuse("scores", format("%zu, one a token", v.tokens.size()), std::to_string(v.scores.size()));
  std::vector<float> scores = v.scores;
  for (const float s : scores)
    if (!std::isfinite(s)) v.refuse("scores", "finite numbers", format("%g", s));
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const std::vector<std::pair<std::string, int32_t>> tokens(symbols_.begin(), symbols_.end());
  for (const auto& [token, id] : tokens) {
    for (size_t at = 0, next; at < token.size(); at = next) {
      const int32_t c = next_code_point(token, next = at);
      append_utf8(texts_[id], c == 0x2581 ? ' ' : c);
      const std::string character = token.substr(at, next - at);
      if (symbols_.emplace(character, texts_.size()).second) texts_.push_back(character);
    }
  }
  if (!v.merges.empty()) return;
  for (const auto& [token, id] : tokens)
    for (size_t at = 0; at < token.size();) {
      next_code_point(token, at);
      const auto l = symbols_.find(token.substr(0, at)), r = symbols_.find(token.substr(at));
      const auto rank =
          std::lower_bound(scores.begin(), scores.end(), v.scores[id], std::greater<>()) - scores.begin();
      if (l != symbols_.end() && r != symbols_.end())
        merges_.emplace(pair_key(l->second, r->second), Merge{static_cast<int32_t>(rank), id});
    }
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
    encode_plain(rest.substr(0, at), rest.size() == clean.size(), ids);
    ids.push_back(*found);
    rest.remove_prefix(at + text(*found).size());
    at = 0;
  }
  encode_plain(rest, rest.size() == clean.size(), ids);
  if (eos_ >= 0) ids.push_back(eos_);
}

void Tokenizer::encode_plain(std::string_view text, bool first, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (pattern_ != Pattern::sentence_piece) {
    for (size_t at = 0, end; at < text.size(); at = end) {
      end = pattern_ == Pattern::llama3 ? match_llama3(text, at)
                                        : match_gpt2(text, at, pattern_ == Pattern::smollm);
      encode_piece(text.substr(at, end - at), ids);
    }
    return;
  }
  const bool absent = text[0] != ' ' && !text.starts_with("\u2581");
  std::string marked = prefix_ == Prefix::always || (prefix_ == Prefix::if_absent && absent) ||
                               (prefix_ == Prefix::if_absent_at_first && absent && first)
                           ? "\u2581"
                           : "";
  for (const char c : text) c == ' ' ? marked += "\u2581" : marked += c;
  encode_piece(marked, ids);
}

// A character without a token: its bytes, or the token for what is unknown.
void Tokenizer::push_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  for (const unsigned char byte : character) {
    if (byte_ids_[byte] < 0) return ids.push_back(unknown_);
    ids.push_back(byte_ids_[byte]);
  }
}

// BPE (Sennrich et al. 2016): the merge of lowest rank first, the leftmost of equal ones; O(n log n) in the
// piece, times the length of a token.
void Tokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
  constexpr int32_t end = -1, gone = -2;
  std::vector<int32_t> at = {end};  // ids; `gone` is what has merged into the symbol before it
  if (pattern_ == Pattern::sentence_piece) {
    for (size_t i = 0, next; i < piece.size(); i = next) {
      next_code_point(piece, next = i);
      const auto found = symbols_.find(std::string(piece.substr(i, next - i)));
      if (found != symbols_.end())
        at.push_back(found->second);
      else
        push_bytes(piece.substr(i, next - i), at);
    }
  } else {
    if (!symbols_.empty())  // most vocabularies have none: no copy of the piece then
      if (const auto whole = symbols_.find(std::string(piece)); whole != symbols_.end())
        return ids.push_back(whole->second);
    for (const unsigned char c : piece)
      if (byte_ids_[c] >= 0) at.push_back(byte_ids_[c]);
  }
  at.push_back(end);

  std::unordered_map<int32_t, std::pair<int32_t, int32_t>> parts;  // what an unused token is split into again
  const auto neighbour = [&](int32_t position, int32_t step) {     // no further than a token is long
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
    const int32_t right = neighbour(position, 1);
    if (unused_[m->second.id]) parts[m->second.id] = {at[position], at[right]};
    at[right] = gone;
    at[position] = m->second.id;
    propose(position);
    propose(neighbour(position, -1));
  }
  const auto emit = [&](const auto& self, int32_t id) -> void {
    if (id >= count_) return push_bytes(texts_[id], ids);
    const auto split = parts.find(id);
    if (!unused_[id] || split == parts.end()) return ids.push_back(id);
    self(self, split->second.first), self(self, split->second.second);
  };
  for (const int32_t id : at)
    if (id >= 0) emit(emit, id);
}

}  // namespace quest
