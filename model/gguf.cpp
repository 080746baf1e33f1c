#include "model/gguf.h"

#include <simdjson.h>

#include <cmath>
#include <cstring>
#include <set>

#include "kernels/base/json.h"
namespace quest {

// A cursor over the header that cannot leave the file. It writes the metadata as JSON.
struct Gguf::Reader {
  const Gguf& gguf;
  const MappedFile& file;
  std::string place = "header";  // what is being read, for messages
  uint64_t at = 0;
  JsonWriter json{true};
  std::set<std::string_view> keys{};
  std::vector<std::pair<std::string, uint64_t>> order{};  // tensors, and where the file says their data begin

  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    gguf.refuse(place + ", before byte " + std::to_string(at), expected, found);
  }

  const std::byte* take(uint64_t bytes) {
    const uint64_t left = file.size() - at;
    if (bytes > left)
      gguf.refuse(place, format("%zu bytes from byte %zu on", bytes, at),
                  format("the end of the file after %zu", left),
                  "the file is cut short or damaged, fetch it again");
    at += bytes;
    return file.data() + at - bytes;
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
  static void integer(Reader& from) {
    from.json.value(from.number<T>());
  }
  template <class T>
  static void real(Reader& from) {  // never in the form of an integer
    const double x = from.number<T>();
    from.json.raw(std::isfinite(x) ? format("%.16e", x) : "\"not finite\"");
  }
  static void flag(Reader& from) {
    const int value = from.number<uint8_t>();
    if (value > 1) from.refuse("0 or 1", std::to_string(value));
    from.json.value(value == 1);
  }
  static void string(Reader& from) { from.json.value(from.text()); }

  void read_value() {
    using Read = void (*)(Reader&);
    static constexpr Read types[] = {integer<uint8_t>,
                                     integer<int8_t>,
                                     integer<uint16_t>,
                                     integer<int16_t>,
                                     integer<uint32_t>,
                                     integer<int32_t>,
                                     real<float>,
                                     flag,
                                     string,
                                     nullptr,
                                     integer<uint64_t>,
                                     integer<int64_t>,
                                     real<double>};
    constexpr uint32_t array = 9;
    place = "a key";
    const std::string_view key = text();
    place = "key " + std::string(key);
    if (key.empty() || !keys.insert(key).second) refuse("a key of its own", "an empty or repeated one");
    uint32_t type = number<uint32_t>();
    const bool is_array = type == array;
    if (is_array) type = number<uint32_t>();
    const uint64_t count = is_array ? number<uint64_t>() : 1;
    if (type >= std::size(types) || type == array)
      refuse("a number, a bool, a string or an array of these",
             (is_array ? "element type " : "type ") + std::to_string(type));
    json.key(key);
    if (is_array) json.array();
    constexpr size_t most = size_t{256} << 20;  // of all metadata as JSON, which takes a multiple of the file
    for (uint64_t i = 0; i < count; ++i) {
      types[type](*this);
      if (json.text().size() > most) refuse("metadata of at most 256 MiB as text", "more");
    }
    if (is_array) json.end();
  }
};

Gguf::Gguf(const MappedFile& file) {
  path_ = file.path();
  Reader reader{*this, file};
  if (!file.text().starts_with("GGUF"))
    refuse("byte 0", "a GGUF file", "something else", "pass a GGUF model");
  reader.take(4);
  const uint32_t version = reader.number<uint32_t>();
  if (version != 2 && version != 3)
    refuse("version", "2 or 3", version > 0xffff ? "a big-endian file" : std::to_string(version),
           "convert the model again with a current llama.cpp");
  const uint64_t count = reader.number<uint64_t>(), values = reader.number<uint64_t>();
  reader.json.object();
  for (uint64_t i = 0; i < values; ++i) reader.read_value();
  parse(reader.json.end().text());
  for (uint64_t i = 0; i < count; ++i) read_tensor(reader);

  // Data follow the header and each other without gaps, each padded to the alignment.
  const uint64_t alignment = integer("general.alignment", 32);
  require(alignment >= 8 && (alignment & (alignment - 1)) == 0, "general.alignment",
          "a power of two of at least 8");
  const auto padding = [&] { return -reader.at & (alignment - 1); };
  const uint64_t start = reader.at + padding();
  for (const auto& [name, offset] : reader.order) {
    reader.place = "tensor " + name;
    reader.take(padding());
    if (offset != reader.at - start)
      reader.refuse("data at offset " + std::to_string(reader.at - start), std::to_string(offset));
    tensors.at(name).data = reader.take(tensors.at(name).bytes);
  }
}

void Gguf::read_tensor(Reader& reader) {
  static constexpr const char* names[] = {
      "F32",   "F16",    "Q4_0", "Q4_1", "Q4_2", "Q4_3",    "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
      "Q3_K",  "Q4_K",   "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
      "IQ2_S", "IQ4_XS", "I8",   "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16"};
  reader.place = "name of a tensor";
  const std::string name(reader.text());
  reader.place = "tensor " + name;
  if (name.empty() || name.size() >= 64 || tensors.count(name))
    reader.refuse("a name of its own, of 1 to 63 bytes", "an empty, repeated or longer one");
  const uint32_t dimensions = reader.number<uint32_t>();
  if (dimensions < 1 || dimensions > 4) reader.refuse("1 to 4 dimensions", std::to_string(dimensions));
  std::vector<int64_t> shape(dimensions);
  for (auto n = shape.rbegin(); n != shape.rend(); ++n) *n = reader.number<int64_t>();
  const uint32_t id = reader.number<uint32_t>();
  const std::string type = id < std::size(names) ? names[id] : std::to_string(id);
  const auto known = type_named(type);
  if (!known)
    refuse(reader.place, "type F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K", type,
           "convert the model to one of these");
  const int64_t elements = format_of(*known).elements;
  if (shape.back() % elements)
    reader.refuse(format("rows of whole blocks of %ld", elements), std::to_string(shape.back()));
  int64_t bytes = format_of(*known).bytes;
  for (const int64_t n : shape)
    if (n < 1 || __builtin_mul_overflow(bytes, n, &bytes))
      reader.refuse("dimensions of at least 1 and below 2^63 bytes in all", std::to_string(n));
  while (shape.size() > 1 && shape[0] == 1) shape.erase(shape.begin());
  tensors.emplace(name, Tensor(type, shape, nullptr, bytes / elements));
  reader.order.emplace_back(name, reader.number<uint64_t>());
}

}  // namespace quest
