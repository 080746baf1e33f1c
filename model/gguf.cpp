#include "model/gguf.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/words.h"

namespace quest {

namespace {

struct ValueType {
  const char* name;
  uint64_t bytes;  // 0: not a fixed number
  std::string_view kind;
};
constexpr ValueType value_types[] = {{"u8", 1, "integer"},  {"i8", 1, "integer"},  {"u16", 2, "integer"},
                                     {"i16", 2, "integer"}, {"u32", 4, "integer"}, {"i32", 4, "integer"},
                                     {"f32", 4, "float"},   {"bool", 1, "bool"},   {"string", 0, "string"},
                                     {"array", 0, "array"}, {"u64", 8, "integer"}, {"i64", 8, "integer"},
                                     {"f64", 8, "float"}};
constexpr uint32_t array = 9;

struct WeightType {
  uint32_t id;  // ggml's
  Type type;
  int64_t block;  // elements
};
constexpr WeightType weight_types[] = {
    {0, Type::f32, 1}, {1, Type::f16, 1}, {3, Type::q4_1, 32}, {8, Type::q8_0, 32}, {30, Type::bf16, 1}};
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

// A u64 above 2^63 reads as negative.
int64_t load_integer(uint32_t type, const std::byte* at) {
  const auto& [name, bytes, kind] = value_types[type];
  uint64_t bits = 0;
  std::memcpy(&bits, at, bytes);
  const uint64_t unused = 64 - 8 * bytes;
  return name[0] == 'i' ? static_cast<int64_t>(bits << unused) >> unused : static_cast<int64_t>(bits);
}

}  // namespace

// A cursor over the header that cannot leave the file.
struct Gguf::Reader {
  const Gguf& gguf;
  std::string place;  // what is being read, for messages
  uint64_t at = 0;

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    gguf.refuse(place + ", before byte " + std::to_string(at), expected, found);
  }

  const std::byte* take(uint64_t count, uint64_t size = 1) {
    const uint64_t left = gguf.file_->size() - at;
    if (count > left / size)
      gguf.refuse(place, format("%zu x %zu bytes from byte %zu on", count, size, at),
                  format("the end of the file after %zu", left),
                  "the file is cut short or damaged, fetch it again");
    const std::byte* p = gguf.file_->data() + at;
    at += count * size;
    return p;
  }

  template <class T>
  T number() {
    return load<T>(take(1, sizeof(T)));
  }

  std::string_view text() {
    const uint64_t length = number<uint64_t>();
    const std::string_view s(reinterpret_cast<const char*>(take(length)), length);
    if (!valid_utf8(s)) refuse("text in UTF-8", "other bytes");
    return s;
  }
};

void Gguf::refuse(const std::string& place, const std::string& expected, const std::string& found,
                  const std::string& advice) const {
  std::string sentence = format("%s: %.120s: expected %s, found %.120s; %s", file_->path().c_str(),
                                place.c_str(), expected.c_str(), found.c_str(), advice.c_str());
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  std::replace_if(sentence.begin(), sentence.end(), control, '?');
  throw Error(Exit::input, sentence);
}

Gguf::Gguf(const MappedFile& file) : file_(&file) {
  Reader reader{*this, "header"};
  if (!file.text().starts_with("GGUF"))
    refuse("byte 0", "a GGUF file", "something else", "pass a GGUF model");
  reader.take(4);
  const uint32_t version = reader.number<uint32_t>();
  if (version != 2 && version != 3)
    refuse("version", "2 or 3", version > 0xffff ? "a big-endian file" : std::to_string(version),
           "convert the model again with a current llama.cpp");
  const uint64_t tensors = reader.number<uint64_t>(), values = reader.number<uint64_t>();
  for (uint64_t i = 0; i < values; ++i) read_value(reader);
  for (uint64_t i = 0; i < tensors; ++i) read_tensor(reader);
  place_tensors(reader);
}

void Gguf::read_value(Reader& reader) {
  reader.place = "a key";
  const std::string_view key = reader.text();
  reader.place = "key " + std::string(key);
  Value v{reader.number<uint32_t>(), false, 1, nullptr};
  v.is_array = v.type == array;
  if (v.is_array) v.type = reader.number<uint32_t>(), v.count = reader.number<uint64_t>();
  if (v.type >= std::size(value_types) || v.type == array)
    reader.refuse("a number, a bool, a string or an array of these",
                  (v.is_array ? "element type " : "type ") + std::to_string(v.type));
  const uint64_t bytes = value_types[v.type].bytes;
  v.data = reader.take(bytes ? v.count : 0, bytes ? bytes : 1);
  for (uint64_t i = 0; i < v.count && bytes == 0; ++i) reader.text();
  if (value_types[v.type].kind == "bool" && !v.is_array && load<uint8_t>(v.data) > 1)
    reader.refuse("0 or 1", std::to_string(load<uint8_t>(v.data)));
  if (key.empty() || !values_.emplace(key, v).second)
    reader.refuse("a key of its own", "an empty or repeated one");
}

void Gguf::read_tensor(Reader& reader) {
  Tensor t{};
  reader.place = "name of a tensor";
  t.name = reader.text();
  reader.place = "tensor " + std::string(t.name);
  if (t.name.empty() || t.name.size() >= 64 || !by_name_.emplace(t.name, tensors_.size()).second)
    reader.refuse("a name of its own, of 1 to 63 bytes", "an empty, repeated or longer one");
  const uint32_t dimensions = reader.number<uint32_t>();
  if (dimensions < 1 || dimensions > 4) reader.refuse("1 to 4 dimensions", std::to_string(dimensions));
  for (uint32_t i = 0; i < 4; ++i) t.ne[i] = i < dimensions ? reader.number<int64_t>() : 1;
  const uint32_t id = reader.number<uint32_t>();
  const auto type = std::find_if(std::begin(weight_types), std::end(weight_types),
                                 [&](const WeightType& w) { return w.id == id; });
  if (type == std::end(weight_types))
    refuse(reader.place, "type F32, F16, BF16, Q4_1 or Q8_0",
           id < std::size(ggml_names) ? ggml_names[id] : std::to_string(id),
           "convert the model to one of these");
  if (t.ne[0] % type->block)
    reader.refuse(format("rows of whole blocks of %d", static_cast<int>(type->block)),
                  std::to_string(t.ne[0]));
  t.type = type->type;
  t.bytes = t.block = row_bytes(type->type, type->block);
  for (const int64_t n : {t.ne[0] / type->block, t.ne[1], t.ne[2], t.ne[3]})
    if (n < 1 || __builtin_mul_overflow(t.bytes, n, &t.bytes))
      reader.refuse("dimensions of at least 1 and below 2^63 bytes in all", std::to_string(n));
  t.offset = reader.number<uint64_t>();
  tensors_.push_back(t);
}

// Data follow the header and each other without gaps, each padded to the alignment.
void Gguf::place_tensors(Reader& reader) {
  const uint64_t alignment = static_cast<uint64_t>(integer("general.alignment", 32));
  if (alignment < 8 || (alignment & (alignment - 1)) != 0)
    refuse("key general.alignment", "a power of two of at least 8", std::to_string(alignment));
  const auto padding = [&] { return -reader.at & (alignment - 1); };
  const uint64_t start = reader.at + padding();
  for (Tensor& t : tensors_) {
    reader.place = "tensor " + std::string(t.name);
    reader.take(padding());
    if (t.offset != reader.at - start)
      reader.refuse("data at offset " + std::to_string(reader.at - start), std::to_string(t.offset));
    t.data = reader.take(static_cast<uint64_t>(t.bytes));
  }
}

// The value of a key, or the array of values, which must be of this kind.
const Gguf::Value& Gguf::value(std::string_view key, bool is_array, std::string_view kind) const {
  const std::string place = "key " + std::string(key), list = "array of ";
  const auto found = values_.find(key);
  if (found == values_.end()) refuse(place, "a value", "no such key");
  const auto& [name, bytes, its_kind] = value_types[found->second.type];
  if (found->second.is_array != is_array || its_kind != kind)
    refuse(place, (is_array ? list : "") + std::string(kind), (found->second.is_array ? list : "") + name);
  return found->second;
}

int64_t Gguf::integer(std::string_view key) const {
  const Value& v = value(key, false, "integer");
  const int64_t result = load_integer(v.type, v.data);
  if (result < 0 || result > INT32_MAX)
    refuse("key " + std::string(key), "an integer in [0, 2^31)", std::to_string(result));
  return result;
}

double Gguf::number(std::string_view key) const {
  const Value& v = value(key, false, "float");
  return value_types[v.type].bytes == 4 ? load<float>(v.data) : load<double>(v.data);
}

bool Gguf::flag(std::string_view key, bool missing) const {
  return has(key) ? load<uint8_t>(value(key, false, "bool").data) != 0 : missing;
}

std::string Gguf::text(std::string_view key) const {
  const std::byte* at = value(key, false, "string").data;
  return {reinterpret_cast<const char*>(at) + 8, load<uint64_t>(at)};
}

std::vector<std::string_view> Gguf::texts(std::string_view key) const {
  const Value& v = value(key, true, "string");
  std::vector<std::string_view> list;
  for (const std::byte* at = v.data; list.size() < v.count; at += 8 + list.back().size())
    list.emplace_back(reinterpret_cast<const char*>(at) + 8, load<uint64_t>(at));
  return list;
}

std::vector<int64_t> Gguf::integers(std::string_view key) const {
  const Value& v = value(key, true, "integer");
  std::vector<int64_t> list;
  for (uint64_t i = 0; i < v.count; ++i)
    list.push_back(load_integer(v.type, v.data + i * value_types[v.type].bytes));
  return list;
}

const Gguf::Tensor* Gguf::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace quest
