#include "train/tensors.h"

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

// One entry of the header: name -> {dtype, shape, data_offsets}; the data must begin at `begin`. Returns its
// end.
uint64_t read_entry(TensorFile& out, std::string_view name, simdjson::dom::element entry, uint64_t begin,
                    std::string_view data) {
  const auto two = [&](const char* key, uint64_t(&to)[2]) {
    simdjson::dom::array numbers;
    return !entry[key].get(numbers) && numbers.size() == 2 && !numbers.at(0).get(to[0]) &&
           !numbers.at(1).get(to[1]);
  };
  std::string_view type;
  uint64_t shape[2], at[2];
  const bool read =
      !entry["dtype"].get(type) && type == "F32" && two("shape", shape) && two("data_offsets", at);
  if (!read || shape[0] > 1u << 30 || shape[1] > 1u << 30 || at[0] != begin || at[1] < begin ||
      at[1] > data.size() || shape[0] * shape[1] != (at[1] - begin) / 4 || (at[1] - begin) % 4)
    damaged(out.file, format("tensor '%s' that is no F32 matrix of two sizes at bytes %lu to at most %zu",
                             std::string(name).c_str(), begin, data.size()));
  const auto* numbers = reinterpret_cast<const float*>(data.data() + begin);
  if (!std::all_of(numbers, numbers + shape[0] * shape[1], [](float x) { return std::isfinite(x); }))
    damaged(out.file, format("tensor '%s' with a number that is not finite", std::string(name).c_str()));
  const int64_t rows = shape[0], cols = shape[1];
  if (!out.tensors.emplace(name, View{const_cast<float*>(numbers), Type::f32, rows, cols, cols}).second)
    damaged(out.file, format("two tensors '%s'", std::string(name).c_str()));
  return at[1];
}

}  // namespace

View TensorFile::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) damaged(file, format("no tensor '%s'", name.c_str()));
  const View v = found->second;
  if (v.rows != rows || v.cols != cols)
    fail(Exit::input,
         "%s: expected tensor '%s' of %ld x %ld, found %ld x %ld; it belongs to another model or run",
         file.path().c_str(), name.c_str(), rows, cols, v.rows, v.cols);
  return v;
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
  JsonWriter json(true);
  json.object().key("__metadata__").object();
  for (const auto& [name, value] : contents.metadata) json.field(name, value);
  json.end();
  int64_t at = 0;
  for (const auto& [name, v] : contents.tensors) {
    json.key(name).object().field("dtype", "F32").key("shape").array().value(v.rows).value(v.cols).end();
    json.key("data_offsets").array().value(at);
    json.value(at += v.rows * v.cols * 4).end().end();
  }
  std::string header = json.end().text();
  header.append((8 - header.size() % 8) % 8, ' ');
  OutFile out(path);
  out.put(uint64_t{header.size()});
  out.write(header);
  for (const auto& [name, v] : contents.tensors) out.write(v.data, v.rows * v.cols * 4);
  out.commit();
}

TensorFile read_tensors(const std::string& path) {
  TensorFile out;
  out.file = MappedFile(path);
  const std::string_view bytes = out.file.text();
  uint64_t length = 0, end = 0;
  if (bytes.size() >= 8) memcpy(&length, bytes.data(), 8);
  if (bytes.size() < 8 || length > bytes.size() - 8 || length % 8)
    damaged(out.file, format("%zu bytes with a header of %lu", bytes.size(), length));
  simdjson::dom::parser parser;
  simdjson::dom::object header, strings;
  if (parser.parse(bytes.data() + 8, length, true).get(header))
    damaged(out.file, "a header that is not JSON");
  const std::string_view data = bytes.substr(8 + length);
  for (const auto& [name, value] : header)
    if (name != "__metadata__") end = read_entry(out, name, value, end, data);
  if (header["__metadata__"].get(strings)) damaged(out.file, "no object __metadata__");
  for (const auto& [key, value] : strings) {
    std::string_view text;
    if (value.get(text)) damaged(out.file, "a __metadata__ entry that is no string");
    out.metadata.emplace(key, text);
  }
  if (end != data.size())
    damaged(out.file, format("%zu bytes of data behind the last tensor", data.size() - end));
  return out;
}

}  // namespace quest
