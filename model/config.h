// Metadata by key: a JSON file of a Hugging Face folder, or what a GGUF says of itself (gguf.h). A key may
// lead into an object: "rope_scaling/factor".
#pragma once
#include <simdjson.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/base/json.h"

namespace quest {

// All members throw Error(input).
class Config {
 public:
  explicit Config(const std::string& path) : Config(path, read_file(path)) {}
  Config(const std::string& name, std::string_view text) : path_(name) { parse(text); }

  // The value of a key, or `missing` where there is none, or null. An integer is at least 0 and below 2^31, a
  // size is above 0.
  bool has(const std::string& key) const {
    const auto found = root_.at_pointer("/" + key);
    return !found.error() && !found.value_unsafe().is_null();
  }
  int64_t integer(const std::string& key, std::optional<int64_t> missing = {}) const {
    const int64_t n = value<int64_t>(key, "an integer in [0, 2^31)", missing);
    require((n >= 0 && n <= INT32_MAX) || !has(key), key, "an integer in [0, 2^31)");
    return n;
  }
  int64_t size(const std::string& key, std::optional<int64_t> missing = {}) const {
    const int64_t n = integer(key, missing);
    require(n > 0, key, "a number above 0");
    return n;
  }
  double number(const std::string& key, std::optional<double> missing = {}, double least = -INFINITY,
                double most = INFINITY) const {
    const double x = value<double>(key, "a number", missing);
    require(x >= least && x <= most, key, format("a number in [%g, %g]", least, most));
    return x;
  }
  bool flag(const std::string& key, std::optional<bool> missing = {}) const {
    return value<bool>(key, "true or false", missing);
  }
  std::string text(const std::string& key, std::optional<std::string> missing = {}) const {
    return std::string(value<std::string_view>(key, "a text", missing));
  }
  template <class T>
  std::vector<T> list(const std::string& key) const {
    std::vector<T> out;
    for (const auto item : value<simdjson::dom::array>(key, "a list")) {
      out.emplace_back();
      if (item.get(out.back())) refuse("key " + key, "elements of one type", simdjson::minify(item));
    }
    return out;
  }
  template <class T>
  T value(const std::string& key, const char* expected, const std::optional<T>& missing = {}) const {
    if (missing && !has(key)) return *missing;
    T v{};
    require(!root_.at_pointer("/" + key).get(v), key, expected);
    return v;
  }
  simdjson::dom::element root() const { return root_; }

  // Refuses a key's value unless it is good.
  void require(bool good, const std::string& key, const std::string& expected) const {
    if (good) return;
    const auto found = root_.at_pointer("/" + key);
    refuse("key " + key, expected, found.error() ? "no such key" : simdjson::minify(found.value_unsafe()));
  }
  // Throws Error(input): "PATH: PLACE: expected EXPECTED, found FOUND; ADVICE".
  [[noreturn]] void refuse(
      const std::string& place, const std::string& expected, const std::string& found,
      const std::string& advice = "the file is damaged or of another kind, pass another") const {
    fail(Exit::input, "%s: %.120s: expected %s, found %.120s; %s", path_.c_str(), place.c_str(),
         expected.c_str(), found.c_str(), advice.c_str());
  }

 protected:
  Config() = default;
  void parse(std::string_view text) {
    if (!is_json(parser_.parse(text.data(), text.size(), true), root_) || !root_.is_object())
      refuse("the file", "a JSON object", "something else");
  }

  std::string path_;

 private:
  simdjson::dom::parser parser_;
  simdjson::dom::element root_;
};

}  // namespace quest
