// What the tests of ops and graph share: matrices of any stored type with poisoned padding, NaN-safe
// closeness, complex step, a context with arena and threads.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"
#include "kernels/tile_math.h"
#include "kernels/ref.h"

namespace quest {

using Complex = std::complex<double>;

constexpr double eps32 = 0x1p-24;  // half a unit in the last place of a float near 1
constexpr double eps16 = 0x1p-8;  // the same of a bf16

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  double uniform() { return random_uniform(seed_, 7, counter_++); }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
  int64_t below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

 private:
  uint64_t seed_, counter_ = 0;
};

// Rows with padding between them and canaries around them; everything starts as NaN bytes.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t cols, Type type, int64_t padding = 3)
      : rows_(rows),
        cols_(cols),
        stride_(cols + padding),
        type_(type),
        bytes_(static_cast<size_t>(row_bytes(type, stride_) * (rows + 2)), std::byte{0xff}) {}

  View view() { return {bytes_.data() + row_bytes(type_, stride_), type_, rows_, cols_, stride_}; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  Type type() const { return type_; }

  void set(int64_t i, int64_t j, Complex x) {
    std::byte* p = place(i, j);
    const float f = static_cast<float>(x.real());
    const uint16_t b = to_bf16(f);
    const double d = x.real();
    switch (type_) {
      case Type::f32: memcpy(p, &f, 4); break;
      case Type::bf16: memcpy(p, &b, 2); break;
      case Type::ref_double: memcpy(p, &d, 8); break;
      default: memcpy(p, &x, 16);
    }
  }
  Complex get(int64_t i, int64_t j) {
    std::byte* p = place(i, j);
    float f;
    uint16_t b;
    double d;
    Complex x;
    switch (type_) {
      case Type::f32: memcpy(&f, p, 4); return f;
      case Type::bf16: memcpy(&b, p, 2); return from_bf16(b);
      case Type::ref_double: memcpy(&d, p, 8); return d;
      default: memcpy(&x, p, 16); return x;
    }
  }
  double at(int64_t i, int64_t j) { return get(i, j).real(); }

  Matrix& random(Random& r, double scale = 1) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) set(i, j, scale * r.normal());
    return *this;
  }
  Matrix& fill(double x) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) set(i, j, x);
    return *this;
  }
  Matrix as(Type type) {  // the same values
    Matrix m(rows_, cols_, type, stride_ - cols_);
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) m.set(i, j, get(i, j));
    return m;
  }
  bool padding_intact() {
    for (int64_t i = -1; i <= rows_; ++i)
      for (int64_t j = i < 0 || i == rows_ ? 0 : cols_; j < stride_; ++j)
        for (int64_t b = 0; b < row_bytes(type_, 1); ++b)
          if (place(i, j)[b] != std::byte{0xff}) return false;
    return true;
  }

 private:
  std::byte* place(int64_t i, int64_t j) {
    return bytes_.data() + row_bytes(type_, stride_) * (i + 1) + row_bytes(type_, j);
  }
  int64_t rows_, cols_, stride_;
  Type type_;
  std::vector<std::byte> bytes_;
};

// |got - want| <= tolerance(i, j) everywhere (a NaN fails), and nothing was written beside the rows.
inline void expect_close(Matrix& got, Matrix& want, const std::function<double(int64_t, int64_t)>& tolerance,
                         const std::string& what) {
  ASSERT_EQ(got.rows(), want.rows()) << what;
  ASSERT_EQ(got.cols(), want.cols()) << what;
  for (int64_t i = 0; i < got.rows(); ++i)
    for (int64_t j = 0; j < got.cols(); ++j) {
      const double error = std::abs(got.at(i, j) - want.at(i, j)), limit = tolerance(i, j);
      ASSERT_TRUE(error <= limit) << what << " [" << i << "," << j << "]: got " << got.at(i, j) << ", want "
                                  << want.at(i, j) << ", tolerance " << limit;
    }
  EXPECT_TRUE(got.padding_intact()) << what << ": wrote beside its rows";
}

inline void expect_close(Matrix& got, Matrix& want, double tolerance, const std::string& what) {
  expect_close(
      got, want, [&](int64_t, int64_t) { return tolerance; }, what);
}

// A context over an op table, with an arena whose free part is NaN.
struct Bench {
  Threads threads;
  Arena arena;
  Ops ops;
  Context context;
  explicit Bench(const Ops& table, int thread_count = 2)
      : threads(thread_count), arena(size_t{1} << 30), ops(table), context{&ops, &threads, &arena} {
    arena.array<std::byte>(4 << 20, "test/poisoned");
    arena.release(0);
    arena.poison();
  }
  Bench(const Bench&) = delete;
  std::function<void()> poison = [this] { arena.poison(); };
};

// Gradient of f at m by complex step: Im f(x + ih) / h, exact to rounding.
inline Matrix complex_step(Matrix m, const std::function<Complex(Matrix&)>& f) {
  constexpr double h = 1e-40;
  Matrix x = m.as(Type::ref_complex), gradient(m.rows(), m.cols(), Type::ref_double);
  for (int64_t i = 0; i < m.rows(); ++i)
    for (int64_t j = 0; j < m.cols(); ++j) {
      const Complex was = x.get(i, j);
      x.set(i, j, was + Complex(0, h));
      gradient.set(i, j, f(x).imag() / h);
      x.set(i, j, was);
    }
  return gradient;
}

// The same for large m: `count` single entries and two random directions v (gradient . v).
inline void expect_gradient_sampled(Matrix& m, Matrix& gradient, int64_t count, Random& r,
                                    const std::function<Complex(Matrix&)>& f, const std::string& what) {
  constexpr double h = 1e-40;
  double size = 0;
  for (int64_t i = 0; i < m.rows(); ++i)
    for (int64_t j = 0; j < m.cols(); ++j) size = std::fmax(size, std::abs(gradient.at(i, j)));
  EXPECT_TRUE(size > 0) << what << ": the gradient is zero, so the test proves nothing";
  for (int64_t k = 0; k < count + 2; ++k) {
    Matrix x = m.as(Type::ref_complex);
    const int64_t row = r.below(m.rows()), col = r.below(m.cols());
    double want = 0, reach = 0;
    for (int64_t i = 0; i < m.rows(); ++i)
      for (int64_t j = 0; j < m.cols(); ++j) {
        const double v = k >= count ? r.normal() : i == row && j == col ? 1 : 0;
        x.set(i, j, x.get(i, j) + Complex(0, h * v));
        want += v * gradient.at(i, j);
        reach += std::abs(v);
      }
    const double got = f(x).imag() / h;
    EXPECT_TRUE(std::abs(got - want) <= 1e-12 * size * reach)
        << what << ": by complex step " << got << ", by backward " << want;
  }
}

inline double largest(Matrix& m) {
  double top = 0;
  for (int64_t i = 0; i < m.rows(); ++i)
    for (int64_t j = 0; j < m.cols(); ++j) top = std::fmax(top, std::abs(m.at(i, j)));
  return top;
}

// Complex step and backward agree to 1e-12 of the largest entry.
inline void expect_gradient(Matrix got, Matrix by_complex_step, const std::string& what) {
  const double size = largest(by_complex_step);
  EXPECT_TRUE(size > 0) << what << ": the gradient is zero, so the test proves nothing";
  expect_close(got, by_complex_step, 1e-12 * size, what);
}

}  // namespace quest
