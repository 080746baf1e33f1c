// GGUF, versions 2 and 3: the container of llama.cpp. Tensors and strings stay where they are in the map.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/ops.h"

namespace quest {

// Parses the file's header. Every length, count, type, size and offset is checked here, so what it hands out
// lies inside the file; all members throw Error(input) naming file, key or tensor, expected and found.
class Gguf {
 public:
  struct Value {
    std::string type, kind;       // "u32", "array of f32"; "integer", "array of float"
    std::vector<double> numbers;  // integers too, and flags
    std::vector<std::string_view> texts;
  };
  struct Tensor {
    std::string_view name;
    Type type;
    int64_t ne[4];  // elements: ne[0] runs fastest (the inputs of a linear layer), ne[1] counts rows
    const std::byte* data;
    int64_t bytes;
    uint64_t offset;  // within the data, as the file says
  };

  explicit Gguf(const MappedFile& file);  // the file must outlive this object

  // The value of a key, or `missing` where there is no such key. An integer is of any integer type, at least
  // 0 and below 2^31; a number is of any floating-point type and may be NaN or infinite.
  bool has(std::string_view key) const { return values_.count(key) != 0; }
  int64_t integer(std::string_view key, std::optional<int64_t> missing = {}) const;
  double number(std::string_view key, std::optional<double> missing = {}) const {
    return missing && !has(key) ? *missing : value(key, "float").numbers[0];
  }
  bool flag(std::string_view key, bool missing) const {
    return has(key) ? value(key, "bool").numbers[0] != 0 : missing;
  }
  std::string text(std::string_view key, std::optional<std::string> missing = {}) const {
    return missing && !has(key) ? *missing : std::string(value(key, "string").texts[0]);
  }
  const std::vector<std::string_view>& texts(std::string_view key) const {
    return value(key, "array of string").texts;
  }
  const std::vector<double>& numbers(std::string_view key, const char* kind) const {
    return value(key, kind).numbers;  // kind: "array of integer", "array of float"
  }

  const std::vector<Tensor>& tensors() const { return tensors_; }  // in the order of their data
  const Tensor* find(std::string_view name) const {                // nullptr when there is none
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
  }

  // Throws Error(input): "PATH: PLACE: expected EXPECTED, found FOUND; ADVICE".
  [[noreturn]] void refuse(
      const std::string& place, const std::string& expected, const std::string& found,
      const std::string& advice = "the file is damaged or of another kind, pass another") const;

 private:
  struct Reader;
  void read_value(Reader& reader);
  void read_tensor(Reader& reader);
  void place_tensors(Reader& reader);
  const Value& value(std::string_view key, std::string_view kind) const;

  const MappedFile* file_;
  std::unordered_map<std::string_view, Value> values_;
  std::unordered_map<std::string_view, size_t> by_name_;
  std::vector<Tensor> tensors_;
};

}  // namespace quest
