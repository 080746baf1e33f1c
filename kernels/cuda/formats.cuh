// One decoder a format: 32 consecutive elements of a weight's row become 16 pairs of bf16. Every rung of
// matmul.cu decodes through these.
//
// Each thread of a block makes a decoder from the weight's View and `table`: table_size floats of shared
// memory, which the block's threads fill together; a barrier must follow. Then
//   Run load(row, col)     reads what elements col .. col + 31 need (col: a multiple of 32) and does nothing
//                          with it, so that a thread waits for memory where it decodes, not where it loads
//   uint32_t pair(run, i)  elements 2i (low half) and 2i + 1, computed in fp32 as the CPU does and rounded
//                          once to bf16; of Run{} zeros
//   order()                [cols] the input that stands at a place of a row, or nullptr: in order
// Packed data begins at a multiple of 16 bytes and may be read up to the next one behind its end.
#pragma once
#include "kernels/blocks.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace quest::decoders {

namespace {

// q - zero, exact for q < 2^22: q becomes the last bits of 2^23 + q, without the slow conversion instruction.
__device__ inline float centred(uint32_t q, float zero) {
  return __uint_as_float(0x4b000000u | q) - (8388608.0f + zero);
}

// n words from an even address. Loads are of whole words; if the address is no multiple of 4, n + 1 of them
// are joined when a word is asked for.
template <int n>
struct Words {
  uint32_t word[n + 1];
  uint32_t shift;
  __device__ uint32_t operator[](int i) const { return __funnelshift_r(word[i], word[i + 1], shift); }
};
template <int n>
__device__ Words<n> load_words(const char* at) {
  const uint32_t odd = reinterpret_cast<uintptr_t>(at) % 4;  // 0 or 2
  Words<n> w;
  UNROLL
  for (int i = 0; i < n; ++i) w.word[i] = fetch<uint32_t>(at - odd + 4 * i);
  w.word[n] = odd ? fetch<uint32_t>(at - odd + 4 * n) : 0;
  w.shift = 8 * odd;
  return w;
}

// What the decoders of GGUF's blocks have in common.
template <class Block, int elements>
struct Blocks {
  static constexpr int table_size = 1;
  const char* data;
  int64_t blocks;  // of a row
  __device__ Blocks(const View& w, float*)
      : data(static_cast<const char*>(w.data)), blocks(w.stride / elements) {}
  __device__ const char* block(int row, int col) const {
    return data + (row * blocks + col / elements) * static_cast<int64_t>(sizeof(Block));
  }
  __device__ static const int32_t* order() { return nullptr; }
};

// Of 32 elements e the low four bits: e mod 16 chooses the byte, e / 16 its half.
__device__ inline uint32_t nibble(const Words<4>& bytes, int e) {
  return bytes[e % 16 / 4] >> (e % 4 * 8 + e / 16 * 4) & 15;
}

// d * (q - zero) + m; what has no m is read with 0. The product is exact: fused or not, the sum is rounded
// once.
template <class Block, int zero>
struct Nibbles : Blocks<Block, 32> {
  using Blocks<Block, 32>::Blocks;
  static constexpr bool has_m = sizeof(Block) > 18;
  struct Run {
    Words<4> nibbles;
    uint16_t d, m;
  };
  __device__ Run load(int row, int col) const {
    const char* b = this->block(row, col);
    return {load_words<4>(b + (has_m ? 4 : 2)), fetch<uint16_t>(b),
            has_m ? fetch<uint16_t>(b + 2) : uint16_t{0}};
  }
  __device__ static uint32_t pair(const Run& r, int i) {
    const float d = from_f16(r.d), m = from_f16(r.m);
    return pack_bf16(d * centred(nibble(r.nibbles, 2 * i), zero) + m,
                     d * centred(nibble(r.nibbles, 2 * i + 1), zero) + m);
  }
};
using Q4_0 = Nibbles<BlockQ4_0, 8>;
using Q4_1 = Nibbles<BlockQ4_1, 0>;

struct Q8_0 : Blocks<BlockQ8_0, 32> {
  using Blocks::Blocks;
  struct Run {
    Words<8> bytes;
    uint16_t d;
  };
  __device__ Run load(int row, int col) const {
    const char* b = block(row, col);
    return {load_words<8>(b + 2), fetch<uint16_t>(b)};
  }
  __device__ static uint32_t pair(const Run& r, int i) {
    const float d = from_f16(r.d);
    const uint32_t both = (r.bytes[i / 2] >> i % 2 * 16) ^ 0x8080;  // -128 .. 127 becomes 0 .. 255
    return pack_bf16(d * centred(both & 255, 128), d * centred(both >> 8 & 255, 128));
  }
};

struct Q4_K : Blocks<BlockQ4_K, 256> {
  using Blocks::Blocks;
  struct Run {
    Words4 head, low, high;  // d, m, scales; nibbles of elements 0 .. 15, 16 .. 31
    uint32_t j;              // the run's place in the block
  };
  __device__ Run load(int row, int col) const {
    const char* b = block(row, col);
    const int j = col % 256 / 32;
    const char* nibbles = b + 16 + j / 2 * 32;
    return {fetch<Words4>(b), fetch<Words4>(nibbles), fetch<Words4>(nibbles + 16), static_cast<uint32_t>(j)};
  }
  __device__ static uint32_t pair(const Run& r, int i) {
    const uint32_t at = r.j % 4 * 8, a = r.head.y >> at & 255, b = r.head.z >> at & 255,
                   c = r.head.w >> at & 255;
    const uint32_t S = r.j < 4 ? a & 63 : (c & 15) | a >> 6 << 4, M = r.j < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
    const float scale = from_f16(static_cast<uint16_t>(r.head.x)) * centred(S, 0);
    const float least = from_f16(static_cast<uint16_t>(r.head.x >> 16)) * centred(M, 0);
    const Words4& half = i < 8 ? r.low : r.high;
    const int k = i % 8 / 2;
    const uint32_t word = k == 0 ? half.x : k == 1 ? half.y : k == 2 ? half.z : half.w;
    const uint32_t codes = word >> (i % 2 * 16 + r.j % 2 * 4);  // all products are exact
    return pack_bf16(scale * centred(codes & 15, 0) - least, scale * centred(codes >> 8 & 15, 0) - least);
  }
};

struct Q6_K : Blocks<BlockQ6_K, 256> {
  using Blocks::Blocks;
  struct Run {
    Words<8> low, high;
    uint16_t scales, d;  // two scales of 8 bits: of elements 0 .. 15, 16 .. 31
    uint16_t k;          // the run's place in its half of the block
  };
  __device__ Run load(int row, int col) const {
    const char* b = block(row, col);
    const int j = col % 256 / 32;
    return {load_words<8>(b + j / 4 * 64 + j % 2 * 32), load_words<8>(b + 128 + j / 4 * 32),
            fetch<uint16_t>(b + 192 + 2 * j), fetch<uint16_t>(b + 208), static_cast<uint16_t>(j % 4)};
  }
  __device__ static uint32_t pair(const Run& r, int i) {
    const uint32_t code = (static_cast<uint32_t>(r.scales) >> (i < 8 ? 0 : 8) & 255) ^ 128;
    const float scale = from_f16(r.d) * centred(code, 128);
    const uint32_t low = r.low[i / 2] >> (i % 2 * 16 + r.k / 2 * 4);
    const uint32_t high = r.high[i / 2] >> (i % 2 * 16) >> (r.k * 2);
    return pack_bf16(scale * centred((low & 15) | (high & 3) << 4, 32),
                     scale * centred((low >> 8 & 15) | (high >> 8 & 3) << 4, 32));
  }
};

// NF4: 16 values of codes and 256 of scales' codes stand in the table. What has plain scales (absmax) is read
// as a nested scale with offset 0 and the code of 1.
struct Nf4Table {
  static constexpr int table_size = 16 + 256;
  Nf4 n;
  const float* table;
  __device__ Nf4Table(const View& w, float* shared) : n(*static_cast<const Nf4*>(w.data)), table(shared) {
    for (int i = static_cast<int>(threadIdx.x); i < table_size; i += static_cast<int>(blockDim.x))
      shared[i] = i < 16 ? n.book[i] : n.absmax ? 1.0f : n.scale_map[i - 16];
  }
  struct Scale {
    float nested, offset;
    uint8_t code;
  };
  __device__ Scale load_scale(int64_t element) const {
    const int64_t block = element / nf4_block;
    if (n.absmax) return {fetch<float>(n.absmax + block), 0.0f, 0};
    return {fetch<float>(n.nested + block / nf4_nested_block), n.offset,
            fetch<uint8_t>(n.scale_codes + block)};
  }
  __device__ float scale(const Scale& s) const {  // two roundings: that is the format
    return __fadd_rn(__fmul_rn(table[16 + s.code], s.nested), s.offset);
  }
  __device__ static const int32_t* order() { return nullptr; }
};

struct Nf4Runs : Nf4Table {  // rows of a multiple of 32 elements: a run has one scale and begins at 16 bytes
  int64_t stride;
  __device__ Nf4Runs(const View& w, float* shared) : Nf4Table(w, shared), stride(w.stride) {}
  struct Run {
    Words4 codes;
    Scale scale;
  };
  __device__ Run load(int row, int col) const {
    const int64_t at = row * stride + col;
    return {fetch<Words4>(n.codes + at / 2), load_scale(at)};
  }
  __device__ uint32_t pair(const Run& r, int i) const {
    const uint32_t word = i < 4 ? r.codes.x : i < 8 ? r.codes.y : i < 12 ? r.codes.z : r.codes.w;
    const uint32_t byte = word >> i % 4 * 8;  // the first of two codes is the high half
    const float s = scale(r.scale);
    return pack_bf16(table[byte >> 4 & 15] * s, table[byte & 15] * s);
  }
};

// Formats whose elements stand alone, or are asked for one by one: for rows of any length, and slow.
template <class Element>
struct Single {
  static constexpr int table_size = Element::table_size;
  Element element;
  int64_t stride, cols;
  __device__ Single(const View& w, float* table) : element(w, table), stride(w.stride), cols(w.cols) {}
  struct Run {
    uint32_t pairs[16];
  };
  __device__ Run load(int row, int col) const {
    Run r;
    const int64_t at = row * stride + col;
    UNROLL
    for (int i = 0; i < 16; ++i)
      r.pairs[i] = pack_bf16(col + 2 * i < cols ? element(at + 2 * i) : 0.0f,
                             col + 2 * i + 1 < cols ? element(at + 2 * i + 1) : 0.0f);
    return r;
  }
  __device__ static uint32_t pair(const Run& r, int i) { return r.pairs[i]; }
  __device__ static const int32_t* order() { return nullptr; }
};

struct Nf4Element : Nf4Table {
  using Nf4Table::Nf4Table;
  __device__ float operator()(int64_t at) const {
    return table[fetch<uint8_t>(n.codes + at / 2) >> (at % 2 ? 0 : 4) & 15] * scale(load_scale(at));
  }
};

template <Type type>
struct PlainElement {
  static constexpr int table_size = 1;
  const char* data;
  __device__ PlainElement(const View& w, float*) : data(static_cast<const char*>(w.data)) {}
  __device__ float operator()(int64_t at) const {
    if constexpr (type == Type::f32) return fetch<float>(data + 4 * at);
    const uint16_t bits = fetch<uint16_t>(data + 2 * at);
    return type == Type::f16 ? from_f16(bits) : from_bf16(bits);
  }
};

template <int bits>
struct GptqRuns {
  static constexpr int table_size = 1;
  Gptq g;
  int cols, groups;
  __device__ GptqRuns(const View& w, float*)
      : g(*static_cast<const Gptq*>(w.data)),
        cols(static_cast<int>(w.cols)),
        groups((cols + g.group - 1) / g.group) {}
  struct Run {
    uint32_t words[bits];
    uint16_t scale;
    uint16_t zero;
  };
  __device__ Run load(int row, int col) const {
    const uint32_t* words = g.codes + (static_cast<int64_t>(row) * cols + col) / 32 * bits;
    const int64_t of = static_cast<int64_t>(row) * groups + col / g.group;
    Run r;
    UNROLL
    for (int i = 0; i < bits; ++i) r.words[i] = fetch<uint32_t>(words + i);
    r.scale = fetch<uint16_t>(g.scales + of);
    r.zero = g.zeros ? fetch<uint8_t>(g.zeros + of) : 1 << (bits - 1);
    return r;
  }
  __device__ static uint32_t code(const Run& r, int e) {
    const int at = e * bits, word = at / 32, bit = at % 32;
    const uint32_t next = word + 1 < bits ? r.words[word + 1 < bits ? word + 1 : 0] : 0;
    return __funnelshift_r(r.words[word], next, bit) & ((1 << bits) - 1);
  }
  __device__ static uint32_t pair(const Run& r, int i) {
    const float scale = from_f16(r.scale), zero = centred(r.zero, 0);
    return pack_bf16(scale * centred(code(r, 2 * i), zero), scale * centred(code(r, 2 * i + 1), zero));
  }
  __device__ const int32_t* order() const { return g.order; }
};

}  // namespace

}  // namespace quest::decoders
