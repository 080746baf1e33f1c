// SHA-256 for files and SHA-1 for the split of the Debian set (FIPS 180-4), which differ in the rounds alone.
#pragma once
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace quest {

class Sha {
 public:
  explicit Sha(int bits = 256) : bits_(bits) {  // 160: SHA-1
    if (bits == 160) state_ = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  }

  Sha& update(const void* bytes, size_t count) {
    const auto* p = static_cast<const unsigned char*>(bytes);
    while (count) {
      const size_t fill = total_ % 64, n = std::min(count, 64 - fill);
      memcpy(buffer_ + fill, p, n);
      p += n, count -= n, total_ += n;
      if (fill + n == 64) block();
    }
    return *this;
  }

  std::string hex() {  // finishes; 40 or 64 lower-case digits
    static constexpr unsigned char padding[64] = {0x80};
    const uint64_t length = __builtin_bswap64(total_ * 8);  // in bits, big-endian
    update(padding, 1 + (119 - total_ % 64) % 64).update(&length, sizeof length);
    std::string out;
    for (int i = 0; i < bits_ / 32; ++i) out += format("%08x", state_[i]);
    return out;
  }

 private:
  void block() {
    using std::rotl, std::rotr;
    uint32_t w[80];
    memcpy(w, buffer_, 64);
    for (int i = 0; i < 16; ++i) w[i] = __builtin_bswap32(w[i]);
    auto [a, b, c, d, e, f, g, h] = state_;
    if (bits_ == 160) {
      for (int i = 16; i < 80; ++i) w[i] = rotl(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
      for (int i = 0; i < 80; ++i) {
        const uint32_t mixed = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                               : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                               : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                        : (b ^ c ^ d) + 0xca62c1d6;
        const uint32_t t = rotl(a, 5) + mixed + e + w[i];
        e = d, d = c, c = rotl(b, 30), b = a, a = t;
      }
    } else {
      for (int i = 16; i < 64; ++i) {
        const uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + (rotr(x, 7) ^ rotr(x, 18) ^ (x >> 3)) + w[i - 7] +
               (rotr(y, 17) ^ rotr(y, 19) ^ (y >> 10));
      }
      for (int i = 0; i < 64; ++i) {
        const uint32_t chosen = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
        const uint32_t t = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + chosen + constants[i] + w[i];
        h = g, g = f, f = e, e = d + t, d = c, c = b, b = a;
        a = t + (rotr(b, 2) ^ rotr(b, 13) ^ rotr(b, 22)) + majority;
      }
    }
    const uint32_t step[] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += step[i];
  }

  // 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
  static constexpr uint32_t constants[] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  int bits_;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};  // SHA-1 uses five
  uint64_t total_ = 0;
  unsigned char buffer_[64];
};

inline std::string sha256_hex(std::string_view s) { return Sha().update(s.data(), s.size()).hex(); }
inline std::string sha1_hex(std::string_view s) { return Sha(160).update(s.data(), s.size()).hex(); }
// Throws Error(input) when it cannot be read.
inline std::string sha256_file(const std::string& path) { return sha256_hex(MappedFile(path).text()); }

}  // namespace quest
