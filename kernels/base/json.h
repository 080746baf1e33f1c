// Writes JSON: numbers in the shortest form that reads back to the same double, strings escaped, two-space
// indent. (JSON is read with simdjson where it is needed.)
#pragma once
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>

#include "kernels/base/error.h"

namespace quest {

// Whether what simdjson parsed is a value, which it then is. Throws std::bad_alloc when there was no memory to
// find out.
bool is_json(auto&& parsed, auto& value) {
  auto error = parsed.get(value);
  if (error == decltype(error)::MEMALLOC) throw std::bad_alloc();
  return !error;
}

class JsonWriter {
 public:
  explicit JsonWriter(bool one_line = false) : one_line_(one_line) {}
  JsonWriter& object() { return open("{", '}'); }
  JsonWriter& array() { return open("[", ']'); }
  JsonWriter& end() {  // closes the innermost object or array
    const char closer = closers_.back();
    closers_.pop_back();
    if (!just_opened()) newline();
    out_ += closer;
    return *this;
  }
  JsonWriter& key(std::string_view name) {
    value(name);
    out_ += ": ";
    return *this;
  }
  JsonWriter& value(double number) {  // NaN and infinity become null
    char digits[40];
    if (!std::isfinite(number)) return raw("null");
    return raw({digits, std::to_chars(digits, digits + sizeof digits, number).ptr});
  }
  JsonWriter& value(std::integral auto number) { return raw(std::to_string(number)); }
  JsonWriter& value(bool b) { return raw(b ? "true" : "false"); }
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(std::string_view text) {
    std::string quoted = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c == '\n' ? "\\n" : uint8_t(c) < 0x20 ? format("\\u%04x", c) : std::string(1, c);
    }
    return raw(quoted += '"');
  }
  // An already written value. It stands behind its key, else behind a comma on a line of its own.
  JsonWriter& raw(std::string_view json) {
    if (!closers_.empty() && !out_.ends_with(": ")) {
      if (!just_opened()) out_ += one_line_ ? ", " : ",";
      newline();
    }
    out_ += json;
    return *this;
  }
  JsonWriter& field(std::string_view name, const auto& v) { return key(name).value(v); }
  const std::string& text() const { return out_; }

 private:
  JsonWriter& open(const char* bracket, char closer) {
    raw(bracket);
    closers_ += closer;
    return *this;
  }
  bool just_opened() const { return out_.back() == '{' || out_.back() == '['; }
  void newline() {
    if (!one_line_) out_.append("\n").append(2 * closers_.size(), ' ');
  }
  std::string out_, closers_;
  bool one_line_;
};

}  // namespace quest
