#include "model/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/words.h"

namespace quest {

namespace {

enum : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64, value_types };
constexpr uint64_t value_bytes[value_types] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr const char* value_names[value_types] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                  "bool", "string", "array", "u64", "i64", "f64"};
constexpr uint64_t length_limit = 1ull << 30;  // of a string or an array, as in llama.cpp

struct WeightType {
  uint32_t id;  // ggml's
  Type type;
  int64_t bytes, elements;  // of a block
};
constexpr WeightType weight_types[] = {{0, Type::f32, 4, 1},
                                       {1, Type::f16, 2, 1},
                                       {3, Type::q4_1, 20, 32},
                                       {8, Type::q8_0, 34, 32},
                                       {30, Type::bf16, 2, 1}};
constexpr const char* ggml_names[] = {  // for messages
    "F32",     "F16",    "Q4_0",    "Q4_1",  "Q4_2",   "Q4_3",  "Q5_0",  "Q5_1",
    "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"};

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// "WHAT NAME" for messages, without control characters.
std::string place(const char* what, std::string_view name) {
  std::string out = std::string(what) + " " + std::string(name.substr(0, 80));
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return out;
}

}  // namespace

// A cursor over the header that cannot leave the file.
struct Gguf::Reader {
  const Gguf& gguf;
  uint64_t at = 0;

  std::string here(const std::string& what) const { return "byte " + std::to_string(at) + ", " + what; }

  const std::byte* take(uint64_t bytes, const std::string& what) {
    const uint64_t left = gguf.file_->size() - at;
    if (bytes > left)
      gguf.refuse(here(what), std::to_string(bytes) + " more bytes", std::to_string(left),
                  "the file is cut short or damaged, fetch it again");
    const std::byte* p = gguf.file_->data() + at;
    at += bytes;
    return p;
  }
  template <class T>
  T number(const std::string& what) {
    return load<T>(take(sizeof(T), what));
  }

  std::string_view text(const std::string& what) {
    const uint64_t length = number<uint64_t>(what);
    if (length > length_limit) gguf.refuse(here(what), "a length of at most 2^30", std::to_string(length));
    const std::string_view s(reinterpret_cast<const char*>(take(length, what)), length);
    if (!valid_utf8(s)) gguf.refuse(here(what), "text in UTF-8", "other bytes");
    return s;
  }
};

void Gguf::refuse(const std::string& where, const std::string& expected, const std::string& found,
                  const std::string& advice) const {
  fail(Exit::input, "%s: %s: expected %s, found %s; %s", path().c_str(), where.c_str(), expected.c_str(),
       found.c_str(), advice.c_str());
}

Gguf::Gguf(const MappedFile& file) : file_(&file) {
  Reader reader{*this};
  if (!file.text().starts_with("GGUF"))
    refuse("byte 0", "a GGUF file", "something else", "pass a GGUF model");
  reader.take(4, "magic");
  const uint32_t version = reader.number<uint32_t>("version");
  if (version != 0 && (version & 0xffff) == 0)
    refuse("version", "a little-endian GGUF", "a big-endian one", "convert it for this machine");
  if (version != 2 && version != 3)
    refuse("version", "2 or 3", std::to_string(version), "convert the model again with a current llama.cpp");
  const uint64_t tensor_count = reader.number<uint64_t>("number of tensors");
  const uint64_t value_count = reader.number<uint64_t>("number of keys");
  for (uint64_t i = 0; i < value_count; ++i) read_value(reader, reader.text("a key"));
  for (uint64_t i = 0; i < tensor_count; ++i) read_tensor(reader);
  const int64_t alignment = integer("general.alignment", 32);
  if (alignment < 8 || (alignment & (alignment - 1)) != 0)
    refuse("key general.alignment", "a power of two of at least 8", std::to_string(alignment));
  place_tensors(reader.at, static_cast<uint64_t>(alignment));
}

void Gguf::read_value(Reader& reader, std::string_view key) {
  const std::string what = place("key", key);
  if (key.empty() || values_.count(key))
    refuse(reader.here(what), "a key of its own", "an empty or repeated one");
  Value v{reader.number<uint32_t>(what), 0, 1, nullptr};
  if (v.type >= value_types) refuse(what, "a value type of at most 12", std::to_string(v.type));
  if (v.type == array) {
    v.element = reader.number<uint32_t>(what);
    v.count = reader.number<uint64_t>(what);
    if (v.element >= value_types || v.element == array)
      refuse(what, "an array of numbers, bools or strings", "element type " + std::to_string(v.element));
    if (v.count > length_limit) refuse(what, "at most 2^30 elements", std::to_string(v.count));
  }
  const uint32_t element = v.type == array ? v.element : v.type;
  v.data = reader.take(0, what);
  if (element == string)
    for (uint64_t i = 0; i < v.count; ++i) reader.text(what);
  else
    reader.take(v.count * value_bytes[element], what);
  if (v.type == boolean && load<uint8_t>(v.data) > 1)
    refuse(what, "0 or 1", std::to_string(load<uint8_t>(v.data)));
  values_.emplace(key, v);
}

void Gguf::read_tensor(Reader& reader) {
  Tensor t{};
  t.name = reader.text("name of a tensor");
  const std::string what = place("tensor", t.name);
  if (t.name.empty() || t.name.size() >= 64 || !by_name_.emplace(t.name, tensors_.size()).second)
    refuse(reader.here(what), "a name of its own, of 1 to 63 bytes", "an empty, repeated or longer one");
  const uint32_t dimensions = reader.number<uint32_t>(what);
  if (dimensions < 1 || dimensions > 4) refuse(what, "1 to 4 dimensions", std::to_string(dimensions));
  int64_t elements = 1;
  for (uint32_t i = 0; i < 4; ++i) {
    t.ne[i] = i < dimensions ? reader.number<int64_t>(what) : 1;
    if (t.ne[i] < 1 || __builtin_mul_overflow(elements, t.ne[i], &elements))
      refuse(what, "dimensions of at least 1 with a product below 2^63", std::to_string(t.ne[i]));
  }
  const uint32_t id = reader.number<uint32_t>(what);
  const auto* type = std::find_if(std::begin(weight_types), std::end(weight_types),
                                  [&](const WeightType& w) { return w.id == id; });
  if (type == std::end(weight_types))
    refuse(what, "type F32, F16, BF16, Q4_1 or Q8_0",
           id < std::size(ggml_names) ? ggml_names[id] : std::to_string(id),
           "convert the model to one of these");
  t.type = type->type;
  if (t.ne[0] % type->elements)
    refuse(what, "rows of whole blocks of " + std::to_string(type->elements), std::to_string(t.ne[0]));
  if (__builtin_mul_overflow(elements / type->elements, type->bytes, &t.bytes))
    refuse(what, "fewer than 2^63 bytes", std::to_string(elements) + " elements");
  t.offset = reader.number<uint64_t>(what);
  tensors_.push_back(t);
}

// Data follow the header and each other without gaps, each padded to the alignment.
void Gguf::place_tensors(uint64_t header_end, uint64_t alignment) {
  const auto padded = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
  const uint64_t size = file_->size(), start = padded(header_end);
  uint64_t offset = 0;
  for (Tensor& t : tensors_) {
    if (t.offset != offset)
      refuse(place("tensor", t.name), "data at offset " + std::to_string(offset), std::to_string(t.offset));
    if (start + offset > size || static_cast<uint64_t>(t.bytes) > size - start - offset)
      refuse(place("tensor", t.name), std::to_string(t.bytes) + " bytes at offset " + std::to_string(offset),
             "the end of the file", "the file is cut short, fetch it again");
    t.data = file_->data() + start + offset;
    offset = padded(offset + static_cast<uint64_t>(t.bytes));
  }
}

const Gguf::Value& Gguf::value(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) refuse(place("key", key), "a value", "no such key");
  return found->second;
}

// A value of this very type (and of these elements).
const Gguf::Value& Gguf::value(std::string_view key, uint32_t type, uint32_t element) const {
  const Value& v = value(key);
  if (v.type != type || v.element != element)
    refuse(place("key", key),
           std::string(value_names[type]) + (element ? std::string(" of ") + value_names[element] : ""),
           value_names[v.type]);
  return v;
}

int64_t Gguf::integer_at(std::string_view key, uint32_t type, const std::byte* at) const {
  if (type > i32 && type != u64 && type != i64) refuse(place("key", key), "an integer", value_names[type]);
  uint64_t bits = 0;
  std::memcpy(&bits, at, value_bytes[type]);
  const uint64_t unused = 64 - 8 * value_bytes[type];
  const bool is_signed = type % 2;  // in the numbers of the types above; a u64 above 2^63 reads as negative
  return is_signed ? static_cast<int64_t>(bits << unused) >> unused : static_cast<int64_t>(bits);
}

int64_t Gguf::integer(std::string_view key) const {
  const Value& v = value(key);
  const int64_t result = integer_at(key, v.type, v.data);
  if (result < 0 || result > INT32_MAX)
    refuse(place("key", key), "an integer in [0, 2^31)", std::to_string(result));
  return result;
}

double Gguf::number(std::string_view key) const {
  const Value& v = value(key);
  if (v.type != f32 && v.type != f64) refuse(place("key", key), "f32 or f64", value_names[v.type]);
  const double result = v.type == f32 ? static_cast<double>(load<float>(v.data)) : load<double>(v.data);
  if (!std::isfinite(result)) refuse(place("key", key), "a finite number", std::to_string(result));
  return result;
}

bool Gguf::flag(std::string_view key, bool missing) const {
  return has(key) ? load<uint8_t>(value(key, boolean, 0).data) != 0 : missing;
}

std::string Gguf::text(std::string_view key) const {
  const std::byte* at = value(key, string, 0).data;
  return {reinterpret_cast<const char*>(at) + 8, load<uint64_t>(at)};
}

std::vector<std::string_view> Gguf::texts(std::string_view key) const {
  const Value& v = value(key, array, string);
  std::vector<std::string_view> list;
  for (const std::byte* at = v.data; list.size() < v.count; at += 8 + list.back().size())
    list.emplace_back(reinterpret_cast<const char*>(at) + 8, load<uint64_t>(at));
  return list;
}

std::vector<int64_t> Gguf::integers(std::string_view key) const {
  const Value& v = value(key);
  if (v.type != array) refuse(place("key", key), "an array of integers", value_names[v.type]);
  std::vector<int64_t> list;
  for (uint64_t i = 0; i < v.count; ++i)
    list.push_back(integer_at(key, v.element, v.data + i * value_bytes[v.element]));
  return list;
}

const Gguf::Tensor* Gguf::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace quest
