// Unicode text, by utf8proc: code points, and words as \w+ in lower case (letters, marks, digits,
// underscore).
#pragma once
#include <utf8proc.h>

#include <string>
#include <string_view>

namespace quest {

// Reads one code point at text[at] and moves `at` behind it; -1 when the bytes are not UTF-8 (then `at` moves
// by one).
inline int32_t next_code_point(std::string_view text, size_t& at) {
  utf8proc_int32_t c = -1;
  const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                                  static_cast<utf8proc_ssize_t>(text.size() - at), &c);
  at += n > 0 ? static_cast<size_t>(n) : 1;
  return n > 0 ? c : -1;
}

inline void append_utf8(std::string& out, int32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto n = static_cast<size_t>(utf8proc_encode_char(code_point, bytes));
  out.append(reinterpret_cast<const char*>(bytes), n);
}

// Calls f(std::string_view word) for every maximal run of word characters, lower-cased one by one.
// `word` is scratch that the caller keeps, so that nothing is allocated per word.
inline void each_word(std::string_view text, std::string& word, auto&& f) {
  word.clear();
  for (size_t at = 0; at < text.size();) {
    const int32_t c = next_code_point(text, at);
    const auto category = utf8proc_category(c);
    if (c == '_' || (c >= 0 && category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO))
      append_utf8(word, utf8proc_tolower(c));
    else if (!word.empty())
      f(std::string_view(word)), word.clear();
  }
  if (!word.empty()) f(std::string_view(word));
}

}  // namespace quest
