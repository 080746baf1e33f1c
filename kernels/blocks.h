// Packed weights as they are stored: what the bytes are, for every backend. (Only C headers: tile_*.cpp are
// compiled for other instruction sets, *.cu by nvcc.)
#pragma once
#include <stdint.h>

namespace quest {

// GGUF's blocks, little endian, and the value of an element with code q; d and m are f16. Of 32 elements e
// the code's low four bits stand in nibbles[e % 16], the first 16 in the low halves; a fifth bit is bit e of
// `high`.
struct BlockQ4_0 {  // d * (q - 8)
  uint16_t d;
  uint8_t nibbles[16];
};
struct BlockQ4_1 {  // d * q + m
  uint16_t d, m;
  uint8_t nibbles[16];
};
struct BlockQ5_0 {  // d * (q - 16)
  uint16_t d;
  uint8_t high[4], nibbles[16];
};
struct BlockQ5_1 {  // d * q + m
  uint16_t d, m;
  uint8_t high[4], nibbles[16];
};
struct BlockQ8_0 {  // d * q
  uint16_t d;
  int8_t values[32];
};
// 256 elements in runs of 32; each run (of Q6_K each half run) has a scale S, and a least value M, of 6 bits.
struct BlockQ4_K {  // d * S * q - m * M
  uint16_t d, m;
  uint8_t scales[12], nibbles[128];
};
struct BlockQ5_K {  // the same; the fifth bit of element e of run j is bit j of high[e]
  uint16_t d, m;
  uint8_t scales[12], high[32], nibbles[128];
};
struct BlockQ6_K {  // d * S * (q - 32)
  uint8_t nibbles[128], high[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 &&
              sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// A matrix in bitsandbytes' NF4: blocks of 64 elements, counted through the whole matrix; a block may begin
// in one row and end in the next.
struct Nf4 {
  const uint8_t* codes;        // two elements a byte, the first in the high half
  const float* book;           // [16] value of a code
  const float* absmax;         // [blocks] what the block's values are multiplied by; or nullptr, and it is
  const uint8_t* scale_codes;  // scale_map[scale_codes[block]] * nested[block / 256] + offset
  const float* scale_map;      // [256]
  const float* nested;
  float offset;
};

constexpr int64_t nf4_block = 64, nf4_nested_block = 256;  // elements; blocks

// A matrix in GPTQ's codes of 2, 3 or 4 bits, as a loader normalises the files' variants: rows are outputs
// (files have columns), zeros are zeros (some files store one less), and columns stand in the order of their
// groups. Element [row, place] belongs to input order[place] and is scales[row][place / group] * (code -
// zeros[row][place / group]).
struct Gptq {
  const uint32_t* codes;   // [rows][cols / 32][bits]: 32 codes are a stream of bits, from a word's lowest on
  const uint16_t* scales;  // f16 [rows][groups]
  const uint8_t* zeros;    // [rows][groups], or nullptr: all 2^(bits - 1)
  const int32_t* order;    // [cols], or nullptr: in order (no act-order)
  int32_t group;           // columns with one scale: a multiple of 32, or all; the last may have fewer
};

}  // namespace quest
