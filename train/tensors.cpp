#include "train/tensors.h"

#include <simdjson.h>

#include <charconv>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/json.h"

namespace quest {

namespace {

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  fail(Exit::input, "%s: expected a tensor file, found %s; make the file again", path.c_str(), what.c_str());
}

// One entry of the header: name -> {dtype, shape, data_offsets}. Returns where its data ends.
uint64_t read_entry(TensorFile& out, std::string_view name, simdjson::dom::element value, uint64_t begin,
                    std::string_view data) {
  const std::string& path = out.file.path();
  std::string_view type;
  simdjson::dom::array shape, offsets;
  uint64_t size[2], at[2];
  if (value["dtype"].get(type) || type != "F32" || value["shape"].get(shape) || shape.size() != 2 ||
      value["data_offsets"].get(offsets) || offsets.size() != 2)
    damaged(path,
            format("tensor '%s' without dtype F32, two sizes and two offsets", std::string(name).c_str()));
  for (size_t i = 0; i < 2; ++i)
    if (shape.at(i).get(size[i]) || offsets.at(i).get(at[i]))
      damaged(path,
              format("tensor '%s' with a size or offset that is no whole number", std::string(name).c_str()));
  const unsigned __int128 bytes = static_cast<unsigned __int128>(size[0]) * size[1] * 4;
  if (size[0] > 1u << 30 || size[1] > 1u << 30 || at[0] != begin || at[1] < at[0] || at[1] > data.size() ||
      bytes != at[1] - at[0])
    damaged(path, format("tensor '%s' of %llu x %llu numbers at bytes %llu to %llu of %zu",
                         std::string(name).c_str(), static_cast<unsigned long long>(size[0]),
                         static_cast<unsigned long long>(size[1]), static_cast<unsigned long long>(at[0]),
                         static_cast<unsigned long long>(at[1]), data.size()));
  const auto rows = static_cast<int64_t>(size[0]), cols = static_cast<int64_t>(size[1]);
  const auto* numbers = reinterpret_cast<const float*>(data.data() + begin);
  for (int64_t i = 0; i < rows * cols; ++i)
    if (!std::isfinite(numbers[i]))
      damaged(path, format("tensor '%s' with a number that is not finite", std::string(name).c_str()));
  const View view{const_cast<float*>(numbers), Type::f32, rows, cols, cols};
  if (!out.tensors.emplace(name, view).second)
    damaged(path, format("two tensors '%s'", std::string(name).c_str()));
  return at[1];
}

}  // namespace

View TensorFile::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) damaged(file.path(), format("no tensor '%s'", name.c_str()));
  const View v = found->second;
  if ((rows >= 0 && v.rows != rows) || (cols >= 0 && v.cols != cols))
    fail(Exit::input,
         "%s: expected tensor '%s' of %lld x %lld, found %lld x %lld; it belongs to another model or run",
         file.path().c_str(), name.c_str(), static_cast<long long>(rows), static_cast<long long>(cols),
         static_cast<long long>(v.rows), static_cast<long long>(v.cols));
  return v;
}

const std::string& TensorFile::text(const std::string& name) const {
  const auto found = metadata.find(name);
  if (found == metadata.end()) damaged(file.path(), format("no '%s' in __metadata__", name.c_str()));
  return found->second;
}

double TensorFile::number(const std::string& name) const {
  const std::string& s = text(name);
  double x = NAN;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), x);
  if (error != std::errc() || end != s.data() + s.size() || !std::isfinite(x))
    damaged(file.path(), format("'%s' in __metadata__ is '%s', no number", name.c_str(), s.c_str()));
  return x;
}

void write_tensors(const std::string& path, const TensorFile& contents) {
  JsonWriter json(true);
  json.object().key("__metadata__").object();
  for (const auto& [name, value] : contents.metadata) json.field(name, value);
  json.end();
  int64_t at = 0;
  for (const auto& [name, v] : contents.tensors) {
    const int64_t end = at + v.rows * v.cols * 4;
    json.key(name).object().field("dtype", "F32").key("shape").array().value(v.rows).value(v.cols).end();
    json.key("data_offsets").array().value(at).value(end).end().end();
    at = end;
  }
  std::string header = json.end().text();
  header.append((8 - header.size() % 8) % 8, ' ');
  OutFile out(path);
  out.put(static_cast<uint64_t>(header.size()));
  out.write(header);
  for (const auto& [name, v] : contents.tensors)
    for (int64_t i = 0; i < v.rows; ++i) out.write(row_pointer(v, i), static_cast<size_t>(v.cols) * 4);
  out.commit();
}

TensorFile read_tensors(const std::string& path) {
  TensorFile out;
  out.file = MappedFile(path);
  const std::string_view bytes = out.file.text();
  uint64_t length = 0;
  if (bytes.size() >= 8) memcpy(&length, bytes.data(), 8);
  if (bytes.size() < 8 || length > bytes.size() - 8 || length % 8)
    damaged(path,
            format("%zu bytes with a header of %llu", bytes.size(), static_cast<unsigned long long>(length)));
  simdjson::dom::parser parser;
  simdjson::dom::object header;
  if (parser.parse(bytes.data() + 8, length, true).get(header)) damaged(path, "a header that is not JSON");
  const std::string_view data = bytes.substr(8 + length);
  uint64_t end = 0;
  for (const auto& [name, value] : header) {
    if (name != "__metadata__") {
      end = read_entry(out, name, value, end, data);
      continue;
    }
    simdjson::dom::object strings;
    if (value.get(strings)) damaged(path, "a __metadata__ that is no object");
    for (const auto& [key, text] : strings) {
      std::string_view s;
      if (text.get(s)) damaged(path, "a __metadata__ entry that is no string");
      out.metadata.emplace(key, s);
    }
  }
  if (end != data.size())
    damaged(path, format("%zu bytes of data behind the last tensor", data.size() - end));
  return out;
}

}  // namespace quest
