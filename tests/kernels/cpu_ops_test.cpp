// The CPU backend's ops (ops_tests.h), and the pieces of tile_math.h that they are made of. dot() over n terms has
// n/16 sums in a row, four pairwise ones and the products: (n/16 + 6) eps32 sum|a b|.
#include "kernels/base/error.h"
#include "kernels/matmul.h"
#include "tests/check.h"

namespace quest {
namespace {

struct Backends {
  Bench one, two, seven, reference;
  explicit Backends(Type activation)
      : one(cpu_ops(nullptr, activation), 1),
        two(cpu_ops(nullptr, activation), 2),
        seven(cpu_ops(nullptr, activation), 7),
        reference(ref::ref_ops<double>(), 1) {}
  Type activation() const { return one.ops.activation; }
  static double in_a_row(double n) { return n / 16 + 6; }  // roundings of a dot product of n terms
};

}  // namespace
}  // namespace quest

#define SUITE CpuOps
#include "tests/kernels/ops_tests.h"

namespace quest {
namespace {

// ---- the pieces of tile_math.h

TEST(CpuOps, Exp) {
  const auto expect_exp = [](float x) {
    const double want = std::exp(static_cast<double>(x));
    EXPECT_TRUE(std::abs(exp_f32(x) - want) <= 2e-7 * want) << x;
  };
  Random r(1);
  for (int k = 0; k < 100000; ++k) {
    expect_exp(static_cast<float>(-87 + 175 * r.uniform()));
    expect_exp(static_cast<float>(r.normal()));
  }
  for (int n = -125; n <= 126; ++n)  // both sides of the boundaries between two powers of 2
    for (int k = -2; k <= 2; ++k) {
      const float edge = static_cast<float>((n + 0.5) * std::log(2.0));
      const float x = edge + static_cast<float>(k) * std::abs(edge) * 0x1p-23f;
      if (x >= -87 && x <= 88) expect_exp(x);
    }
  for (const float x : {-87.0f, 88.0f, 1e-30f, -1e-30f, 1e-42f}) expect_exp(x);
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-0.0f), 1.0f);
  for (const float x : {-87.5f, -1e4f, -INFINITY}) EXPECT_EQ(exp_f32(x), exp_f32(-87.0f));
  for (const float x : {88.5f, 1e4f, INFINITY}) EXPECT_EQ(exp_f32(x), exp_f32(88.0f));
  EXPECT_TRUE(std::isnan(exp_f32(NAN)));
  EXPECT_TRUE(std::isnan(exp_f32(-NAN)));
}

TEST(CpuOps, DotAndAxpy) {
  Random r(2);
  for (int64_t n = 0; n <= 100; ++n) {
    std::vector<float> a(100), b(100), y(100);
    for (auto* v : {&a, &b, &y})
      for (float& x : *v) x = static_cast<float>(r.normal());
    double want = 0, size = 0;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      want += static_cast<double>(a[i]) * b[i];
      size += std::abs(static_cast<double>(a[i]) * b[i]);
    }
    EXPECT_TRUE(std::abs(dot(a.data(), b.data(), n) - want) <=
                (static_cast<double>(n) / 16 + 6) * eps32 * size)
        << n;
    std::vector<float> z = y;
    axpy(a[0], b.data(), z.data(), n);
    for (size_t i = 0; i < 100; ++i)
      EXPECT_EQ(z[i], i < static_cast<size_t>(n) ? y[i] + a[0] * b[i] : y[i]);  // two roundings, no fma
  }
}

TEST(CpuOps, Table) {
  for (const KernelPath& path : kernel_paths())
    for (const Type type : {Type::f32, Type::bf16}) {
      const Ops ops = cpu_ops(path.name, type);
      EXPECT_STREQ(ops.path, path.name);
      EXPECT_EQ(ops.kernel_path, &path);
      EXPECT_EQ(ops.activation, type);
      EXPECT_EQ(ops.accumulator, Type::f32);
    }
  EXPECT_STREQ(cpu_ops(nullptr, Type::f32).path, kernel_paths()[0].name);
  try {
    cpu_ops("no-such-path", Type::f32);
    ADD_FAILURE() << "an unknown path was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("no-such-path"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(kernel_paths()[0].name), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace quest
