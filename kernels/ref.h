// The reference: every op of ops.h as plain scalar code over T, forward and backward in pairs, the forward
// line quoted above its derivative (written out in DERIVATIONS.md under the same number).
// T = std::complex<double> proves the derivatives by complex step, T = double is the truth for the fast ops,
// which share no code with it. T = float is what the CPU runs for the ops too small to matter (cpu_ops.cpp).
// Nothing is rounded to a stored type on the way; weights are decoded to T.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/ops.h"
#include "kernels/tile_math.h"

namespace quest::ref {

inline double real(double x) { return x; }
inline double real(const std::complex<double>& x) { return x.real(); }

// ---- weights, decoded one by one; the bytes are described in blocks.h

inline double half(const unsigned char* p) {  // IEEE 754 binary16
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                           : exponent == 31 ? (fraction ? NAN : INFINITY)
                                            : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

inline double weight(const View& w, int64_t row, int64_t col) {
  const int64_t at = row * w.stride + col;
  const auto* bytes = static_cast<const unsigned char*>(w.data);
  float f;
  if (w.type == Type::f32) return std::memcpy(&f, bytes + 4 * at, 4), f;
  if (w.type == Type::f16) return half(bytes + 2 * at);
  if (w.type == Type::bf16) {
    const uint32_t bits = static_cast<uint32_t>(bytes[2 * at] | bytes[2 * at + 1] << 8) << 16;
    return std::memcpy(&f, &bits, 4), f;
  }
  if (w.type == Type::nf4) {  // all in fp32: so is the format
    const auto& n = *static_cast<const Nf4*>(w.data);
    const float scale =
        n.absmax ? n.absmax[at / 64] : n.scale_map[n.scale_codes[at / 64]] * n.nested[at / 16384] + n.offset;
    return n.book[n.codes[at / 2] >> (1 - at % 2) * 4 & 15] * scale;
  }
  if (w.type >= Type::gptq2 && w.type <= Type::gptq4) {
    const auto& g = *static_cast<const Gptq*>(w.data);
    const int64_t bits = static_cast<int>(w.type) - static_cast<int>(Type::gptq2) + 2;
    const int64_t groups = (w.cols + g.group - 1) / g.group, of = row * groups + col / g.group;
    int code = 0;
    for (int64_t i = 0, from = at * bits; i < bits; ++i)
      code |= static_cast<int>(g.codes[(from + i) / 32] >> (from + i) % 32 & 1) << i;
    const int zero = g.zeros ? g.zeros[of] : 1 << (bits - 1);
    return half(reinterpret_cast<const unsigned char*>(g.scales + of)) * (code - zero);
  }
  const bool large = w.type >= Type::q4_k;
  const int64_t e = large ? at % 256 : at % 32, j = e / 32, l = e % 32;
  const auto* block = bytes + (large ? at / 256 : at / 32) * format_of(w.type).bytes;
  const auto nibble = [&](int from) { return block[from + e % 16] >> e / 16 * 4 & 15; };
  const auto fifth = [&](int from) { return (block[from + e / 8] >> e % 8 & 1) * 16; };
  const auto k_quant = [&](int fifths, int nibbles) {
    const auto* s = block + 4;
    const int scale = j < 4 ? s[j] % 64 : s[j + 4] % 16 + s[j - 4] / 64 * 16;
    const int least = j < 4 ? s[j + 4] % 64 : s[j + 4] / 16 + s[j] / 64 * 16;
    const int high = fifths ? block[fifths + l] >> j & 1 : 0;
    const int code = (block[nibbles + j / 2 * 32 + l] >> j % 2 * 4 & 15) + 16 * high;
    return half(block) * scale * code - half(block + 2) * least;
  };
  switch (w.type) {
    case Type::q4_0: return half(block) * (nibble(2) - 8);
    case Type::q4_1: return half(block) * nibble(4) + half(block + 2);
    case Type::q5_0: return half(block) * (nibble(6) + fifth(2) - 16);
    case Type::q5_1: return half(block) * (nibble(8) + fifth(4)) + half(block + 2);
    case Type::q8_0: return half(block) * static_cast<signed char>(block[2 + e]);
    case Type::q4_k: return k_quant(0, 16);
    case Type::q5_k: return k_quant(16, 48);
    case Type::q6_k: {
      const int low = block[j / 4 * 64 + j % 2 * 32 + l] >> j % 4 / 2 * 4 & 15;
      const int high = block[128 + j / 4 * 32 + l] >> j % 4 * 2 & 3;
      return half(block + 208) * static_cast<signed char>(block[192 + e / 16]) * (low + 16 * high - 32);
    }
    default: return NAN;
  }
}

template <class T>
struct Over {
  using Wide = std::conditional_t<sizeof(T) == 4, double, T>;  // of sums and steps: a float is rounded once
  struct Mat {
    T* data;
    int64_t rows, cols, stride;
    Mat(const View& v) : data(static_cast<T*>(v.data)), rows(v.rows), cols(v.cols), stride(v.stride) {}
    T& operator()(int64_t i, int64_t j) const { return data[i * stride + j]; }
    void each(auto&& f) const {  // f(i, j), row by row
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) f(i, j);
    }
  };

  static Wide sum(int64_t n, auto&& term) {  // term(0) + term(1) + ... + term(n - 1), in this order
    Wide total = 0;
    for (int64_t j = 0; j < n; ++j) total += term(j);
    return total;
  }

  // ---- 1  rows: embedding, gather

  static void embed(View table, const int32_t* ids, Mat x) {
    x.each([&](int64_t i, int64_t j) { x(i, j) = weight(table, ids[i], j); });
  }

  static void gather(Mat x, const int32_t* rows, Mat y) {
    y.each([&](int64_t i, int64_t j) { y(i, j) = x(rows[i], j); });
  }

  // y[i] = x[rows[i]]
  static void gather_backward(Mat dy, const int32_t* rows, Mat dx) {
    dy.each([&](int64_t i, int64_t j) { dx(rows[i], j) += dy(i, j); });
  }

  static void add(Mat x, Mat y) {
    y.each([&](int64_t i, int64_t j) { y(i, j) += x(i, j); });
  }

  static void zero(Mat y) {
    y.each([&](int64_t i, int64_t j) { y(i, j) = 0; });
  }

  // ---- 2  RMSNorm

  static T inverse_rms(Mat x, int64_t i, double eps) {
    return 1.0 / std::sqrt(sum(x.cols, [&](int64_t j) { return x(i, j) * x(i, j); }) / double(x.cols) + eps);
  }

  static void rmsnorm(Mat x, View w, double eps, Mat y) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const T r = inverse_rms(x, i, eps);
      for (int64_t j = 0; j < x.cols; ++j) y(i, j) = x(i, j) * r * weight(w, 0, j);
    }
  }

  // y_j = x_j r w_j,  r = (mean(x^2) + eps)^(-1/2),  dr/dx_k = -r^3 x_k / d
  // dx_k = r w_k dy_k - (r^3 / d) x_k sum_j dy_j w_j x_j
  static void rmsnorm_backward(Mat dy, Mat x, View w, double eps, Mat dx) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const T r = inverse_rms(x, i, eps);
      const T dot = sum(x.cols, [&](int64_t j) { return dy(i, j) * weight(w, 0, j) * x(i, j); });
      const T c = r * r * r * dot / double(x.cols);
      for (int64_t j = 0; j < x.cols; ++j) dx(i, j) += r * weight(w, 0, j) * dy(i, j) - c * x(i, j);
    }
  }

  // ---- 3  linear layers over packed weights

  // y_o = (or +=) sum_j x_j w(o, j); each weight is decoded once, for all rows.
  static void product(Mat x, auto&& w, Mat y, Into into) {
    std::vector<T> total(x.rows);
    for (int64_t o = 0; o < y.cols; ++o) {
      std::fill(total.begin(), total.end(), T(0));
      for (int64_t j = 0; j < x.cols; ++j) {
        const double w_oj = w(o, j);
        for (int64_t i = 0; i < x.rows; ++i) total[i] += x(i, j) * w_oj;
      }
      for (int64_t i = 0; i < x.rows; ++i) y(i, o) = into == Into::add ? y(i, o) + total[i] : total[i];
    }
  }

  static void matmul(Mat x, View w, Mat y, Into into) {
    product(
        x, [&](int64_t o, int64_t j) { return weight(w, o, j); }, y, into);
  }

  // y_o = sum_j x_j w_oj;  the weights are frozen, so only dx_j = sum_o dy_o w_oj
  static void matmul_backward(Mat dy, View w, Mat dx, Into into) {
    product(
        dy, [&](int64_t j, int64_t o) { return weight(w, o, j); }, dx, into);
  }

  // ---- 4  rotary positions

  static void turn(Mat x, const int32_t* positions, Turns turns, Mat y, double direction) {
    const int64_t D = turns.table.cols;
    for (int64_t i = 0; i < x.rows; ++i)
      for (int64_t h = 0; h < x.cols; h += D)
        for (int64_t j = 0; j < D / 2; ++j) {
          const double c = weight(turns.table, positions[i], 2 * j);
          const double s = direction * weight(turns.table, positions[i], 2 * j + 1);
          const int64_t at = h + (turns.halves ? j : 2 * j), other = at + (turns.halves ? D / 2 : 1);
          const T a = x(i, at), b = x(i, other);
          y(i, at) = a * c - b * s;
          y(i, other) = a * s + b * c;
        }
  }

  static void rope(Mat x, const int32_t* positions, Turns turns, Mat y) { turn(x, positions, turns, y, 1); }

  // y = turn(angle) x;  the transpose of a rotation is the rotation back
  static void rope_backward(Mat dy, const int32_t* positions, Turns turns, Mat dx) {
    turn(dy, positions, turns, dx, -1);
  }

  // ---- 5  attention

  // What query row i of a group sees: keys and values of [context][own rows up to itself], and with what
  // weights a head looks at them.
  struct Seen {
    const Group& group;
    Mat kv;
    const T* context;
    int64_t count;
    Seen(const Group& g, Mat own, int64_t layer, int64_t i)
        : group(g),
          kv(own),
          context(reinterpret_cast<const T*>(g.context.data + layer * g.context.layer_bytes)),
          count(g.context.rows + g.rows - g.queries + i + 1) {}
    const T* row(int64_t j) const {
      return j < group.context.rows ? context + j * kv.cols : &kv(group.row + j - group.context.rows, 0);
    }
    // p_j = softmax_j(q . k_j / sqrt(D)); keys: where the head's keys start within a row
    std::vector<T> weights(const T* q, int64_t D, int64_t keys) const {
      std::vector<T> p(count);
      double top = -INFINITY;
      for (int64_t j = 0; j < count; ++j) {
        p[j] = sum(D, [&](int64_t e) { return q[e] * row(j)[keys + e]; }) / std::sqrt(double(D));
        top = std::fmax(top, real(p[j]));
      }
      for (T& s : p) s = std::exp(s - top);
      const T total = sum(count, [&](int64_t j) { return p[j]; });
      for (T& s : p) s /= total;
      return p;
    }
  };

  static void attention(Heads heads, int64_t layer, const Group* groups, int64_t n, Mat q, Mat kv, Mat out) {
    const int64_t D = heads.size, share = heads.heads / heads.kv_heads, values = heads.kv_heads * D;
    for (int64_t g = 0; g < n; ++g)
      for (int64_t i = 0; i < groups[g].queries; ++i)
        for (int64_t h = 0; h < heads.heads; ++h) {
          const Seen seen(groups[g], kv, layer, i);
          const int64_t row = groups[g].query + i, keys = h / share * D;
          const auto p = seen.weights(&q(row, h * D), D, keys);
          for (int64_t e = 0; e < D; ++e)
            out(row, h * D + e) =
                sum(seen.count, [&](int64_t j) { return p[j] * seen.row(j)[values + keys + e]; });
        }
  }

  // out = sum_j p_j v_j            dv_j += p_j dout,  dp_j = dout . v_j
  // p = softmax(s)                 ds_j = p_j (dp_j - sum_i p_i dp_i)
  // s_j = q . k_j / sqrt(D)        dq += ds_j k_j / sqrt(D),  dk_j += ds_j q / sqrt(D)
  static void attention_backward(Heads heads, int64_t layer, const Group* groups, int64_t n, Mat dout, Mat q,
                                 Mat kv, Mat dq, Mat dkv, Mat dcontext) {
    const int64_t D = heads.size, share = heads.heads / heads.kv_heads, values = heads.kv_heads * D;
    const double scale = 1 / std::sqrt(double(D));
    zero(dkv);
    for (int64_t g = 0; g < n; ++g)
      for (int64_t i = 0; i < groups[g].queries; ++i)
        for (int64_t h = 0; h < heads.heads; ++h) {
          const Seen seen(groups[g], kv, layer, i);
          const int64_t row = groups[g].query + i, keys = h / share * D, context = groups[g].context.rows;
          const auto p = seen.weights(&q(row, h * D), D, keys);
          std::vector<T> dp(p.size());
          T mean = 0;
          for (int64_t j = 0; j < seen.count; ++j) {
            dp[j] = sum(D, [&](int64_t e) { return dout(row, h * D + e) * seen.row(j)[values + keys + e]; });
            mean += p[j] * dp[j];
          }
          for (int64_t e = 0; e < D; ++e) dq(row, h * D + e) = 0;
          for (int64_t j = 0; j < seen.count; ++j) {
            const T ds = p[j] * (dp[j] - mean);
            for (int64_t e = 0; e < D; ++e) dq(row, h * D + e) += ds * scale * seen.row(j)[keys + e];
            if (j < context && !dcontext.data) continue;
            T* dkv_j = j < context ? &dcontext(j, 0) : &dkv(groups[g].row + j - context, 0);
            for (int64_t e = 0; e < D; ++e) {
              dkv_j[keys + e] += ds * scale * q(row, h * D + e);
              dkv_j[values + keys + e] += p[j] * dout(row, h * D + e);
            }
          }
        }
  }

  // ---- 6  SwiGLU

  static void swiglu(Mat gate, Mat up, Mat y) {
    y.each([&](int64_t i, int64_t j) { y(i, j) = gate(i, j) / (1.0 + std::exp(-gate(i, j))) * up(i, j); });
  }

  // y = g sigma(g) u       du = dy g sigma(g),  dg = dy u sigma(g) (1 + g (1 - sigma(g)))
  static void swiglu_backward(Mat dy, Mat gate, Mat up, Mat dgate, Mat dup) {
    dy.each([&](int64_t i, int64_t j) {
      const T g = gate(i, j), sigma = 1.0 / (1.0 + std::exp(-g)), d = dy(i, j), u = up(i, j);
      dup(i, j) = d * g * sigma;
      dgate(i, j) = d * u * sigma * (1.0 + g * (1.0 - sigma));
    });
  }

  // ---- 7  pooling and L2 normalisation

  static void pool(const Group* groups, int64_t n, Mat h, Mat e) {
    for (int64_t g = 0; g < n; ++g)
      for (int64_t j = 0; j < e.cols; ++j)
        e(g, j) = sum(groups[g].queries, [&](int64_t i) { return h(groups[g].query + i, j); }) /
                  double(groups[g].queries);
  }

  // e = sum_i h_i / n      dh_i = de / n
  static void pool_backward(const Group* groups, int64_t n, Mat de, Mat dh) {
    for (int64_t g = 0; g < n; ++g)
      for (int64_t i = 0; i < groups[g].queries; ++i)
        for (int64_t j = 0; j < de.cols; ++j)
          dh(groups[g].query + i, j) = de(g, j) / double(groups[g].queries);
  }

  static T centred(Mat e, Mat mean, int64_t i, int64_t j) {
    return mean.data ? e(i, j) - mean(0, j) : e(i, j);
  }

  static void normalize(Mat e, Mat mean, Mat u) {
    for (int64_t i = 0; i < e.rows; ++i) {
      const auto c = [&](int64_t j) { return centred(e, mean, i, j); };
      const Wide square = sum(e.cols, [&](int64_t j) { return c(j) * c(j); });
      for (int64_t j = 0; j < e.cols; ++j) u(i, j) = c(j) / std::sqrt(square);
    }
  }

  // u = c / |c|,  c = e - mean      de = (du - u (u . du)) / |c|
  static void normalize_backward(Mat du, Mat e, Mat mean, Mat de) {
    for (int64_t i = 0; i < e.rows; ++i) {
      const auto c = [&](int64_t j) { return centred(e, mean, i, j); };
      const Wide square = sum(e.cols, [&](int64_t j) { return c(j) * c(j); });
      const Wide dot = sum(e.cols, [&](int64_t j) { return c(j) * du(i, j); });
      for (int64_t j = 0; j < e.cols; ++j) de(i, j) = (du(i, j) - c(j) * dot / square) / std::sqrt(square);
    }
  }

  // ---- 8  contrastive loss

  static void similarity(Mat q, Mat l, double temperature, Mat s) {
    s.each([&](int64_t i, int64_t j) {
      s(i, j) = sum(q.cols, [&](int64_t k) { return q(i, k) * l(j, k); }) / temperature;
    });
  }

  // s_ij = q_i . l_j / t      dq_i = sum_j ds_ij l_j / t,  dl_j = sum_i ds_ij q_i / t
  static void similarity_backward(Mat ds, Mat q, Mat l, double temperature, Mat dq, Mat dl) {
    dq.each([&](int64_t i, int64_t k) {
      dq(i, k) = sum(ds.cols, [&](int64_t j) { return ds(i, j) * l(j, k); }) / temperature;
    });
    dl.each([&](int64_t j, int64_t k) {
      dl(j, k) = sum(ds.rows, [&](int64_t i) { return ds(i, j) * q(i, k); }) / temperature;
    });
  }

  // One softmax of the loss: entries first, first + step, ... of s; the hidden ones are left out of the
  // denominator.
  struct Softmax {
    const T* first;
    int64_t count, step;
    const uint8_t* hidden;
    Wide log_sum() const {
      double top = -INFINITY;
      for (int64_t j = 0; j < count; ++j)
        if (!hidden[j]) top = std::fmax(top, real(first[j * step]));
      return std::log(sum(count,
                          [&](int64_t j) { return hidden[j] ? Wide(0) : std::exp(first[j * step] - top); })) +
             top;
    }
  };

  // Calls f(softmax, index of the target, weight in the loss), pairs ascending.
  static void each_softmax(Mat s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                           const uint8_t* hidden_queries, auto&& f) {
    const double weight = (hidden_queries ? 0.5 : 1.0) / double(n);
    for (int64_t i = 0; i < n; ++i) {
      const auto [q, l] = pairs[i];
      f(Softmax{&s(q, 0), s.cols, 1, hidden + i * s.cols}, l, weight);
      if (hidden_queries) f(Softmax{&s(0, l), s.rows, s.stride, hidden_queries + i * s.rows}, q, weight);
    }
  }

  static void contrastive(Mat s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                          const uint8_t* hidden_queries, Mat loss) {
    Wide total = 0;
    each_softmax(s, pairs, n, hidden, hidden_queries, [&](const Softmax& row, int64_t target, double weight) {
      total += weight * (row.log_sum() - Wide(row.first[target * row.step]));
    });
    loss(0, 0) = T(total);
  }

  // loss = sum_i w (log sum_j exp(s_ij) - s_it)      ds_ij += w (exp(s_ij) / sum_k exp(s_ik) - [j = t])
  static void contrastive_backward(Mat s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                                   const uint8_t* hidden_queries, Mat ds) {
    zero(ds);
    each_softmax(s, pairs, n, hidden, hidden_queries, [&](const Softmax& row, int64_t target, double weight) {
      const int64_t at = row.first - s.data, step = row.step == 1 ? 1 : ds.stride;
      T* out = &ds(at / s.stride, at % s.stride);
      const Wide log_sum = row.log_sum();
      for (int64_t k = 0; k < row.count; ++k)
        if (!row.hidden[k])
          out[k * step] +=
              T(weight * (std::exp(row.first[k * row.step] - log_sum) - (k == target ? 1.0 : 0.0)));
    });
  }

  // ---- 9  optimiser

  static void norm(Mat g, Mat length) {
    Wide square = 0;
    g.each([&](int64_t i, int64_t j) { square += Wide(g(i, j)) * Wide(g(i, j)); });
    length(0, 0) = std::sqrt(square);
  }

  static void adamw(Mat p, Mat g, Mat m, Mat v, Mat length, double clip, AdamW o) {
    const Wide norm = length(0, 0), shrink = clip > 0 && real(norm) > clip ? clip / norm : Wide(1);
    const double correct1 = 1 - std::pow(o.beta1, o.step), correct2 = 1 - std::pow(o.beta2, o.step);
    p.each([&](int64_t i, int64_t j) {
      const Wide gradient = Wide(g(i, j)) * shrink;
      const Wide mean = o.beta1 * Wide(m(i, j)) + (1 - o.beta1) * gradient;
      const Wide square = o.beta2 * Wide(v(i, j)) + (1 - o.beta2) * gradient * gradient;
      const Wide step = mean / correct1 / (std::sqrt(square / correct2) + o.epsilon);
      m(i, j) = T(mean), v(i, j) = T(square);
      p(i, j) = T(Wide(p(i, j)) - o.rate * (step + o.decay * Wide(p(i, j))));
    });
  }
};

// Puts f into a slot of the table: the Views of the table's signature become matrices of T on the way.
template <auto f, class... A>
constexpr void set(void (*&slot)(const Context&, A...)) {
  slot = [](const Context&, A... a) { f(a...); };
}

// The op table over T; `type` tells the graph how large an element is.
template <class T>
constexpr Ops ref_ops() {
  using R = Over<T>;
  Ops o{};
  o.path = "reference";
  o.activation = o.accumulator = sizeof(T) == 4   ? Type::f32
                                 : sizeof(T) == 8 ? Type::ref_double
                                                  : Type::ref_complex;
  o.bring = [](const Context&, const void* data, size_t, const char*) { return data; };
  o.fetch = [](const Context&, const void*, size_t, void*) {};  // what was brought is the data itself
  set<R::embed>(o.embed), set<R::gather>(o.gather), set<R::gather_backward>(o.gather_backward);
  set<R::add>(o.add), set<R::zero>(o.zero);
  set<R::rmsnorm>(o.rmsnorm), set<R::rmsnorm_backward>(o.rmsnorm_backward);
  set<R::matmul>(o.matmul), set<R::matmul_backward>(o.matmul_backward);
  set<R::rope>(o.rope), set<R::rope_backward>(o.rope_backward);
  set<R::attention>(o.attention), set<R::attention_backward>(o.attention_backward);
  set<R::swiglu>(o.swiglu), set<R::swiglu_backward>(o.swiglu_backward);
  set<R::pool>(o.pool), set<R::pool_backward>(o.pool_backward);
  set<R::normalize>(o.normalize), set<R::normalize_backward>(o.normalize_backward);
  set<R::similarity>(o.similarity), set<R::similarity_backward>(o.similarity_backward);
  set<R::contrastive>(o.contrastive), set<R::contrastive_backward>(o.contrastive_backward);
  set<R::norm>(o.norm), set<R::adamw>(o.adamw);
  return o;
}

}  // namespace quest::ref
