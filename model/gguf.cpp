#include "model/gguf.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>

namespace quest {

// A cursor over the header that cannot leave the file.
struct Gguf::Reader {
  const Gguf& gguf;
  std::string place;  // what is being read, for messages
  uint64_t at = 0;

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    gguf.refuse(place + ", before byte " + std::to_string(at), expected, found);
  }

  const std::byte* take(uint64_t bytes) {
    const uint64_t left = gguf.file_->size() - at;
    if (bytes > left)
      gguf.refuse(place, format("%zu bytes from byte %zu on", bytes, at),
                  format("the end of the file after %zu", left),
                  "the file is cut short or damaged, fetch it again");
    at += bytes;
    return gguf.file_->data() + at - bytes;
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

  std::string_view text() {
    const uint64_t length = number<uint64_t>();
    const std::string_view s(reinterpret_cast<const char*>(take(length)), length);
    if (!simdjson::validate_utf8(s)) refuse("text in UTF-8", "other bytes");
    return s;
  }

  // One element of each kind of value.
  template <class T>
  static void number(Reader& from, Value& to) {
    to.numbers.push_back(from.number<T>());
  }
  static void flag(Reader& from, Value& to) {
    number<uint8_t>(from, to);
    if (to.numbers.back() > 1) from.refuse("0 or 1", format("%.0f", to.numbers.back()));
  }
  static void string(Reader& from, Value& to) { to.texts.push_back(from.text()); }
};

void Gguf::refuse(const std::string& place, const std::string& expected, const std::string& found,
                  const std::string& advice) const {
  fail(Exit::input, "%s: %.120s: expected %s, found %.120s; %s", file_->path().c_str(), place.c_str(),
       expected.c_str(), found.c_str(), advice.c_str());
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
  using R = Reader;
  static constexpr struct {
    const char *name, *kind;
    void (*read)(Reader&, Value&);
  } types[] = {{"u8", "integer", R::number<uint8_t>},   {"i8", "integer", R::number<int8_t>},
               {"u16", "integer", R::number<uint16_t>}, {"i16", "integer", R::number<int16_t>},
               {"u32", "integer", R::number<uint32_t>}, {"i32", "integer", R::number<int32_t>},
               {"f32", "float", R::number<float>},      {"bool", "bool", R::flag},
               {"string", "string", R::string},         {"array", "array", nullptr},
               {"u64", "integer", R::number<uint64_t>}, {"i64", "integer", R::number<int64_t>},
               {"f64", "float", R::number<double>}};
  constexpr uint32_t array = 9;
  reader.place = "a key";
  const std::string_view key = reader.text();
  reader.place = "key " + std::string(key);
  uint32_t type = reader.number<uint32_t>();
  const bool is_array = type == array;
  if (is_array) type = reader.number<uint32_t>();
  const uint64_t count = is_array ? reader.number<uint64_t>() : 1;
  if (type >= std::size(types) || type == array)
    reader.refuse("a number, a bool, a string or an array of these",
                  (is_array ? "element type " : "type ") + std::to_string(type));
  const std::string list = is_array ? "array of " : "";
  Value v{list + types[type].name, list + types[type].kind, {}, {}};
  for (uint64_t i = 0; i < count; ++i) types[type].read(reader, v);
  if (key.empty() || !values_.emplace(key, std::move(v)).second)
    reader.refuse("a key of its own", "an empty or repeated one");
}

void Gguf::read_tensor(Reader& reader) {
  static constexpr std::pair<uint32_t, Type> types[] = {
      // by ggml's number
      {0, Type::f32},  {1, Type::f16},  {30, Type::bf16}, {2, Type::q4_0},  {3, Type::q4_1}, {6, Type::q5_0},
      {7, Type::q5_1}, {8, Type::q8_0}, {12, Type::q4_k}, {13, Type::q5_k}, {14, Type::q6_k}};
  static constexpr const char* names[] = {// for messages
                                          "F32",     "F16",   "Q4_0",   "Q4_1",  "Q4_2",    "Q4_3",
                                          "Q5_0",    "Q5_1",  "Q8_0",   "Q8_1",  "Q2_K",    "Q3_K",
                                          "Q4_K",    "Q5_K",  "Q6_K",   "Q8_K",  "IQ2_XXS", "IQ2_XS",
                                          "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",   "IQ4_XS"};
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
  const auto type =
      std::find_if(std::begin(types), std::end(types), [&](const auto& w) { return w.first == id; });
  if (type == std::end(types))
    refuse(reader.place, "type F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
           id < std::size(names) ? names[id] : std::to_string(id), "convert the model to one of these");
  const Format format_here = format_of(type->second);
  if (t.ne[0] % format_here.elements)
    reader.refuse(format("rows of whole blocks of %ld", format_here.elements), std::to_string(t.ne[0]));
  t.type = type->second;
  t.bytes = format_here.bytes;
  for (const int64_t n : {t.ne[0] / format_here.elements, t.ne[1], t.ne[2], t.ne[3]})
    if (n < 1 || __builtin_mul_overflow(t.bytes, n, &t.bytes))
      reader.refuse("dimensions of at least 1 and below 2^63 bytes in all", std::to_string(n));
  t.offset = reader.number<uint64_t>();
  tensors_.push_back(t);
}

// Data follow the header and each other without gaps, each padded to the alignment.
void Gguf::place_tensors(Reader& reader) {
  const uint64_t alignment = integer("general.alignment", 32);
  if (alignment < 8 || (alignment & (alignment - 1)) != 0)
    refuse("key general.alignment", "a power of two of at least 8", std::to_string(alignment));
  const auto padding = [&] { return -reader.at & (alignment - 1); };
  const uint64_t start = reader.at + padding();
  for (Tensor& t : tensors_) {
    reader.place = "tensor " + std::string(t.name);
    reader.take(padding());
    if (t.offset != reader.at - start)
      reader.refuse("data at offset " + std::to_string(reader.at - start), std::to_string(t.offset));
    t.data = reader.take(t.bytes);
  }
}

// The value of a key, which must be of this kind.
const Gguf::Value& Gguf::value(std::string_view key, std::string_view kind) const {
  const auto found = values_.find(key);
  if (found == values_.end()) refuse("key " + std::string(key), "a value", "no such key");
  const Value& v = found->second;
  if (v.kind != kind) refuse("key " + std::string(key), std::string(kind), v.type);
  return v;
}

int64_t Gguf::integer(std::string_view key, std::optional<int64_t> missing) const {
  if (missing && !has(key)) return *missing;
  const double v = value(key, "integer").numbers[0];
  if (v < 0 || v > INT32_MAX) refuse("key " + std::string(key), "an integer in [0, 2^31)", format("%.0f", v));
  return v;
}

}  // namespace quest
