#include "model/tensors.h"

#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/json.h"

namespace quest {

namespace {

[[noreturn]] void damaged(const MappedFile& file, const std::string& what) {
  fail(Exit::input, "%s: expected a tensor file, found %s; make the file again", file.path().c_str(),
       what.c_str());
}

int64_t element_bytes(std::string_view type) {  // 0: unknown
  constexpr std::pair<std::string_view, int64_t> known[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},  {"I32", 4},     {"I16", 2},    {"I8", 1},
      {"U64", 8}, {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& [name, bytes] : known)
    if (name == type) return bytes;
  return 0;
}

// One entry of the header: name -> {dtype, shape, data_offsets}.
Tensor read_entry(const MappedFile& file, std::string_view name, simdjson::dom::element entry,
                  std::string_view data) {
  std::string_view type;
  simdjson::dom::array sizes, offsets;
  uint64_t begin = 0, end = 0;
  std::vector<int64_t> shape;
  bool good = !entry["dtype"].get(type) && element_bytes(type) && !entry["shape"].get(sizes) &&
              !entry["data_offsets"].get(offsets) && offsets.size() == 2 && !offsets.at(0).get(begin) &&
              !offsets.at(1).get(end) && begin <= end && end <= data.size();
  int64_t bytes = good ? element_bytes(type) : 0;
  if (good)
    for (const auto size : sizes) {
      int64_t n = -1;
      good = good && !size.get(n) && n >= 0 && !__builtin_mul_overflow(bytes, n, &bytes);
      shape.push_back(n);
    }
  if (!good || static_cast<uint64_t>(bytes) != end - begin)
    damaged(file,
            format("tensor '%.80s' without a known dtype, a shape and their bytes within the %zu of the data",
                   std::string(name).c_str(), data.size()));
  return {std::string(type), shape, data.data() + begin, bytes};
}

}  // namespace

Tensor::Tensor(const View& v)
    : Tensor(format_of(v.type).name, {v.rows, v.cols}, v.data, v.rows * v.cols * format_of(v.type).bytes) {}

View TensorFile::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) damaged(file, format("no tensor '%s'", name.c_str()));
  const Tensor& t = found->second;
  if (t.type != "F32" || t.shape.size() != 2 || reinterpret_cast<uintptr_t>(t.data) % 4)
    damaged(file, format("tensor '%s' that is no aligned F32 matrix", name.c_str()));
  if (rows < 0) rows = t.shape[0];
  if (t.shape[0] != rows || t.shape[1] != cols)
    fail(Exit::input,
         "%s: expected tensor '%s' of %ld x %ld, found %ld x %ld; it belongs to another model or run",
         file.path().c_str(), name.c_str(), rows, cols, t.shape[0], t.shape[1]);
  auto* numbers = reinterpret_cast<float*>(const_cast<std::byte*>(t.data));
  if (!std::all_of(numbers, numbers + rows * cols, [](float x) { return std::isfinite(x); }))
    damaged(file, format("tensor '%s' with a number that is not finite", name.c_str()));
  return {numbers, Type::f32, rows, cols, cols};
}

std::vector<float> TensorFile::numbers(const std::string& name, int64_t rows, int64_t cols) const {
  const View v = matrix(name, rows, cols);
  const auto* x = static_cast<const float*>(v.data);
  return {x, x + v.rows * v.cols};
}

const std::string& TensorFile::text(const std::string& name) const {
  const auto found = metadata.find(name);
  if (found == metadata.end()) damaged(file, format("no '%s' in __metadata__", name.c_str()));
  return found->second;
}

double TensorFile::number(const std::string& name) const {
  const std::string& s = text(name);
  double x = NAN;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), x);
  if (error != std::errc() || end != s.data() + s.size() || !std::isfinite(x))
    damaged(file, format("'%s' in __metadata__ is '%s', no number", name.c_str(), s.c_str()));
  return x;
}

void TensorFile::expect(const std::string& name, const std::string& value, const char* advice) const {
  if (text(name) != value)
    fail(Exit::input, "%s: expected %s %s, found %s; %s", file.path().c_str(), name.c_str(),
         text(name).c_str(), value.c_str(), advice);
}

void write_tensors(const std::string& path, const TensorFile& contents) {
  std::vector<std::pair<std::string, const Tensor*>> order;  // wide types first: so all are aligned
  for (const auto& [name, tensor] : contents.tensors) order.emplace_back(name, &tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return element_bytes(a.second->type) > element_bytes(b.second->type);
  });
  JsonWriter json(true);
  json.object().key("__metadata__").object();
  for (const auto& [name, value] : contents.metadata) json.field(name, value);
  json.end();
  int64_t at = 0;
  for (const auto& [name, t] : order) {
    json.key(name).object().field("dtype", t->type).key("shape").array();
    for (const int64_t n : t->shape) json.value(n);
    json.end().key("data_offsets").array().value(at);
    json.value(at += t->bytes).end().end();
  }
  std::string header = json.end().text();
  header.append((8 - header.size() % 8) % 8, ' ');
  OutFile out(path);
  out.put(uint64_t{header.size()});
  out.write(header);
  for (const auto& [name, t] : order) out.write(t->data, t->bytes);
  out.commit();
}

TensorFile read_tensors(const std::string& path) {
  TensorFile out;
  out.file = MappedFile(path);
  const std::string_view bytes = out.file.text();
  uint64_t length = 0;
  if (bytes.size() >= 8) memcpy(&length, bytes.data(), 8);
  if (bytes.size() < 8 || length > bytes.size() - 8 || length > 100'000'000)
    damaged(out.file, format("%zu bytes with a header of %lu", bytes.size(), length));
  simdjson::dom::parser parser;
  simdjson::dom::object header, strings;
  if (!is_json(parser.parse(bytes.data() + 8, length, true), header))
    damaged(out.file, "a header that is not a JSON object");
  const std::string_view data = bytes.substr(8 + length);
  for (const auto& [name, value] : header)
    if (name != "__metadata__" &&
        !out.tensors.emplace(std::string(name), read_entry(out.file, name, value, data)).second)
      damaged(out.file, format("two tensors '%.80s'", std::string(name).c_str()));
  std::vector<std::pair<const std::byte*, int64_t>> parts;
  for (const auto& [name, t] : out.tensors) parts.emplace_back(t.data, t.bytes);
  std::sort(parts.begin(), parts.end());
  const auto* end = reinterpret_cast<const std::byte*>(data.data());
  for (const auto& [begin, size] : parts) {
    if (begin != end) damaged(out.file, "tensors that overlap or leave a hole");
    end = begin + size;
  }
  if (end != out.file.data() + out.file.size())
    damaged(out.file,
            format("%zu bytes of data behind the last tensor", out.file.data() + out.file.size() - end));
  if (!header["__metadata__"].get(strings))
    for (const auto& [key, value] : strings) {
      std::string_view text;
      if (value.get(text)) damaged(out.file, "a __metadata__ entry that is no string");
      out.metadata.emplace(key, text);
    }
  return out;
}

}  // namespace quest
