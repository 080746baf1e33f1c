// Writes JSON: numbers in the shortest form that reads back to the same double, strings escaped, two-space
// indent.
// (JSON is read with simdjson where it is needed.)
#pragma once
#include <concepts>
#include <string>
#include <string_view>

namespace quest {

class JsonWriter {
 public:
  explicit JsonWriter(bool one_line = false) : one_line_(one_line) {}
  JsonWriter& object() { return open('{'); }
  JsonWriter& array() { return open('['); }
  JsonWriter& end();  // closes the innermost object or array
  JsonWriter& key(std::string_view name);
  JsonWriter& value(double number);  // NaN and infinity become null
  JsonWriter& value(std::integral auto number) { return raw(std::to_string(number)); }
  JsonWriter& value(bool b) { return raw(b ? "true" : "false"); }
  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& raw(std::string_view json);  // an already written value
  template <class T>
  JsonWriter& field(std::string_view name, const T& v) {
    return key(name).value(v);
  }
  const std::string& text() const { return out_; }

 private:
  JsonWriter& open(char bracket);
  void separate();
  void newline();
  std::string out_, closers_;
  bool first_ = true, after_key_ = false, one_line_;
};

}  // namespace quest
