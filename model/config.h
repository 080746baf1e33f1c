// A JSON file of a Hugging Face folder, read key by key. A key may lead into an object:
// "rope_scaling/factor".
#pragma once
#include <simdjson.h>

#include <cstdint>
#include <optional>
#include <string>

namespace quest {

class Config {
 public:
  explicit Config(const std::string& path);  // throws Error(input), as all members do
  Config(const std::string& name, std::string_view text);

  // The value of a key, or `missing` where there is none, or null. An integer is at least 0 and below 2^31.
  bool has(const std::string& key) const;
  int64_t integer(const std::string& key, std::optional<int64_t> missing = {}) const {
    return value<int64_t>(key, missing, "an integer in [0, 2^31)",
                          [](int64_t n) { return n >= 0 && n <= INT32_MAX; });
  }
  double number(const std::string& key, std::optional<double> missing = {}) const {
    return value<double>(key, missing, "a number");
  }
  bool flag(const std::string& key, std::optional<bool> missing = {}) const {
    return value<bool>(key, missing, "true or false");
  }
  std::string text(const std::string& key, std::optional<std::string> missing = {}) const {
    return std::string(value<std::string_view>(key, missing, "a text"));
  }
  simdjson::dom::element root() const { return root_; }

  // Throws Error(input): "PATH: PLACE: expected EXPECTED, found FOUND; ADVICE".
  [[noreturn]] void refuse(
      const std::string& place, const std::string& expected, const std::string& found,
      const std::string& advice = "the file is damaged or of another kind, pass another") const;

 private:
  template <class T>
  T value(
      const std::string& key, const auto& missing, const char* expected,
      bool (*good)(T) = [](T) { return true; }) const {
    if (missing && !has(key)) return *missing;
    T v;
    const auto found = root_.at_pointer("/" + key);
    if (found.error()) refuse("key " + key, expected, "no such key");
    if (found.get(v) || !good(v)) refuse("key " + key, expected, simdjson::minify(found.value_unsafe()));
    return v;
  }

  std::string path_;
  simdjson::dom::parser parser_;
  simdjson::dom::element root_;
};

}  // namespace quest
