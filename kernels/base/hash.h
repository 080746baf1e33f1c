// SHA-256 (FIPS 180-4) for files and SHA-1 for the split of the Debian set, which differ in the rounds alone.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quest {

class Sha {
 public:
  enum class Kind { sha1, sha256 };
  explicit Sha(Kind kind = Kind::sha256);
  Sha& update(const void* bytes, size_t count);
  std::string hex();  // finishes; 40 or 64 lower-case digits

 private:
  void block(const unsigned char* p);
  Kind kind_;
  std::array<uint32_t, 8> state_;  // SHA-1 leaves the last three 0
  uint64_t total_ = 0;
  unsigned char buffer_[64];
};

std::string sha256_hex(std::string_view bytes);
std::string sha1_hex(std::string_view bytes);
std::string sha256_file(const std::string& path);  // throws Error(input) when it cannot be read

}  // namespace quest
