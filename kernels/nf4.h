// NF4 with double quantisation, bitsandbytes' format (Dettmers et al. 2023, QLoRA): blocks of 64 elements
// through the whole matrix, 4-bit codes of normal quantiles, the blocks' absmax in 8 bits by blocks of 256.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/tile_math.h"

namespace quest {

extern const float nf4_book[16];            // value of a code
const std::vector<float>& nf4_scale_map();  // [256] value of a scale's code, ascending

struct Nf4Matrix {
  std::vector<uint8_t> codes, scale_codes;  // [count / 2], [blocks]
  std::vector<float> nested;                // [blocks / 256]
  float offset = 0;
  Nf4 view() const {
    return {codes.data(),           nf4_book,      nullptr, scale_codes.data(),
            nf4_scale_map().data(), nested.data(), offset};
  }
};

// w [count], finite; a block of zeros gets code 7. absmax, when asked for: [blocks] before its quantisation.
Nf4Matrix quantize_nf4(const float* w, int64_t count, std::vector<float>* absmax = nullptr);

}  // namespace quest
