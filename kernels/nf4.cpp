#include "kernels/nf4.h"

#include <algorithm>
#include <cmath>

namespace quest {

// Quantiles of the normal distribution, divided by the largest (bitsandbytes, create_normal_map).
const float nf4_book[16] = {-1.0f,
                            -0.6961928009986877f,
                            -0.5250730514526367f,
                            -0.39491748809814453f,
                            -0.28444138169288635f,
                            -0.18477343022823334f,
                            -0.09105003625154495f,
                            0.0f,
                            0.07958029955625534f,
                            0.16093020141124725f,
                            0.24611230194568634f,
                            0.33791524171829224f,
                            0.44070982933044434f,
                            0.5626170039176941f,
                            0.7229568362236023f,
                            1.0f};

// The signed dynamic map: for i = 0 .. 6 the 2^i midpoints between 0.1 and 1, times 10^(i - 6), both signs; 0
// and 1. linspace as torch computes it in fp32: from both ends.
const std::vector<float>& nf4_scale_map() {
  static const std::vector<float> map = [] {
    std::vector<float> m = {0, 1};
    for (int i = 0; i < 7; ++i) {
      const int steps = (1 << i) + 1;
      const float step = (1.0f - 0.1f) / static_cast<float>(steps - 1);
      const auto bound = [&](int k) {
        return k < steps / 2 ? 0.1f + step * static_cast<float>(k)
                             : 1.0f - step * static_cast<float>(steps - k - 1);
      };
      const auto power = static_cast<float>(std::pow(10.0, i - 6));
      for (int k = 0; k + 1 < steps; ++k) {
        const float x = power * ((bound(k) + bound(k + 1)) / 2.0f);
        m.push_back(x), m.push_back(-x);
      }
    }
    std::sort(m.begin(), m.end());
    return m;
  }();
  return map;
}

Nf4Matrix quantize_nf4(const float* w, int64_t count, std::vector<float>* absmax) {
  const int64_t blocks = (count + nf4_block - 1) / nf4_block;
  // A value above thresholds[i] has a code above i: the midpoints in fp32, as bitsandbytes' CPU path computes
  // them. (As decimals, as its CUDA source has them, four would read as a neighbouring number.)
  float thresholds[15];
  for (int i = 0; i < 15; ++i) thresholds[i] = (nf4_book[i] + nf4_book[i + 1]) / 2;
  Nf4Matrix out;
  out.codes.resize((count + 1) / 2), out.scale_codes.resize(blocks);
  out.nested.resize((blocks + nf4_nested_block - 1) / nf4_nested_block);
  std::vector<float> scales(blocks);
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = std::min((b + 1) * nf4_block, count);
    for (int64_t i = b * nf4_block; i < end; ++i) scales[b] = std::max(scales[b], std::fabs(w[i]));
    const float inverse = scales[b] >= 0x1p-126f ? 1.0f / scales[b] : 0.0f;  // zeros get code 7
    for (int64_t i = b * nf4_block; i < end; ++i) {
      const float x = w[i] * inverse;
      const auto code = std::count_if(thresholds, thresholds + 15, [&](float t) { return x > t; });
      out.codes[i / 2] |= static_cast<uint8_t>(code << (i % 2 ? 0 : 4));
    }
    sum += scales[b];
  }
  out.offset = static_cast<float>(sum / static_cast<double>(blocks));
  const std::vector<float>& map = nf4_scale_map();
  for (int64_t b = 0; b < blocks; ++b) {
    const float x = scales[b] - out.offset;
    float& most = out.nested[b / nf4_nested_block];
    most = std::max(most, std::fabs(x));
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const float most = out.nested[b / nf4_nested_block];
    const float x = most > 0 ? (scales[b] - out.offset) / most : 0.0f;
    auto above = std::lower_bound(map.begin(), map.end(), x);  // the nearest; of two the lower
    if (above == map.end() || (above != map.begin() && x - above[-1] <= *above - x)) --above;
    out.scale_codes[b] = static_cast<uint8_t>(above - map.begin());
  }
  if (absmax) *absmax = std::move(scales);
  return out;
}

}  // namespace quest
