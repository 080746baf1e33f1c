#include "kernels/matmul.h"
#include "kernels/nf4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"
#include "tests/kernels/encode.h"
#include "tests/kernels/tile_emulated.h"

using namespace quest;

namespace {

const KernelPath emulated_path{.name = "emulated", .rows = 8, .columns = 48, .tile = nullptr,
                               .tile_pairs = tile_emulated, .tile_quads = nullptr, .peak = nullptr,
                               .peak_pairs = peak_emulated, .peak_quads = nullptr, .row = &rows_portable};

// Every path that this machine can product, and the bf16 one that any can.
std::vector<const KernelPath*> paths_for(Type activation) {
  std::vector<const KernelPath*> out;
  for (const KernelPath& p : kernel_paths()) out.push_back(&p);
  if (activation == Type::bf16) out.push_back(&emulated_path);
  return out;
}

// A plain matrix with gaps between its rows, guarded on all sides; elements are set and read as floats.
struct Matrix {
  static constexpr int64_t margin = 16;
  Type type;
  int64_t rows, cols, stride;
  std::vector<uint8_t> bytes;

  Matrix(Type t, int64_t r, int64_t c, int64_t gap)
      : type(t), rows(r), cols(c), stride(c + gap),
        bytes(static_cast<size_t>(row_bytes(t, r * (c + gap) + 2 * margin)), 0xff) {}  // 0xff..: NaN
  View view() { return {bytes.data() + row_bytes(type, margin), type, rows, cols, stride}; }
  uint8_t* at(int64_t r, int64_t c) { return bytes.data() + row_bytes(type, margin + r * stride + c); }
  float get(int64_t r, int64_t c) {
    float f;
    decode(type, at(r, c), 0, 1, &f);
    return f;
  }
  void set(int64_t r, int64_t c, float f) {
    const float block[block_size] = {f};  // of a plain type only the first is read
    const std::vector<uint8_t> e = encode(type, block, 1);
    memcpy(at(r, c), e.data(), e.size());
  }
  void fill(uint64_t seed) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        set(r, c, static_cast<float>(random_uniform(seed, 1, static_cast<uint64_t>(r * cols + c)) * 2 - 1));
  }
  bool guards_intact() {
    std::vector<uint8_t> copy = bytes;
    for (int64_t r = 0; r < rows; ++r)
      memset(copy.data() + (at(r, 0) - bytes.data()), 0xff, static_cast<size_t>(row_bytes(type, cols)));
    return copy == std::vector<uint8_t>(bytes.size(), 0xff);
  }
};

struct Weights {
  Type type;
  int64_t rows, cols;
  std::vector<uint8_t> bytes;
  Nf4Matrix quantized;
  Nf4 nf4{};
  std::vector<float> values;  // as decoded

  Weights(Type t, int64_t m, int64_t n, uint64_t seed) : type(t), rows(m), cols(n) {
    values.resize(static_cast<size_t>(m * n));
    uint64_t i = 0;
    for (float& v : values) v = static_cast<float>(random_uniform(seed, 2, i++) - 0.4);
    if (t == Type::nf4)
      quantized = quantize_nf4(values.data(), m * n);
    else
      bytes = encode(t, values.data(), m * n);
    if (!values.empty()) decode(t, view().data, 0, m * n, values.data());
  }
  View view() {
    nf4 = quantized.view();
    return {type == Type::nf4 ? static_cast<void*>(&nf4) : bytes.data(), type, rows, cols, cols};
  }
};

struct Multiply {
  const KernelPath* path;
  Type activation;
  bool forward;
  Threads* threads;
  Arena* arena;
  bool int8 = false;
  void operator()(View x, View w, View y, Into into) const {
    Ops ops{};
    ops.kernel_path = path;
    ops.activation = activation;
    ops.int8 = int8;
    arena->poison();
    const size_t used = arena->used();
    (forward ? matmul : matmul_backward)(Context{&ops, threads, arena}, x, w, y, into);
    EXPECT_EQ(arena->used(), used);
  }
};

float operand(Type activation, float f) { return activation == Type::bf16 ? round_bf16(f) : f; }
float weight(const Weights& w, bool forward, int64_t k, int64_t n) {
  return w.values[static_cast<size_t>(forward ? n * w.cols + k : k * w.cols + n)];
}

struct Shape { int64_t rows, outputs, inputs; };  // x [rows, inputs] . w [outputs, inputs]

bool fits(Shape s, Type type) {
  return type == Type::nf4 || s.inputs % format_of(type).elements == 0;
}

constexpr Shape shapes[] = {
    {1, 1, 32},   {2, 3, 64},   {3, 31, 96},    {7, 32, 288}, {12, 33, 576}, {13, 64, 32},
    {15, 96, 96}, {17, 192, 64}, {31, 97, 32},  {33, 96, 64}, {1, 192, 1536}, {2, 385, 96},
    {5, 50, 256},  {13, 97, 768},
    {3, 5, 1},    {8, 49, 7},   {9, 48, 33},    {7, 17, 385}, {24, 1, 767},  {5, 800, 31}};
constexpr Type weight_types[] = {Type::f32,  Type::f16,  Type::bf16, Type::q4_0, Type::q4_1, Type::q5_0,
                                 Type::q5_1, Type::q8_0, Type::q4_k, Type::q5_k, Type::q6_k, Type::nf4};

// The product in double from rounded operands: sums of products, and of their sizes.
struct Truth {
  std::vector<double> sum, size;

  Truth(Matrix& x, const Weights& w, Type activation, bool forward) {
    const int64_t outputs = forward ? w.rows : w.cols;
    for (int64_t r = 0; r < x.rows; ++r) {
      std::vector<double> row;
      for (int64_t k = 0; k < x.cols; ++k) row.push_back(operand(activation, x.get(r, k)));
      for (int64_t n = 0; n < outputs; ++n) {
        double total = 0, absolute = 0;
        for (int64_t k = 0; k < x.cols; ++k) {
          const double product = row[static_cast<size_t>(k)] * operand(activation, weight(w, forward, k, n));
          total += product;
          absolute += std::fabs(product);
        }
        sum.push_back(total);
        size.push_back(absolute);
      }
    }
  }
};

// The bound: inner + 1 roundings of a sum of `inner` products, then the output's own; 1 % for their products.
void compare(Matrix& y, Matrix& before, const Truth& truth, int64_t inner, Into into, const char* path) {
  for (int64_t r = 0; r < y.rows; ++r) {
    for (int64_t n = 0; n < y.cols; ++n) {
      const size_t i = static_cast<size_t>(r * y.cols + n);
      const double expected = truth.sum[i] + (into == Into::add ? before.get(r, n) : 0.0f);
      const double rounding = (y.type == Type::bf16 ? 0x1p-8 : 0) + (into == Into::add ? 0x1p-24 : 0);
      const double sums = static_cast<double>(inner + 2) * 0x1p-24 * truth.size[i];
      const double bound = 1.01 * (sums + rounding * std::fabs(expected));
      ASSERT_TRUE(std::fabs(static_cast<double>(y.get(r, n)) - expected) <= bound)
          << path << " row " << r << " output " << n << ": " << y.get(r, n) << " for " << expected << " +- "
          << bound;
    }
  }
}

void test_shape(Shape s, Type weight_type, Type activation, bool forward, Threads& threads, Arena& arena) {
  Weights w(weight_type, s.outputs, s.inputs, 5);
  const int64_t in = forward ? s.inputs : s.outputs, out = forward ? s.outputs : s.inputs;
  Matrix x(forward ? activation : Type::f32, s.rows, in, 3);
  x.fill(6);
  const Truth truth(x, w, activation, forward);
  for (const KernelPath* path : paths_for(activation)) {
    for (Into into : {Into::set, Into::add}) {
      // Both output types, each with half of the cases.
      const bool rounded = activation == Type::bf16 && forward && (into == Into::set) == (s.rows % 2 == 1);
      Matrix y(rounded ? Type::bf16 : Type::f32, s.rows, out, 5);
      if (into == Into::add) y.fill(7);
      Matrix before = y;
      Multiply{path, activation, forward, &threads, &arena}(x.view(), w.view(), y.view(), into);
      EXPECT_TRUE(y.guards_intact()) << path->name;
      SCOPED_TRACE(testing::Message()
                   << (forward ? "forward" : "backward") << ", x " << s.rows << " x " << in << ", w "
                   << w.rows << " x " << w.cols << " of type " << static_cast<int>(w.type));
      compare(y, before, truth, in, into, path->name);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Matmul, EqualsThePlainLoop) {
  Threads threads(2);
  Arena arena(size_t{1} << 28);
  for (Shape s : shapes)
    for (Type weight_type : weight_types)
      for (Type activation : {Type::bf16, Type::f32})
        for (bool forward : {true, false})
          if (fits(s, weight_type)) test_shape(s, weight_type, activation, forward, threads, arena);
}

// The order of the sum: panels of 192 inner indices, each summed from zero and added to those before; within a
// panel the inner index ascends, one rounding a step (portable: two; pairs: odd first).
float in_order(const KernelPath& path, Type activation, const std::vector<float>& x,
               const std::vector<float>& w) {
  float total = 0, sum = 0;
  const bool pairs = activation == Type::bf16 && path.tile_pairs;
  for (size_t k = 0; k < x.size(); k += pairs ? 2 : 1) {
    if (k % 192 == 0) total += std::exchange(sum, 0.0f);
    if (pairs) {
      if (k + 1 < x.size()) sum = std::fma(x[k + 1], w[k + 1], sum);
      sum = std::fma(x[k], w[k], sum);
    } else {
      sum = strcmp(path.name, "portable") ? std::fma(x[k], w[k], sum) : sum + x[k] * w[k];
    }
  }
  return total + sum;
}

TEST(Matmul, SumsInOrderToTheBit) {
  Threads threads(1);
  Arena arena(size_t{1} << 28);
  for (Type activation : {Type::bf16, Type::f32}) {
    for (bool forward : {true, false}) {
      Weights w(Type::f32, forward ? 99 : 801, forward ? 801 : 99, 8);
      Matrix x(Type::f32, 5, 801, 0);
      x.fill(9);
      for (const KernelPath* path : paths_for(activation)) {
        Matrix y(Type::f32, 5, 99, 1);
        Multiply{path, activation, forward, &threads, &arena}(x.view(), w.view(), y.view(), Into::set);
        for (int64_t r = 0; r < 5; ++r) {
          for (int64_t n = 0; n < 99; ++n) {
            std::vector<float> a, b;
            for (int64_t k = 0; k < 801; ++k) a.push_back(operand(activation, x.get(r, k)));
            for (int64_t k = 0; k < 801; ++k) b.push_back(operand(activation, weight(w, forward, k, n)));
            ASSERT_EQ(y.get(r, n), in_order(*path, activation, a, b)) << path->name << " " << r << " " << n;
          }
        }
      }
    }
  }
}

TEST(Matmul, BitsDoNotDependOnOtherRowsOrThreads) {
  Threads one(1), two(2), seven(7);
  Arena arena(size_t{1} << 28);
  for (Type activation : {Type::bf16, Type::f32}) {
    for (bool forward : {true, false}) {
      Weights w(Type::q4_1, 160, 416, 10);
      const int64_t in = forward ? w.cols : w.rows, out = forward ? w.rows : w.cols;
      Matrix x(forward ? activation : Type::f32, 1163, in, 0);  // more than a block of rows
      x.fill(11);
      for (const KernelPath* path : paths_for(activation)) {
        const int64_t rows = path == &emulated_path ? 133 : x.rows;
        const View some{x.view().data, x.type, rows, in, in};
        Matrix y(Type::f32, rows, out, 0), again(Type::f32, rows, out, 0), alone(Type::f32, 3, out, 0);
        Multiply{path, activation, forward, &one, &arena}(some, w.view(), y.view(), Into::set);
        for (Threads* threads : {&two, &seven}) {
          const Multiply product{path, activation, forward, threads, &arena};
          product(some, w.view(), again.view(), Into::set);
          EXPECT_EQ(again.bytes, y.bytes) << path->name << " " << threads->count();
          for (int64_t count : {1, 3}) {
            for (int64_t row : {int64_t{0}, int64_t{7}, int64_t{33}, rows - 3}) {
              product(rows_of(some, row, count), w.view(), rows_of(alone.view(), 0, count), Into::set);
              EXPECT_EQ(memcmp(alone.at(0, 0), y.at(row, 0), static_cast<size_t>(count * out) * 4), 0)
                  << path->name << " row " << row << " of " << count;
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, NaNStaysInItsRowAndColumnAndIsNeverLost) {
  Threads threads(2);
  Arena arena(size_t{1} << 28);
  for (Type activation : {Type::bf16, Type::f32}) {
    for (bool forward : {true, false}) {
      Weights clean(Type::f32, 51, 51, 12), bad = clean;
      const float nan = std::numeric_limits<float>::quiet_NaN();
      memcpy(bad.bytes.data() + (forward ? 50 * 51 + 3 : 3 * 51 + 50) * 4, &nan, 4);  // column 50 of B
      Matrix x(Type::f32, 11, 51, 2);
      x.fill(13);
      Matrix poisoned = x;
      poisoned.set(9, 50, nan);
      for (const KernelPath* path : paths_for(activation)) {
        for (Type type : {Type::f32, Type::bf16}) {
          const Multiply product{path, activation, forward, &threads, &arena};
          Matrix y(type, 11, 51, 1), row(type, 11, 51, 1), column(type, 11, 51, 1);
          product(x.view(), clean.view(), y.view(), Into::set);
          product(poisoned.view(), clean.view(), row.view(), Into::set);
          product(x.view(), bad.view(), column.view(), Into::set);
          for (int64_t r = 0; r < 11; ++r) {
            for (int64_t n = 0; n < 51; ++n) {
              EXPECT_FALSE(std::isnan(y.get(r, n)));
              if (r == 9) EXPECT_TRUE(std::isnan(row.get(r, n))) << path->name << n;
              else EXPECT_EQ(row.get(r, n), y.get(r, n)) << path->name;
              if (n == 50) EXPECT_TRUE(std::isnan(column.get(r, n))) << path->name << r;
              else EXPECT_EQ(column.get(r, n), y.get(r, n)) << path->name;
            }
          }
        }
      }
    }
  }
}

// A vector in 8 bits, one by one: of each 64 elements the largest is 127 steps.
struct Bytes {
  std::vector<int> byte;
  std::vector<float> scale;  // of each block

  explicit Bytes(const std::vector<float>& values) {
    for (size_t first = 0; first < values.size(); first += 64) {
      const auto begin = values.begin() + static_cast<int64_t>(first);
      const auto end = values.begin() + static_cast<int64_t>(std::min(first + 64, values.size()));
      float top = 0;
      for (auto v = begin; v != end; ++v) top = std::max(top, std::fabs(*v));
      scale.push_back(top / 127.0f);
      for (auto v = begin; v != end; ++v)
        byte.push_back(static_cast<int>(std::nearbyint(top > 0 ? *v * (1.0f / scale.back()) : 0.0f)));
    }
  }
};

TEST(Matmul, EightBitsAreTheirDefinitionToTheBit) {
  Threads threads(2);
  Arena arena(size_t{1} << 28);
  for (const Shape s : shapes)
    for (const Type type : {Type::q4_1, Type::bf16, Type::nf4})
      for (const Type activation : {Type::bf16, Type::f32}) {
        if (!fits(s, type)) continue;
        Weights w(type, s.outputs, s.inputs, 5);
        Matrix x(activation, s.rows, s.inputs, 3);
        x.fill(6);
        const int64_t empty = s.inputs > 64 ? 64 : 0;  // a block of x without any value
        for (int64_t k = 0; k < empty; ++k) x.set(0, k, 0);
        std::vector<Bytes> rows, columns;
        std::vector<std::vector<float>> values;
        for (int64_t r = 0; r < s.rows; ++r) {
          values.emplace_back();
          for (int64_t k = 0; k < s.inputs; ++k) values.back().push_back(x.get(r, k));
          rows.emplace_back(values.back());
        }
        for (int64_t n = 0; n < s.outputs; ++n)
          columns.emplace_back(std::vector<float>(w.values.begin() + n * s.inputs, w.values.begin() + (n + 1) * s.inputs));
        for (const KernelPath& path : kernel_paths()) {
          Matrix y(Type::f32, s.rows, s.outputs, 5), sum(Type::f32, s.rows, s.outputs, 2);
          sum.fill(9);
          Matrix before = sum;
          const Multiply product{&path, activation, true, &threads, &arena, true};
          product(x.view(), w.view(), y.view(), Into::set);
          product(x.view(), w.view(), sum.view(), Into::add);
          EXPECT_TRUE(y.guards_intact() && sum.guards_intact()) << path.name;
          for (int64_t r = 0; r < s.rows; ++r)
            for (int64_t n = 0; n < s.outputs; ++n) {
              const Bytes &a = rows[static_cast<size_t>(r)], &b = columns[static_cast<size_t>(n)];
              float expected = 0;
              double truth = 0, bound = 0;
              for (size_t k = 0; k < a.byte.size();) {
                const float sa = a.scale[k / 64], sb = b.scale[k / 64];
                int all = 0;
                do {
                  all += a.byte[k] * b.byte[k];
                  const double xk = values[static_cast<size_t>(r)][k], wk = weight(w, true, static_cast<int64_t>(k), n);
                  truth += xk * wk;  // each factor is half a step off at most, and rounded a few times
                  bound += 0.501 * (std::fabs(xk) * sb + std::fabs(wk) * sa) + 0.26 * sa * sb;
                } while (++k % 64 && k < a.byte.size());
                expected += static_cast<float>(all) * (sa * sb);
              }
              ASSERT_EQ(std::bit_cast<uint32_t>(y.get(r, n)), std::bit_cast<uint32_t>(expected))
                  << path.name << " " << s.rows << " x " << s.inputs << " row " << r << " output " << n;
              ASSERT_EQ(sum.get(r, n), before.get(r, n) + expected) << path.name;
              ASSERT_TRUE(std::fabs(expected - truth) <= bound) << expected << " for " << truth << " +- " << bound;
            }
        }
      }
}

TEST(Matmul, EightBitsHideNothingThatIsNotFinite) {
  Threads threads(1);
  Arena arena(size_t{1} << 28);
  for (const KernelPath& path : kernel_paths())
    for (const float bad : {NAN, INFINITY, -INFINITY})
      for (const bool in_x : {true, false}) {
        Weights w(Type::f32, 3, 100, 5);
        Matrix x(Type::f32, 2, 100, 3), y(Type::f32, 2, 3, 0);
        x.fill(6);
        if (in_x) x.set(1, 70, bad);
        else reinterpret_cast<float*>(w.bytes.data())[1 * 100 + 70] = bad;
        Multiply{&path, Type::f32, true, &threads, &arena, true}(x.view(), w.view(), y.view(), Into::set);
        for (int r = 0; r < 2; ++r)
          for (int n = 0; n < 3; ++n) EXPECT_EQ(std::isfinite(y.get(r, n)), in_x ? r != 1 : n != 1) << path.name;
      }
}

TEST(Matmul, EmptyProductsAreZeroOrNothing) {
  Threads threads(2);
  Arena arena(size_t{1} << 28);
  for (const KernelPath* path : paths_for(Type::bf16)) {
    const Multiply product{path, Type::bf16, true, &threads, &arena};
    Weights none(Type::f32, 3, 0, 1), w(Type::f32, 3, 4, 1);
    Matrix x(Type::bf16, 2, 0, 4), empty(Type::bf16, 0, 4, 0);
    Matrix y(Type::f32, 2, 3, 0), nothing(Type::f32, 0, 3, 0);
    y.fill(2);
    const Matrix before = y;
    product(x.view(), none.view(), y.view(), Into::add);
    EXPECT_EQ(y.bytes, before.bytes);
    product(x.view(), none.view(), y.view(), Into::set);
    EXPECT_EQ(y.get(1, 2), 0.0f);
    product(empty.view(), w.view(), nothing.view(), Into::set);
    EXPECT_TRUE(nothing.guards_intact());
  }
}

TEST(Matmul, PathsHaveNames) {
  EXPECT_EQ(find_path(nullptr), &kernel_paths().front());
  EXPECT_STREQ(kernel_paths().back().name, "portable");
  for (const KernelPath& p : kernel_paths()) EXPECT_EQ(find_path(p.name), &p);
  try {
    find_path("sse9");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("sse9"), std::string::npos);
  }
}

// What the ceiling is measured with: as many multiply-adds as a tile of so many steps has, none left out.
TEST(Matmul, ThePeakMultipliesAndAddsEveryStep) {
  alignas(64) static float x[64], w[64], sums[8 * 48 + 1];
  std::fill_n(x, 64, 2.0f), std::fill_n(w, 64, 3.0f);
  const auto expect = [&](const KernelPath& p, KernelPath::Tile peak, float sum) {
    std::fill_n(sums, 8 * 48 + 1, -1.0f);
    peak(x, w, sums, 1000);
    for (int i = 0; i < p.rows * p.columns; ++i) EXPECT_EQ(sums[i], sum) << p.name << " " << i;
    EXPECT_EQ(sums[p.rows * p.columns], -1.0f) << p.name;
  };
  for (const KernelPath& p : kernel_paths()) expect(p, p.peak, 6000);
  std::fill_n(x, 64, std::bit_cast<float>(0x40004000)), std::fill_n(w, 64, std::bit_cast<float>(0x40404040));
  for (const KernelPath* p : paths_for(Type::bf16))  // pairs of 2, of 3
    if (p->peak_pairs) expect(*p, p->peak_pairs, 12000);
  const auto fours = [](uint8_t byte) { return std::bit_cast<float>(0x01010101u * byte); };
  std::fill_n(x, 64, fours(0xfe)), std::fill_n(w, 64, fours(3));  // -2, 3
  for (const KernelPath& p : kernel_paths()) {
    if (!p.peak_quads) continue;
    std::fill_n(sums, 8 * 48 + 1, -1.0f);
    p.peak_quads(x, w, sums, 1000);
    for (int i = 0; i < 8 * 48; ++i) EXPECT_EQ(std::bit_cast<int>(sums[i]), -24000) << i;
    EXPECT_EQ(sums[8 * 48], -1.0f);
  }
}

TEST(Matmul, TheEmulationIsTheInstruction) {
  if (strcmp(kernel_paths()[0].name, "avx512bf16"))
    GTEST_SKIP() << "this processor has no AVX-512 BF16; its tile was proved by emulation in the other tests";
  constexpr int64_t steps = 64;
  alignas(64) static float x[8 * 192], w[steps * 48], sums[8 * 48], emulated[8 * 48];
  uint64_t i = 0;
  const auto word = [&i] {  // operands below 2 of any size, subnormal ones too
    return std::bit_cast<float>(static_cast<uint32_t>(random_bits(14, 0, i++)) & 0xbfffbfff);
  };
  for (float& f : x) f = word();
  for (float& f : w) f = word();
  kernel_paths()[0].tile_pairs(x, w, sums, steps);
  tile_emulated(x, w, emulated, steps);
  EXPECT_EQ(memcmp(sums, emulated, sizeof sums), 0);
}

}  // namespace
