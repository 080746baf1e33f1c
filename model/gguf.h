// GGUF, versions 2 and 3: the container of llama.cpp. Everything stays where it is in the map; strings and
// arrays are views into it.
#pragma once
#include <cstddef>
#include <cstdint>
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
  struct Tensor {
    std::string_view name;
    Type type;
    int64_t ne[4];  // elements: ne[0] runs fastest (the inputs of a linear layer), ne[1] counts rows
    const std::byte* data;
    int64_t bytes, block;  // in all, and of a block of the type
    uint64_t offset;       // within the data, as the file says
  };

  explicit Gguf(const MappedFile& file);  // the file must outlive this object

  bool has(std::string_view key) const { return values_.count(key) != 0; }
  int64_t integer(std::string_view key) const;  // of any integer type, at least 0 and below 2^31
  int64_t integer(std::string_view key, int64_t missing) const { return has(key) ? integer(key) : missing; }
  double number(std::string_view key) const;  // of any floating-point type; may be NaN or infinite
  double number(std::string_view key, double missing) const { return has(key) ? number(key) : missing; }
  bool flag(std::string_view key, bool missing) const;
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, const char* missing) const { return has(key) ? text(key) : missing; }
  std::vector<std::string_view> texts(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }  // in the order of their data
  const Tensor* find(std::string_view name) const;                 // nullptr when there is none

  // Throws Error(input): "PATH: PLACE: expected EXPECTED, found FOUND; ADVICE".
  [[noreturn]] void refuse(
      const std::string& place, const std::string& expected, const std::string& found,
      const std::string& advice = "the file is damaged or of another kind, pass another") const;

 private:
  struct Value {
    uint32_t type;  // of the elements of an array
    bool is_array;
    uint64_t count;  // 1 unless an array
    const std::byte* data;
  };
  struct Reader;
  void read_value(Reader& reader);
  void read_tensor(Reader& reader);
  void place_tensors(Reader& reader);
  const Value& value(std::string_view key, bool is_array, std::string_view kind) const;

  const MappedFile* file_;
  std::unordered_map<std::string_view, Value> values_;
  std::unordered_map<std::string_view, size_t> by_name_;
  std::vector<Tensor> tensors_;
};

}  // namespace quest
