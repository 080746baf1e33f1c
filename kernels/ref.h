// The reference: every op of ops.h as plain scalar templates over T, forward and backward in pairs, the
// forward line quoted above its derivative (written out in DERIVATIONS.md under the same number). It shares
// no code with the fast ops. T = std::complex<double> proves the derivatives by complex step, T = double is
// the truth for the fast ops. Nothing is rounded on the way; weights are decoded to T.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <vector>

#include "kernels/ops.h"

namespace quest::ref {

inline double real(double x) { return x; }
inline double real(const std::complex<double>& x) { return x.real(); }

// A matrix of T.
template <class T>
struct Mat {
  T* data;
  int64_t rows, cols, stride;
  Mat(const View& v) : data(static_cast<T*>(v.data)), rows(v.rows), cols(v.cols), stride(v.stride) {}
  T& operator()(int64_t i, int64_t j) const { return data[i * stride + j]; }
};

// ---- weights, decoded: f32, f16, bf16, Q4_1: d * q + m, Q8_0: d * q (GGUF blocks of 32)

inline double half(const unsigned char* p) {  // IEEE 754 binary16
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                           : exponent == 31 ? (fraction ? NAN : INFINITY)
                                            : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

inline double weight(const View& w, int64_t row, int64_t col) {
  const auto* bytes = static_cast<const unsigned char*>(w.data);
  const int64_t at = row * w.stride + col, e = at % 32;
  const unsigned char* block;
  float f;
  switch (w.type) {
    case Type::f32: std::memcpy(&f, bytes + 4 * at, 4); return f;
    case Type::f16: return half(bytes + 2 * at);
    case Type::bf16: {
      const uint32_t bits = static_cast<uint32_t>(bytes[2 * at] | bytes[2 * at + 1] << 8) << 16;
      std::memcpy(&f, &bits, 4);
      return f;
    }
    case Type::q4_1:
      block = bytes + at / 32 * 20;
      return half(block) * (block[4 + e % 16] >> (e < 16 ? 0 : 4) & 15) + half(block + 2);
    case Type::q8_0:
      block = bytes + at / 32 * 34;
      return half(block) * static_cast<signed char>(block[2 + e]);
    default: return NAN;
  }
}

// ---- 1  rows: embedding, repeated prompt, gather

template <class T>
void embed(const Context&, View table, const int32_t* ids, View x_) {
  const Mat<T> x(x_);
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.cols; ++j) x(i, j) = weight(table, ids[i], j);
}

template <class T>
void repeat(const Context&, View prompt_, View x_) {
  const Mat<T> prompt(prompt_), x(x_);
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.cols; ++j) x(i, j) = prompt(i % prompt.rows, j);
}

// x[i] = prompt[i mod K]
template <class T>
void repeat_backward(const Context&, View dx_, View dprompt_) {
  const Mat<T> dx(dx_), dprompt(dprompt_);
  for (int64_t i = 0; i < dx.rows; ++i)
    for (int64_t j = 0; j < dx.cols; ++j) dprompt(i % dprompt.rows, j) += dx(i, j);
}

template <class T>
void gather(const Context&, View x_, const int32_t* rows, View y_) {
  const Mat<T> x(x_), y(y_);
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) y(i, j) = x(rows[i], j);
}

// y[i] = x[rows[i]]
template <class T>
void gather_backward(const Context&, View dy_, const int32_t* rows, View dx_) {
  const Mat<T> dy(dy_), dx(dx_);
  for (int64_t i = 0; i < dy.rows; ++i)
    for (int64_t j = 0; j < dy.cols; ++j) dx(rows[i], j) += dy(i, j);
}

template <class T>
void add(const Context&, View x_, View y_) {
  const Mat<T> x(x_), y(y_);
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) y(i, j) += x(i, j);
}

template <class T>
void zero(const Context&, View y_) {
  const Mat<T> y(y_);
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) y(i, j) = 0;
}

// ---- 2  RMSNorm

template <class T>
T inverse_rms(const Mat<T>& x, int64_t i, double eps) {
  T sum = 0;
  for (int64_t j = 0; j < x.cols; ++j) sum += x(i, j) * x(i, j);
  return 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + eps);
}

template <class T>
void rmsnorm(const Context&, View x_, View w, double eps, View y_) {
  const Mat<T> x(x_), y(y_);
  for (int64_t i = 0; i < x.rows; ++i) {
    const T r = inverse_rms(x, i, eps);
    for (int64_t j = 0; j < x.cols; ++j) y(i, j) = x(i, j) * r * weight(w, 0, j);
  }
}

// y_j = x_j r w_j,  r = (mean(x^2) + eps)^(-1/2),  dr/dx_k = -r^3 x_k / d
// dx_k = r w_k dy_k - (r^3 / d) x_k sum_j dy_j w_j x_j
template <class T>
void rmsnorm_backward(const Context&, View dy_, View x_, View w, double eps, View dx_) {
  const Mat<T> dy(dy_), x(x_), dx(dx_);
  for (int64_t i = 0; i < x.rows; ++i) {
    const T r = inverse_rms(x, i, eps);
    T dot = 0;
    for (int64_t j = 0; j < x.cols; ++j) dot += dy(i, j) * weight(w, 0, j) * x(i, j);
    const T c = r * r * r * dot / static_cast<double>(x.cols);
    for (int64_t j = 0; j < x.cols; ++j) dx(i, j) += r * weight(w, 0, j) * dy(i, j) - c * x(i, j);
  }
}

// ---- 3  linear layers over packed weights

// Each weight is decoded once; every output still sums its inner index ascending.
template <class T>
void matmul(const Context&, View x_, View w, View y_, Into into) {
  const Mat<T> x(x_), y(y_);
  std::vector<T> sum(static_cast<size_t>(x.rows));
  for (int64_t o = 0; o < w.rows; ++o) {
    std::fill(sum.begin(), sum.end(), T(0));
    for (int64_t j = 0; j < w.cols; ++j) {
      const double w_oj = weight(w, o, j);
      for (int64_t i = 0; i < x.rows; ++i) sum[static_cast<size_t>(i)] += x(i, j) * w_oj;
    }
    for (int64_t i = 0; i < x.rows; ++i)
      y(i, o) = into == Into::add ? y(i, o) + sum[static_cast<size_t>(i)] : sum[static_cast<size_t>(i)];
  }
}

// y_o = sum_j x_j w_oj;  the weights are frozen, so only dx_j = sum_o dy_o w_oj
template <class T>
void matmul_backward(const Context&, View dy_, View w, View dx_, Into into) {
  const Mat<T> dy(dy_), dx(dx_);
  std::vector<T> sum(static_cast<size_t>(dy.rows));
  for (int64_t j = 0; j < w.cols; ++j) {
    std::fill(sum.begin(), sum.end(), T(0));
    for (int64_t o = 0; o < w.rows; ++o) {
      const double w_oj = weight(w, o, j);
      for (int64_t i = 0; i < dy.rows; ++i) sum[static_cast<size_t>(i)] += dy(i, o) * w_oj;
    }
    for (int64_t i = 0; i < dy.rows; ++i)
      dx(i, j) = into == Into::add ? dx(i, j) + sum[static_cast<size_t>(i)] : sum[static_cast<size_t>(i)];
  }
}

// ---- 4  rotary positions

template <class T>
void turn(View x_, const int32_t* positions, View turns, View y_, double direction) {
  const Mat<T> x(x_), y(y_);
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.cols; j += 2) {
      const double c = weight(turns, positions[i], j % turns.cols);
      const double s = direction * weight(turns, positions[i], j % turns.cols + 1);
      const T a = x(i, j), b = x(i, j + 1);
      y(i, j) = a * c - b * s;
      y(i, j + 1) = a * s + b * c;
    }
}

template <class T>
void rope(const Context&, View x, const int32_t* positions, View turns, View y) {
  turn<T>(x, positions, turns, y, 1);
}

// y = turn(angle) x;  the transpose of a rotation is the rotation back
template <class T>
void rope_backward(const Context&, View dy, const int32_t* positions, View turns, View dx) {
  turn<T>(dy, positions, turns, dx, -1);
}

// ---- 5  attention

// What query row i of a group sees: keys and values of [context][own rows up to itself], for one kv head.
template <class T>
struct Seen {
  const Group& group;
  Mat<T> kv;
  const T* context;
  int64_t own, count;
  Seen(const Group& g, const View& kv_, int64_t layer, int64_t i)
      : group(g),
        kv(kv_),
        context(reinterpret_cast<const T*>(g.context.data + layer * g.context.layer_bytes)),
        own(g.rows - g.queries + i),
        count(g.context.rows + own + 1) {}
  const T* row(int64_t j) const {
    return j < group.context.rows ? context + j * kv.cols : &kv(group.row + j - group.context.rows, 0);
  }
};

// p_j = softmax_j(q . k_j / sqrt(D))
template <class T>
std::vector<T> attention_weights(const Seen<T>& seen, const T* q, int64_t size, int64_t head) {
  std::vector<T> p(static_cast<size_t>(seen.count));
  double top = -INFINITY;
  for (int64_t j = 0; j < seen.count; ++j) {
    T s = 0;
    for (int64_t e = 0; e < size; ++e) s += q[e] * seen.row(j)[head * size + e];
    p[static_cast<size_t>(j)] = s / std::sqrt(static_cast<double>(size));
    top = std::fmax(top, real(p[static_cast<size_t>(j)]));
  }
  T sum = 0;
  for (T& s : p) sum += s = std::exp(s - top);
  for (T& s : p) s /= sum;
  return p;
}

template <class T>
void attention(const Context&, Heads heads, int64_t layer, const Group* groups, int64_t n, View q_, View kv,
               View out_) {
  const Mat<T> q(q_), out(out_);
  const int64_t D = heads.size, share = heads.heads / heads.kv_heads, values = heads.kv_heads * D;
  for (int64_t g = 0; g < n; ++g)
    for (int64_t i = 0; i < groups[g].queries; ++i)
      for (int64_t h = 0; h < heads.heads; ++h) {
        const Seen<T> seen(groups[g], kv, layer, i);
        const int64_t row = groups[g].query + i;
        const auto p = attention_weights(seen, &q(row, h * D), D, h / share);
        for (int64_t e = 0; e < D; ++e) {
          T sum = 0;
          for (int64_t j = 0; j < seen.count; ++j)
            sum += p[static_cast<size_t>(j)] * seen.row(j)[values + h / share * D + e];
          out(row, h * D + e) = sum;
        }
      }
}

// out = sum_j p_j v_j            dv_j += p_j dout,  dp_j = dout . v_j
// p = softmax(s)                 ds_j = p_j (dp_j - sum_i p_i dp_i)
// s_j = q . k_j / sqrt(D)        dq += ds_j k_j / sqrt(D),  dk_j += ds_j q / sqrt(D)
template <class T>
void attention_backward(const Context&, Heads heads, int64_t layer, const Group* groups, int64_t n,
                        View dout_, View q_, View kv, View dq_, View dkv_, View dcontext_) {
  const Mat<T> q(q_), dout(dout_), dq(dq_), dkv(dkv_), dcontext(dcontext_);
  const int64_t D = heads.size, share = heads.heads / heads.kv_heads, values = heads.kv_heads * D;
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  for (int64_t i = 0; i < dkv.rows; ++i)
    for (int64_t j = 0; j < dkv.cols; ++j) dkv(i, j) = 0;
  for (int64_t g = 0; g < n; ++g)
    for (int64_t i = 0; i < groups[g].queries; ++i)
      for (int64_t h = 0; h < heads.heads; ++h) {
        const Seen<T> seen(groups[g], kv, layer, i);
        const int64_t row = groups[g].query + i, keys = h / share * D, context = groups[g].context.rows;
        const auto p = attention_weights(seen, &q(row, h * D), D, h / share);
        std::vector<T> dp(p.size(), T(0));
        T mean = 0;
        for (int64_t j = 0; j < seen.count; ++j) {
          for (int64_t e = 0; e < D; ++e)
            dp[static_cast<size_t>(j)] += dout(row, h * D + e) * seen.row(j)[values + keys + e];
          mean += p[static_cast<size_t>(j)] * dp[static_cast<size_t>(j)];
        }
        for (int64_t e = 0; e < D; ++e) dq(row, h * D + e) = 0;
        for (int64_t j = 0; j < seen.count; ++j) {
          const T weight_j = p[static_cast<size_t>(j)], ds = weight_j * (dp[static_cast<size_t>(j)] - mean);
          for (int64_t e = 0; e < D; ++e) dq(row, h * D + e) += ds * scale * seen.row(j)[keys + e];
          if (j < context && !dcontext.data) continue;
          T* dkv_j = j < context ? &dcontext(j, 0) : &dkv(groups[g].row + j - context, 0);
          for (int64_t e = 0; e < D; ++e) {
            dkv_j[keys + e] += ds * scale * q(row, h * D + e);
            dkv_j[values + keys + e] += weight_j * dout(row, h * D + e);
          }
        }
      }
}

// ---- 6  SwiGLU

template <class T>
void swiglu(const Context&, View gate_, View up_, View y_) {
  const Mat<T> gate(gate_), up(up_), y(y_);
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.cols; ++j) y(i, j) = gate(i, j) / (1.0 + std::exp(-gate(i, j))) * up(i, j);
}

// y = g sigma(g) u       du = dy g sigma(g),  dg = dy u sigma(g) (1 + g (1 - sigma(g)))
template <class T>
void swiglu_backward(const Context&, View dy_, View gate_, View up_, View dgate_, View dup_) {
  const Mat<T> dy(dy_), gate(gate_), up(up_), dgate(dgate_), dup(dup_);
  for (int64_t i = 0; i < dy.rows; ++i)
    for (int64_t j = 0; j < dy.cols; ++j) {
      const T g = gate(i, j), sigma = 1.0 / (1.0 + std::exp(-g));
      const T d = dy(i, j), u = up(i, j);
      dup(i, j) = d * g * sigma;
      dgate(i, j) = d * u * sigma * (1.0 + g * (1.0 - sigma));
    }
}

// ---- 7  pooling and L2 normalisation

template <class T>
void pool(const Context&, const Group* groups, int64_t n, View h_, View e_) {
  const Mat<T> h(h_), e(e_);
  for (int64_t g = 0; g < n; ++g)
    for (int64_t j = 0; j < e.cols; ++j) {
      T sum = 0;
      for (int64_t i = 0; i < groups[g].queries; ++i) sum += h(groups[g].query + i, j);
      e(g, j) = sum / static_cast<double>(groups[g].queries);
    }
}

// e = sum_i h_i / n      dh_i = de / n
template <class T>
void pool_backward(const Context&, const Group* groups, int64_t n, View de_, View dh_) {
  const Mat<T> de(de_), dh(dh_);
  for (int64_t g = 0; g < n; ++g)
    for (int64_t i = 0; i < groups[g].queries; ++i)
      for (int64_t j = 0; j < de.cols; ++j)
        dh(groups[g].query + i, j) = de(g, j) / static_cast<double>(groups[g].queries);
}

template <class T>
T centred(const Mat<T>& e, const Mat<T>& mean, int64_t i, int64_t j) {
  return mean.data ? e(i, j) - mean(0, j) : e(i, j);
}

template <class T>
void normalize(const Context&, View e_, View mean_, View u_) {
  const Mat<T> e(e_), mean(mean_), u(u_);
  for (int64_t i = 0; i < e.rows; ++i) {
    T sum = 0;
    for (int64_t j = 0; j < e.cols; ++j) sum += centred(e, mean, i, j) * centred(e, mean, i, j);
    for (int64_t j = 0; j < e.cols; ++j) u(i, j) = centred(e, mean, i, j) / std::sqrt(sum);
  }
}

// u = c / |c|,  c = e - mean      de = (du - u (u . du)) / |c|
template <class T>
void normalize_backward(const Context&, View du_, View e_, View mean_, View de_) {
  const Mat<T> du(du_), e(e_), mean(mean_), de(de_);
  for (int64_t i = 0; i < e.rows; ++i) {
    T sum = 0, dot = 0;
    for (int64_t j = 0; j < e.cols; ++j) {
      sum += centred(e, mean, i, j) * centred(e, mean, i, j);
      dot += centred(e, mean, i, j) * du(i, j);
    }
    for (int64_t j = 0; j < e.cols; ++j)
      de(i, j) = (du(i, j) - centred(e, mean, i, j) * dot / sum) / std::sqrt(sum);
  }
}

// ---- 8  contrastive loss

template <class T>
void similarity(const Context&, View q_, View l_, double temperature, View s_) {
  const Mat<T> q(q_), l(l_), s(s_);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.cols; ++j) {
      T sum = 0;
      for (int64_t k = 0; k < q.cols; ++k) sum += q(i, k) * l(j, k);
      s(i, j) = sum / temperature;
    }
}

// s_ij = q_i . l_j / t      dq_i = sum_j ds_ij l_j / t,  dl_j = sum_i ds_ij q_i / t
template <class T>
void similarity_backward(const Context&, View ds_, View q_, View l_, double temperature, View dq_, View dl_) {
  const Mat<T> ds(ds_), q(q_), l(l_), dq(dq_), dl(dl_);
  for (int64_t k = 0; k < q.cols; ++k) {
    for (int64_t i = 0; i < ds.rows; ++i) {
      T sum = 0;
      for (int64_t j = 0; j < ds.cols; ++j) sum += ds(i, j) * l(j, k);
      dq(i, k) = sum / temperature;
    }
    for (int64_t j = 0; j < ds.cols; ++j) {
      T sum = 0;
      for (int64_t i = 0; i < ds.rows; ++i) sum += ds(i, j) * q(i, k);
      dl(j, k) = sum / temperature;
    }
  }
}

// One softmax of the loss: entries first, first + step, ... of s; the hidden ones are left out of the
// denominator.
template <class T>
struct Softmax {
  const T* first;
  int64_t count, step;
  const uint8_t* hidden;
  T log_sum() const {
    double top = -INFINITY;
    for (int64_t j = 0; j < count; ++j)
      if (!hidden[j]) top = std::fmax(top, real(first[j * step]));
    T sum = 0;
    for (int64_t j = 0; j < count; ++j)
      if (!hidden[j]) sum += std::exp(first[j * step] - top);
    return std::log(sum) + top;
  }
};

template <class T, class F>  // calls f(softmax, index of the target, weight in the loss), pairs ascending
void each_softmax(const Mat<T>& s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                  const uint8_t* hidden_queries, F&& f) {
  const double weight = (hidden_queries ? 0.5 : 1.0) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    const auto [q, l] = pairs[i];
    f(Softmax<T>{&s(q, 0), s.cols, 1, hidden + i * s.cols}, l, weight);
    if (hidden_queries) f(Softmax<T>{&s(0, l), s.rows, s.stride, hidden_queries + i * s.rows}, q, weight);
  }
}

template <class T>
void contrastive(const Context&, View s, const Pair* pairs, int64_t n, const uint8_t* hidden,
                 const uint8_t* hidden_queries, View loss) {
  T sum = 0;
  each_softmax(Mat<T>(s), pairs, n, hidden, hidden_queries,
               [&](const auto& row, int64_t target, double weight) {
                 sum += weight * (row.log_sum() - row.first[target * row.step]);
               });
  Mat<T>{loss}(0, 0) = sum;
}

// loss = sum_i w (log sum_j exp(s_ij) - s_it)      ds_ij += w (exp(s_ij) / sum_k exp(s_ik) - [j = t])
template <class T>
void contrastive_backward(const Context&, View s_, const Pair* pairs, int64_t n, const uint8_t* hidden,
                          const uint8_t* hidden_queries, View ds_) {
  const Mat<T> s(s_), ds(ds_);
  for (int64_t i = 0; i < ds.rows; ++i)
    for (int64_t j = 0; j < ds.cols; ++j) ds(i, j) = 0;
  each_softmax(s, pairs, n, hidden, hidden_queries, [&](const auto& row, int64_t target, double weight) {
    const int64_t at = row.first - s.data, i = at / s.stride, j = at % s.stride;
    T* out = &ds(i, j);
    const int64_t step = row.step == 1 ? 1 : ds.stride;
    const T log_sum = row.log_sum();
    for (int64_t k = 0; k < row.count; ++k)
      if (!row.hidden[k]) out[k * step] += weight * std::exp(row.first[k * row.step] - log_sum);
    out[target * step] -= weight;
  });
}

// ---- 9  optimiser

template <class T>
void norm(const Context&, View g_, View out) {
  const Mat<T> g(g_);
  T sum = 0;
  for (int64_t i = 0; i < g.rows; ++i)
    for (int64_t j = 0; j < g.cols; ++j) sum += g(i, j) * g(i, j);
  Mat<T>{out}(0, 0) = std::sqrt(sum);
}

template <class T>
void adamw(const Context&, View p_, View g_, View m_, View v_, View norm_, double clip, AdamW o) {
  const Mat<T> p(p_), g(g_), m(m_), v(v_), length(norm_);
  const T shrink = clip > 0 && real(length(0, 0)) > clip ? clip / length(0, 0) : T(1);
  const double correct1 = 1 - std::pow(o.beta1, static_cast<double>(o.step));
  const double correct2 = 1 - std::pow(o.beta2, static_cast<double>(o.step));
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t j = 0; j < p.cols; ++j) {
      const T gradient = g(i, j) * shrink;
      m(i, j) = o.beta1 * m(i, j) + (1 - o.beta1) * gradient;
      v(i, j) = o.beta2 * v(i, j) + (1 - o.beta2) * gradient * gradient;
      const T step = m(i, j) / correct1 / (std::sqrt(v(i, j) / correct2) + o.epsilon);
      p(i, j) -= o.rate * (step + o.decay * p(i, j));
    }
}

// The op table over T; `type` tells the graph how large an element is.
template <class T>
constexpr Ops ref_ops() {
  constexpr Type type = sizeof(T) == sizeof(double) ? Type::ref_double : Type::ref_complex;
  Ops o{};
  o.path = "reference";
  o.activation = o.accumulator = type;
  o.embed = embed<T>, o.repeat = repeat<T>, o.repeat_backward = repeat_backward<T>;
  o.gather = gather<T>, o.gather_backward = gather_backward<T>, o.add = add<T>, o.zero = zero<T>;
  o.rmsnorm = rmsnorm<T>, o.rmsnorm_backward = rmsnorm_backward<T>;
  o.matmul = matmul<T>, o.matmul_backward = matmul_backward<T>;
  o.rope = rope<T>, o.rope_backward = rope_backward<T>;
  o.attention = attention<T>, o.attention_backward = attention_backward<T>;
  o.swiglu = swiglu<T>, o.swiglu_backward = swiglu_backward<T>;
  o.pool = pool<T>, o.pool_backward = pool_backward<T>;
  o.normalize = normalize<T>, o.normalize_backward = normalize_backward<T>;
  o.similarity = similarity<T>, o.similarity_backward = similarity_backward<T>;
  o.contrastive = contrastive<T>, o.contrastive_backward = contrastive_backward<T>;
  o.norm = norm<T>, o.adamw = adamw<T>;
  return o;
}

}  // namespace quest::ref
