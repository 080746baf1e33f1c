// Counter-based random numbers: a value depends on (seed, stream, counter) alone, never on order or thread.
// The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#pragma once
#include <cstdint>

namespace quest {

inline uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
  constexpr uint64_t golden = 0x9e3779b97f4a7c15ull;
  return mix64(mix64(mix64(seed + golden) + stream * golden + golden) + counter * golden + golden);
}

// Uniform in the open interval (0, 1): 53 bits and a half step, so log() is always finite.
inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
  return (static_cast<double>(random_bits(seed, stream, counter) >> 11) + 0.5) * 0x1p-53;
}

// 64-bit hash of bytes (FNV-1a, then mixed); for keys in tables, not for files.
inline uint64_t hash_bytes(const void* data, uint64_t size, uint64_t seed = 0) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  uint64_t h = 0xcbf29ce484222325ull ^ mix64(seed);
  for (uint64_t i = 0; i < size; ++i) h = (h ^ p[i]) * 0x100000001b3ull;
  return mix64(h);
}

}  // namespace quest
