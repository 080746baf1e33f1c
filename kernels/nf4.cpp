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

// A value above thresholds[i] has a code above i.
static constexpr float thresholds[15] = {-0.8480964004993439f,   -0.6106329262256622f,  -0.4599952697753906f,
                                         -0.33967943489551544f,  -0.23460740596055984f, -0.13791173323988914f,
                                         -0.045525018125772476f, 0.03979014977812767f,  0.1202552504837513f,
                                         0.2035212516784668f,    0.2920137718319893f,   0.3893125355243683f,
                                         0.5016634166240692f,    0.6427869200706482f,   0.8614784181118011f};

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
