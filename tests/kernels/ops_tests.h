// Every op of a backend but the matmuls against ref.h in double, on the same inputs. The file that includes this
// says which backend: SUITE names the tests; Backends has three benches that must give the same bits, and how
// many roundings in a row its sums have.
// Tolerances are bounds of the rounding errors, to first order: each rounding adds eps32 of its result.
#pragma once
namespace quest {
namespace {

constexpr int64_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 64};
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();
constexpr double tiny = 1e-36;  // absolute: where exp_f32 stops at e^-87

// Of one store: half a unit in the last of bf16's 8 bits; fp32 results are rounded already.
double store_error(Type type) { return type == Type::bf16 ? 0x1.01p-8 : 0; }

template <class F>
double sum(int64_t n, F&& f) {
  double s = 0;
  for (int64_t j = 0; j < n; ++j) s += f(j);
  return s;
}

bool same_row(Matrix& a, int64_t i, Matrix& b, int64_t k) {
  return !memcmp(row_pointer(a.view(), i), row_pointer(b.view(), k),
                 static_cast<size_t>(row_bytes(a.type(), a.cols())));
}
bool same_bits(Matrix& a, Matrix& b) {
  for (int64_t i = 0; i < a.rows(); ++i)
    if (!same_row(a, i, b, i)) return false;
  return a.rows() == b.rows();
}
bool has_nan(Matrix& m, int64_t row) {
  for (int64_t j = 0; j < m.cols(); ++j)
    if (std::isnan(m.at(row, j))) return true;
  return false;
}

// What stands beside the rows of a matrix: NaN in check.h; here numbers meanwhile, since an op that goes one
// entry too far would write a NaN that it has read, which looks untouched.
constexpr std::byte nan_byte{0xff}, number_byte{0x3f};

bool change_padding(Matrix& m, std::byte from, std::byte to) {
  bool intact = true;
  const View v = m.view();
  for (int64_t i = -1; i <= m.rows(); ++i) {
    auto* row = static_cast<std::byte*>(row_pointer(v, i));
    for (int64_t at = i < 0 || i == m.rows() ? 0 : row_bytes(v.type, v.cols);
         at < row_bytes(v.type, v.stride); ++at) {
      intact = intact && row[at] == from;
      row[at] = to;
    }
  }
  return intact;
}
void number_padding(Matrix& m) { EXPECT_TRUE(change_padding(m, nan_byte, number_byte)); }
void expect_padding(Matrix& m, const std::string& what) {
  EXPECT_TRUE(change_padding(m, number_byte, nan_byte)) << what << " wrote beside its rows";
}

// An argument that is the same for all rows, in the type of either table.
struct Constant {
  Matrix single, reference;
  explicit Constant(const Matrix& m) : single(m), reference(single.as(Type::ref_double)) {
    number_padding(single);
  }
  View of(const Context& c) {
    return c.ops->accumulator == Type::ref_double ? reference.view() : single.view();
  }
};

using Matrices = std::vector<Matrix>;

// An op whose output rows depend on the same row of the inputs only.
struct RowOp {
  std::string name;
  Matrices in, out;  // out: what stands there before the call, NaN for "=", numbers for "+="
  // v: views of in, then of out, from row `first` of the batch on
  std::function<void(const Context&, const std::vector<View>& v, int64_t first)> call;
  // x: in and the reference's out, in double; k: which output
  std::function<double(Matrices& x, size_t k, int64_t i, int64_t j)> tolerance;
};

std::vector<View> views(Matrices& in, Matrices& out, int64_t first, int64_t count) {
  std::vector<View> v;
  for (Matrices* list : {&in, &out})
    for (Matrix& m : *list) v.push_back(rows_of(m.view(), first, count));
  return v;
}

Matrices run(const RowOp& op, Bench& bench) {
  Matrices in = op.in, out = op.out;
  for (Matrices* list : {&in, &out})
    for (Matrix& m : *list) number_padding(m);
  op.call(bench.context, views(in, out, 0, out[0].rows()), 0);
  for (Matrix& m : out) expect_padding(m, op.name);
  EXPECT_EQ(bench.context.arena->used(), 0u);
  return out;
}

void expect_nan_stays_in_its_row(const RowOp& op, Bench& bench, Matrices& got) {
  for (size_t k = 0; k < op.in.size(); ++k) {
    RowOp broken = op;
    const int64_t row = op.in[k].rows() / 2;
    broken.in[k].set(row, op.in[k].cols() / 2, nan_value);
    Matrices out = run(broken, bench);
    bool seen = false;
    for (size_t o = 0; o < out.size(); ++o) {
      seen = seen || has_nan(out[o], row);
      for (int64_t i = 0; i < out[o].rows(); ++i) {
        EXPECT_TRUE(i == row || same_row(out[o], i, got[o], i)) << op.name << ": a NaN spread to row " << i;
      }
    }
    EXPECT_TRUE(seen) << op.name << ": a NaN in input " << k << " got lost";
  }
}

void check(const RowOp& op, Backends& b) {
  RowOp exact = op;
  for (Matrix& m : exact.in) m = m.as(Type::ref_double);
  for (Matrix& m : exact.out) m = m.as(Type::ref_double);
  Matrices want = run(exact, b.reference), got = run(op, b.two), x = exact.in;
  x.insert(x.end(), want.begin(), want.end());
  for (size_t k = 0; k < got.size(); ++k)
    expect_close(
        got[k], want[k], [&](int64_t i, int64_t j) { return op.tolerance(x, k, i, j); },
        op.name + " output " + std::to_string(k));

  Matrices single = run(op, b.one), many = run(op, b.seven), in = op.in, alone = op.out;
  for (int64_t i = 0; i < alone[0].rows(); ++i) op.call(b.one.context, views(in, alone, i, 1), i);
  for (size_t k = 0; k < got.size(); ++k) {
    EXPECT_TRUE(same_bits(got[k], single[k])) << op.name << ": 1 and 2 threads differ";
    EXPECT_TRUE(same_bits(got[k], many[k])) << op.name << ": 7 and 2 threads differ";
    EXPECT_TRUE(same_bits(got[k], alone[k])) << op.name << ": a row alone differs";
  }
  expect_nan_stays_in_its_row(op, b.one, got);
}

// Calls f(rows, width, backends) over sizes and both activation types; width * multiple columns.
void each_size(const std::function<void(int64_t rows, int64_t width, Backends&)>& f) {
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    for (const int64_t width : sizes)
      for (const int64_t rows : {1, 3, 17}) f(rows, width, b);
    for (const int64_t rows : sizes) f(rows, 5, b);
  }
}

Matrix f32(int64_t rows, int64_t cols) { return Matrix(rows, cols, Type::f32); }

// ---- 1  rows

std::vector<int32_t> random_rows(Random& r, int64_t n, int64_t of) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(r.below(of)));
  return ids;
}

// Copies of rows are exact.
TEST(SUITE, RowsForward) {
  Random r(3);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    const auto ids = random_rows(r, rows, 7);
    const auto exact = [](Matrices&, size_t, int64_t, int64_t) { return 0.0; };
    for (const Type type : {Type::f32, Type::bf16}) {
      Matrix table = Matrix(7, width, type).random(r);
      check({"embed",
             {},
             {f32(rows, width)},
             [&](const Context& c, const auto& v, int64_t first) {
               c.ops->embed(c, table.view(), ids.data() + first, v[0]);
             },
             exact},
            b);
    }
    Constant x(f32(7, width).random(r));
    check({"gather",
           {},
           {f32(rows, width)},
           [&](const Context& c, const auto& v, int64_t first) {
             c.ops->gather(c, x.of(c), ids.data() + first, v[0]);
           },
           exact},
          b);
    check({"zero",
           {},
           {f32(rows, width)},
           [](const Context& c, const auto& v, int64_t) { c.ops->zero(c, v[0]); },
           exact},
          b);
    check({"add",
           {f32(rows, width).random(r)},
           {f32(rows, width).random(r)},
           [](const Context& c, const auto& v, int64_t) { c.ops->add(c, v[0], v[1]); },
           [](Matrices& m, size_t, int64_t i, int64_t j) { return eps32 * std::abs(m[1].at(i, j)); }},
          b);
  });
}

// A packed row: scale times code is exact in fp32, so Q8_0 is exact and Q4_1 is rounded once, by its sum.
TEST(SUITE, EmbedPacked) {
  Random r(4);
  const auto ids = random_rows(r, 17, 7);
  for (const Type type : {Type::q4_1, Type::q8_0})
    for (const int64_t width : {32, 64, 160}) {
      const int64_t block = row_bytes(type, 32);
      std::vector<unsigned char> bytes(static_cast<size_t>(row_bytes(type, width) * 7));
      for (size_t i = 0; i < bytes.size(); ++i) {
        const auto in_block = static_cast<int64_t>(i) % block;
        const bool exponent = in_block == 1 || (type == Type::q4_1 && in_block == 3);
        bytes[i] = static_cast<unsigned char>(exponent ? 0x2c + r.below(4) + 128 * r.below(2) : r.below(256));
      }
      const View table{bytes.data(), type, 7, width, width};
      Backends b(Type::bf16);
      check({"embed packed",
             {},
             {f32(17, width)},
             [&](const Context& c, const auto& v, int64_t first) {
               c.ops->embed(c, table, ids.data() + first, v[0]);
             },
             [&](Matrices& m, size_t, int64_t i, int64_t j) {
               return type == Type::q8_0 ? 0 : eps32 * std::abs(m[0].at(i, j));
             }},
            b);
    }
}

// Sums of rows go in the stated order, which fixes their bits.
TEST(SUITE, RowsBackward) {
  Random r(5);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Matrix dy = f32(3 * rows, width).random(r), start = f32(rows, width).random(r);
    auto ids = random_rows(r, 3 * rows, rows);
    Matrix gathered = start;
    for (int64_t i = 0; i < 3 * rows; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const auto to = ids[static_cast<size_t>(i)];
        gathered.set(to, j, static_cast<float>(gathered.at(to, j) + dy.at(i, j)));
      }
    for (Bench* bench : {&b.one, &b.two, &b.seven}) {
      Matrix dx = start;
      number_padding(dx);
      bench->ops.gather_backward(bench->context, dy.view(), ids.data(), dx.view());
      expect_padding(dx, "gather_backward");
      expect_close(dx, gathered, 0, "gather_backward");
    }
  });
}

// ---- 2  RMSNorm

// The square sum has so many roundings, the mean 3 more; halved by the root, whose own rounding, the inverse and
// two products follow: half of them and 6 eps32 of y.
TEST(SUITE, RmsNorm) {
  Random r(6);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Matrix w = f32(1, width).random(r);
    const double n = static_cast<double>(width), eps = 0.013;
    for (const Type type : {Type::f32, b.activation()})
      check({"rmsnorm",
             {f32(rows, width).random(r)},
             {Matrix(rows, width, type)},
             [&](const Context& c, const auto& v, int64_t) { c.ops->rmsnorm(c, v[0], w.view(), eps, v[1]); },
             [&](Matrices& x, size_t, int64_t i, int64_t j) {
               return ((n / 32 + 9) * eps32 + store_error(type)) * std::abs(x[1].at(i, j));
             }},
            b);
    // Each term of dx carries the error of r once or three times, the sum that of its products.
    check({"rmsnorm_backward",
           {f32(rows, width).random(r), f32(rows, width).random(r)},
           {f32(rows, width).random(r)},
           [&](const Context& c, const auto& v, int64_t) {
             c.ops->rmsnorm_backward(c, v[0], v[1], w.view(), eps, v[2]);
           },
           [&](Matrices& x, size_t, int64_t i, int64_t j) {
             const double mean = sum(width, [&](int64_t k) { return x[1].at(i, k) * x[1].at(i, k); }) / n;
             const double inverse = 1 / std::sqrt(mean + eps);
             const double total =
                 sum(width, [&](int64_t k) { return std::abs(x[0].at(i, k) * w.at(0, k) * x[1].at(i, k)); });
             const double own = inverse * std::abs(w.at(0, j) * x[0].at(i, j));
             const double along = inverse * inverse * inverse / n * total * std::abs(x[1].at(i, j));
             return eps32 * ((n / 32 + 11) * own + (5 * n / 32 + 46) * along + std::abs(x[2].at(i, j)));
           }},
          b);
  });
}

// ---- 4  rotary positions

TEST(SUITE, Rope) {
  Random r(7);
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    for (const int64_t size : {2, 16, 18, 64})
      for (const int64_t heads : {1, 3})
        for (const int64_t rows : sizes)
         for (const bool halves : {false, true}) {
          const int64_t width = heads * size;
          Matrix turns = f32(9, size).random(r);  // any numbers: an angle that is none shows every index
          const Turns t{turns.view(), halves};
          const auto at = random_rows(r, rows, 9);
          const auto tolerance = [&](Matrices& y, int64_t i, int64_t j, double direction, Type stored) {
            const auto p = at[static_cast<size_t>(i)];
            const int64_t half = size / 2, place = j % size;
            const int64_t even = halves ? place % half * 2 : place / 2 * 2;
            const int64_t partner = !halves ? j ^ 1 : place < half ? j + half : j - half;
            // |a cos| + |b sin|, each rounded, then their sum
            const double cosine = std::abs(turns.at(p, even)),
                         sine = std::abs(direction * turns.at(p, even + 1));
            const double self = std::abs(y[0].at(i, j)), other = std::abs(y[0].at(i, partner));
            return eps32 * 2 * (self * cosine + other * sine) + store_error(stored) * std::abs(y[1].at(i, j));
          };
          check({"rope",
                 {f32(rows, width).random(r)},
                 {Matrix(rows, width, type)},
                 [&](const Context& c, const auto& v, int64_t first) {
                   c.ops->rope(c, v[0], at.data() + first, t, v[1]);
                 },
                 [&](Matrices& x, size_t, int64_t i, int64_t j) { return tolerance(x, i, j, 1, type); }},
                b);
          const RowOp backward{
              "rope_backward",
              {f32(rows, width).random(r)},
              {f32(rows, width)},
              [&](const Context& c, const auto& v, int64_t first) {
                c.ops->rope_backward(c, v[0], at.data() + first, t, v[1]);
              },
              [&](Matrices& x, size_t, int64_t i, int64_t j) { return tolerance(x, i, j, -1, Type::f32); }};
          check(backward, b);
          Matrix apart = run(backward, b.one)[0], in_place = backward.in[0];  // as the graph calls it
          b.two.ops.rope_backward(b.two.context, in_place.view(), at.data(), t, in_place.view());
          EXPECT_TRUE(same_bits(in_place, apart)) << "rope_backward in place";
        }
  }
}

// ---- 6  SwiGLU

// sigma has 5.4 eps32: 3.4 of exp_f32, the sum and the quotient.
TEST(SUITE, SwiGlu) {
  Random r(8);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Matrix gate = Matrix(rows, width, b.activation()).random(r, 3), up = gate;
    up.random(r);
    int64_t at = 0;
    for (const double x : {0.0, -0.0, 100.0, -100.0, 1e30, -1e30, -80.0, 30.0}) {
      if (at < rows * width) gate.set(at / width, at % width, x);
      at += 2;
    }
    check({"swiglu",
           {gate, up},
           {Matrix(rows, width, b.activation())},
           [](const Context& c, const auto& v, int64_t) { c.ops->swiglu(c, v[0], v[1], v[2]); },
           [&](Matrices& x, size_t, int64_t i, int64_t j) {
             return (8 * eps32 + store_error(b.activation())) * std::abs(x[2].at(i, j)) +
                    tiny * std::abs(x[0].at(i, j) * x[1].at(i, j));
           }},
          b);
    check({"swiglu_backward",
           {f32(rows, width).random(r), gate, up},
           {f32(rows, width), f32(rows, width)},
           [](const Context& c, const auto& v, int64_t) {
             c.ops->swiglu_backward(c, v[0], v[1], v[2], v[3], v[4]);
           },
           [](Matrices& x, size_t k, int64_t i, int64_t j) {
             const double d = std::abs(x[0].at(i, j)), g = x[1].at(i, j), u = std::abs(x[2].at(i, j));
             const double sigma = 1 / (1 + std::exp(-g)) + tiny / eps32;
             return k ? 9 * eps32 * d * std::abs(g) * sigma
                      : eps32 * d * u * sigma * (6 + 18 * (1 + std::abs(g)));
           }},
          b);
  });
}

// ---- 7  pooling and normalisation

TEST(SUITE, Pool) {
  Random r(9);
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    for (const int64_t width : sizes) {
      std::vector<Group> groups;  // own rows do not matter here, only query rows
      int32_t row = 0, query = 0;
      for (const int32_t queries : {1, 3, 33, 2, 1, 7}) {
        groups.push_back({{}, row, queries + 2, query, queries});
        row += queries + 2, query += queries;
      }
      const auto n = static_cast<int64_t>(groups.size());
      Matrix h = f32(query, width).random(r), e = f32(n, width), de = f32(n, width).random(r),
             dh = f32(query, width);
      const Type d = Type::ref_double;
      Matrix h_d = h.as(d), e_d(n, width, d), de_d = de.as(d), dh_d(query, width, d);
      const Context& c = b.reference.context;
      c.ops->pool(c, groups.data(), n, h_d.view(), e_d.view());
      c.ops->pool_backward(c, groups.data(), n, de_d.view(), dh_d.view());
      b.two.ops.pool(b.two.context, groups.data(), n, h.view(), e.view());
      b.two.ops.pool_backward(b.two.context, groups.data(), n, de.view(), dh.view());
      expect_close(
          e, e_d,
          [&](int64_t g, int64_t j) {
            const Group& of = groups[static_cast<size_t>(g)];
            const double size = sum(of.queries, [&](int64_t i) { return std::abs(h.at(of.query + i, j)); });
            return eps32 * (size + std::abs(e_d.at(g, j)));  // n - 1 sums of at most `size`, over n
          },
          "pool");
      expect_close(
          dh, dh_d, [&](int64_t i, int64_t j) { return eps32 * std::abs(dh_d.at(i, j)); }, "pool_backward");
      for (Bench* bench : {&b.one, &b.seven}) {
        Matrix e2 = f32(n, width), dh2 = f32(query, width), alone = f32(n, width);
        bench->ops.pool(bench->context, groups.data(), n, h.view(), e2.view());
        bench->ops.pool_backward(bench->context, groups.data(), n, de.view(), dh2.view());
        EXPECT_TRUE(same_bits(e, e2));
        EXPECT_TRUE(same_bits(dh, dh2));
        for (int64_t g = 0; g < n; ++g)
          bench->ops.pool(bench->context, &groups[static_cast<size_t>(g)], 1, h.view(),
                          rows_of(alone.view(), g, 1));
        EXPECT_TRUE(same_bits(e, alone));
      }
      h.set(groups[2].query + 5, width - 1, nan_value);
      Matrix broken = f32(n, width);
      b.two.ops.pool(b.two.context, groups.data(), n, h.view(), broken.view());
      for (int64_t g = 0; g < n; ++g)
        EXPECT_TRUE(g == 2 ? std::isnan(broken.at(g, width - 1)) : same_row(broken, g, e, g)) << g;
    }
  }
}

// The length has (n/16 + 6) eps32 of its square sum and 2 of the centring, halved by the root.
TEST(SUITE, Normalize) {
  Random r(10);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Constant mean(f32(1, width).random(r));
    const double n = static_cast<double>(width);
    for (const bool centred : {false, true}) {
      const auto mean_of = [&, centred](const Context& c) { return centred ? mean.of(c) : View{}; };
      const auto distance = [&, centred](Matrices& x, size_t m, int64_t i, int64_t j) {
        return x[m].at(i, j) - (centred ? mean.reference.at(0, j) : 0);
      };
      check({"normalize",
             {f32(rows, width).random(r)},
             {f32(rows, width)},
             [&](const Context& c, const auto& v, int64_t) { c.ops->normalize(c, v[0], mean_of(c), v[1]); },
             [&](Matrices& x, size_t, int64_t i, int64_t j) {
               return (n / 32 + 8) * eps32 * std::abs(x[1].at(i, j));
             }},
            b);
      check({"normalize_backward",
             {f32(rows, width).random(r), f32(rows, width).random(r)},
             {f32(rows, width)},
             [&](const Context& c, const auto& v, int64_t) {
               c.ops->normalize_backward(c, v[0], v[1], mean_of(c), v[2]);
             },
             [&](Matrices& x, size_t, int64_t i, int64_t j) {
               const double square = sum(width, [&](int64_t k) { return std::pow(distance(x, 1, i, k), 2); });
               const double along =
                   sum(width, [&](int64_t k) { return std::abs(distance(x, 1, i, k) * x[0].at(i, k)); });
               return (5 * n / 32 + 32) * eps32 *
                      (std::abs(x[0].at(i, j)) + std::abs(distance(x, 1, i, j)) * along / square) /
                      std::sqrt(square);
             }},
            b);
    }
  });
}

// ---- 8  contrastive loss

TEST(SUITE, Similarity) {
  Random r(11);
  const double t = 0.07;
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    const int64_t labels = rows % 5 + 1;
    const double n = static_cast<double>(width);
    Constant l(f32(labels, width).random(r));
    const auto reach = [&](Matrix& q, int64_t i, int64_t j) {
      return sum(width, [&](int64_t k) { return std::abs(q.at(i, k) * l.single.at(j, k)); }) / t;
    };
    check(
        {"similarity",
         {f32(rows, width).random(r)},
         {f32(rows, labels)},
         [&](const Context& c, const auto& v, int64_t) { c.ops->similarity(c, v[0], l.of(c), t, v[1]); },
         [&](Matrices& x, size_t, int64_t i, int64_t j) { 
           return (Backends::in_a_row(n) + 2) * eps32 * reach(x[0], i, j);
         }},
        b);
    // dq row by row; dl below, as the dq of the transposed problem
    Matrix q = f32(rows, width).random(r);
    const RowOp backward{"similarity_backward",
                         {f32(rows, labels).random(r), q},
                         {f32(rows, width)},
                         [&](const Context& c, const auto& v, int64_t) {
                           Matrix dl(labels, width, c.ops->accumulator);
                           c.ops->similarity_backward(c, v[0], v[1], l.of(c), t, v[2], dl.view());
                         },
                         [&](Matrices& x, size_t, int64_t i, int64_t k) {
                           return (static_cast<double>(labels) + 4) * eps32 / t * sum(labels, [&](int64_t j) {
                                    return std::abs(x[0].at(i, j) * l.single.at(j, k));
                                  });
                         }};
    RowOp without_q = backward;  // whose NaN does not reach dq
    without_q.in.pop_back();
    without_q.call = [&](const Context& c, const auto& v, int64_t first) {
      Matrix q_c = q.as(c.ops->accumulator);
      backward.call(c, {v[0], rows_of(q_c.view(), first, v[0].rows), v[1]}, first);
    };
    check(without_q, b);
    Matrix ds = backward.in[0], ds_t = f32(labels, rows);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < labels; ++j) ds_t.set(j, i, ds.at(i, j));
    Matrix dq = f32(rows, width), dl = f32(labels, width), dq_t = dq, dl_t = dl;
    const Context& c = b.two.context;
    c.ops->similarity_backward(c, ds.view(), q.view(), l.single.view(), t, dq.view(), dl.view());
    c.ops->similarity_backward(c, ds_t.view(), l.single.view(), q.view(), t, dl_t.view(), dq_t.view());
    EXPECT_TRUE(same_bits(dq, dq_t) && same_bits(dl, dl_t)) << "queries and labels are treated alike";
    EXPECT_TRUE(dl.padding_intact());
  });
}

struct Loss {
  int64_t queries, labels;
  Matrix s;
  std::vector<Pair> pairs;
  std::vector<uint8_t> hidden, hidden_queries;

  Loss(Random& r, int64_t U, int64_t L, int64_t B) : queries(U), labels(L), s(f32(U, L).random(r, 5)) {
    for (int64_t i = 0; i < B; ++i) {
      pairs.push_back({static_cast<int32_t>(r.below(U)), static_cast<int32_t>(r.below(L))});
      for (int64_t j = 0; j < L; ++j) hidden.push_back(j != pairs.back().label && r.below(4) == 0);
      for (int64_t j = 0; j < U; ++j) hidden_queries.push_back(j != pairs.back().query && r.below(4) == 0);
    }
  }
  const uint8_t* columns(bool symmetric) const { return symmetric ? hidden_queries.data() : nullptr; }
  double value(Bench& b, bool symmetric) {
    Matrix loss(1, 1, b.ops.accumulator), in = s.as(b.ops.accumulator);
    b.ops.contrastive(b.context, in.view(), pairs.data(), static_cast<int64_t>(pairs.size()), hidden.data(),
                      columns(symmetric), loss.view());
    EXPECT_TRUE(loss.padding_intact());
    return loss.at(0, 0);
  }
  Matrix gradient(Bench& b, bool symmetric) {
    Matrix in = s.as(b.ops.accumulator), ds(queries, labels, b.ops.accumulator, 4);  // strides differ
    b.ops.contrastive_backward(b.context, in.view(), pairs.data(), static_cast<int64_t>(pairs.size()),
                               hidden.data(), columns(symmetric), ds.view());
    return ds;
  }
};

// Inside, all is double: the loss is rounded once; ds once for each term that meets an entry, and their sum.
TEST(SUITE, Contrastive) {
  Random r(12);
  Backends b(Type::f32);
  for (const int64_t U : {1, 3, 17})
    for (const int64_t L : {1, 2, 33})
      for (const int64_t B : {1, 3, 15})
        for (const bool symmetric : {false, true}) {
          Loss k(r, U, L, B);
          const double want = k.value(b.reference, symmetric), got = k.value(b.two, symmetric);
          EXPECT_TRUE(std::abs(got - want) <= eps32 * std::abs(want) + 1e-14) << got << " for " << want;
          Matrix ds = k.gradient(b.two, symmetric), exact = k.gradient(b.reference, symmetric);
          std::vector<double> meets(static_cast<size_t>(U * L)), size(meets);
          for (int64_t p = 0; p < B; ++p) {  // what each pair adds, with its sign
            Loss one = k;
            one.pairs = {k.pairs[static_cast<size_t>(p)]};
            one.hidden.assign(k.hidden.begin() + p * L, k.hidden.begin() + (p + 1) * L);
            one.hidden_queries.assign(k.hidden_queries.begin() + p * U,
                                      k.hidden_queries.begin() + (p + 1) * U);
            Matrix row = one.gradient(b.reference, false), both = one.gradient(b.reference, true);
            for (int64_t i = 0; i < U; ++i)
              for (int64_t j = 0; j < L; ++j) {
                const double by_row = row.at(i, j), by_column = 2 * both.at(i, j) - by_row;
                const auto at = static_cast<size_t>(i * L + j);
                for (const double x : {by_row, symmetric ? by_column : 0.0}) {
                  meets[at] += std::abs(x) > 1e-15;
                  size[at] += std::abs(x) * (symmetric ? 0.5 : 1) / static_cast<double>(B);
                }
              }
          }
          expect_close(
              ds, exact,
              [&](int64_t i, int64_t j) {
                const auto at = static_cast<size_t>(i * L + j);
                return std::fmax(meets[at], 1) * eps32 * size[at] + 1e-14;
              },
              "contrastive_backward");
          for (Bench* bench : {&b.one, &b.seven}) {
            Matrix again = k.gradient(*bench, symmetric);
            EXPECT_TRUE(same_bits(ds, again));
            EXPECT_EQ(k.value(*bench, symmetric), got);
          }
        }
}

TEST(SUITE, ContrastiveByHand) {
  Backends backends(Type::f32);
  Bench& b = backends.two;
  Random r(13);
  Loss k(r, 2, 3, 1);
  const double values[] = {1, 2, 0.5, -1, 0, 3};
  for (int64_t i = 0; i < 6; ++i) k.s.set(i / 3, i % 3, values[i]);
  k.pairs = {{0, 1}};
  k.hidden = {0, 0, 1}, k.hidden_queries = {0, 0};
  const double row = std::log(std::exp(1) + std::exp(2)) - 2, column = std::log(std::exp(2) + 1) - 2;
  EXPECT_NEAR(k.value(b, false), row, eps32);
  EXPECT_NEAR(k.value(b, true), (row + column) / 2, eps32);

  k.s.set(0, 2, nan_value);  // hidden: nobody looks
  EXPECT_NEAR(k.value(b, false), row, eps32);
  Matrix ds = k.gradient(b, false);
  for (int64_t i = 0; i < 6; ++i) EXPECT_FALSE(std::isnan(ds.at(i / 3, i % 3)));
  EXPECT_EQ(ds.at(0, 2), 0) << "hidden entries get no gradient";

  k.s.set(0, 0, nan_value);  // in the denominator, before and behind the largest
  EXPECT_TRUE(std::isnan(k.value(b, false)));
  ds = k.gradient(b, false);
  EXPECT_TRUE(std::isnan(ds.at(0, 0)) && std::isnan(ds.at(0, 1)));
  for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(ds.at(1, j), 0);
  k.hidden = {0, 0, 0};
  k.s.set(0, 0, 1);
  EXPECT_TRUE(std::isnan(k.value(b, false)));

  k.s.fill(1000);  // no overflow
  EXPECT_NEAR(k.value(b, false), std::log(3.0), eps32 * 2);
  k.s.fill(-1000);
  EXPECT_NEAR(k.value(b, true), (std::log(3.0) + std::log(2.0)) / 2, eps32 * 2);
}

// ---- 9  optimiser

TEST(SUITE, Norm) {
  Random r(14);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Matrix g = f32(rows, width).random(r), g_d = g.as(Type::ref_double), got = f32(1, 1),
           want(1, 1, Type::ref_double);
    b.two.ops.norm(b.two.context, g.view(), got.view());
    b.reference.ops.norm(b.reference.context, g_d.view(), want.view());
    expect_close(got, want, eps32 * want.at(0, 0) * (1 + 1e-6), "norm");  // rounded once
    for (Bench* bench : {&b.one, &b.seven}) {
      Matrix other = f32(1, 1);
      bench->ops.norm(bench->context, g.view(), other.view());
      EXPECT_TRUE(same_bits(got, other));
    }
    g.set(rows - 1, width / 2, nan_value);
    b.two.ops.norm(b.two.context, g.view(), got.view());
    EXPECT_TRUE(std::isnan(got.at(0, 0)));
  });
}

// m, v and p are rounded once each; inside, all is double. p starts small, so that the step shows.
TEST(SUITE, AdamW) {
  Random r(15);
  each_size([&](int64_t rows, int64_t width, Backends& b) {
    Matrix v = f32(rows, width).random(r, 0.1);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j) v.set(i, j, std::abs(v.at(i, j)));
    for (const double clip : {0.0, 0.7, 1e6}) {
      Constant length(f32(1, 1).fill(3.3));
      for (const AdamW o : {AdamW{0.9, 0.9, 0.95, 1e-3, 0.1, 1}, AdamW{1.3, 0.8, 0.99, 0.3, 0, 7}})
        check({"adamw",
               {f32(rows, width).random(r)},
               {f32(rows, width).random(r, 0.1), f32(rows, width).random(r), v},
               [&](const Context& c, const auto& x, int64_t) {
                 c.ops->adamw(c, x[1], x[0], x[2], x[3], length.of(c), clip, o);
               },
               [](Matrices& x, size_t k, int64_t i, int64_t j) {
                 return eps32 * (1 + 1e-6) * std::abs(x[1 + k].at(i, j)) + 1e-14;
               }},
              b);
    }
  });
}

// ---- 5  attention

struct GroupSize {
  int64_t context, rows, queries;
};

struct AttentionCase {
  static constexpr int64_t layers = 3;
  Heads heads;
  int64_t width;  // of a row of keys and values
  Type type;
  bool shared;  // one context for all groups, as a prefix is
  std::vector<GroupSize> sizes;
  int64_t Q = 0, R = 0;
  Matrices contexts;  // of each group (of all): layers * (rows + 1), the row between two layers is NaN
  Matrix q, kv, dout, dcontext;
  static constexpr int64_t stride_rows(const GroupSize& g) { return g.context + 1; }

  AttentionCase(Random& r, Heads h, Type t, bool one_context, std::vector<GroupSize> groups)
      : heads(h),
        width(2 * h.kv_heads * h.size),
        type(t),
        shared(one_context),
        sizes(std::move(groups)),
        q(0, 0, t),
        kv(0, 0, t),
        dout(0, 0, t),
        dcontext(0, 0, t) {
    for (const GroupSize& g : sizes) {
      Q += g.queries, R += g.rows;
      Matrix context = Matrix(layers * (g.context + 1), width, type, 0).random(r);
      for (int64_t l = 0; l < layers; ++l)
        for (int64_t j = 0; j < width; ++j) context.set(l * (g.context + 1) + g.context, j, nan_value);
      contexts.push_back(context);
    }
    const double small = 1 / std::sqrt(static_cast<double>(h.size));
    q = Matrix(Q, h.heads * h.size, type).random(r);
    kv = Matrix(R, width, type).random(r);
    dout = f32(Q, h.heads * h.size).random(r, small);
    dcontext = f32(sizes[0].context, width).random(r);
  }
  AttentionCase as_double() const {
    AttentionCase d = *this;
    for (Matrix& m : d.contexts) m = m.as(Type::ref_double);
    for (Matrix* m : {&d.q, &d.kv, &d.dout, &d.dcontext}) *m = m->as(Type::ref_double);
    d.type = Type::ref_double;
    return d;
  }
  std::vector<Group> groups() {
    std::vector<Group> list;
    int32_t row = 0, query = 0;
    for (size_t g = 0; g < sizes.size(); ++g) {
      Matrix& context = contexts[shared ? 0 : g];
      const GroupSize& s = sizes[g];
      const KeyValues k{static_cast<std::byte*>(context.view().data), stride_rows(s) * row_bytes(type, width),
                        s.context};
      list.push_back({s.context ? k : KeyValues{}, row, static_cast<int32_t>(s.rows), query,
                      static_cast<int32_t>(s.queries)});
      row += list.back().rows, query += list.back().queries;
    }
    return list;
  }
  Type acc() const { return type == Type::ref_double ? type : Type::f32; }

  Matrix forward(Bench& b, int64_t layer, int64_t group = -1) {
    Matrix out(Q, heads.heads * heads.size, type);
    const auto list = groups();
    b.poison();
    number_padding(out);
    for (size_t g = 0; g < list.size(); ++g)
      if (group == static_cast<int64_t>(g))
        b.ops.attention(b.context, heads, layer, &list[g], 1, q.view(), kv.view(), out.view());
    if (group < 0)
      b.ops.attention(b.context, heads, layer, list.data(), static_cast<int64_t>(list.size()), q.view(),
                      kv.view(), out.view());
    expect_padding(out, "attention");
    EXPECT_EQ(b.context.arena->used(), 0u);
    return out;
  }
  struct Gradients {
    Matrix dq, dkv, dcontext;
  };
  // first, count: of the groups; start: what stands in dcontext
  Gradients backward(Bench& b, int64_t layer, int64_t first, int64_t count, Matrix& start) {
    Gradients d{Matrix(Q, q.cols(), acc()), Matrix(R, width, acc()), start};
    const auto list = groups();
    b.poison();
    for (Matrix* m : {&d.dq, &d.dkv, &d.dcontext}) number_padding(*m);
    b.ops.attention_backward(b.context, heads, layer, list.data() + first, count, dout.view(), q.view(),
                             kv.view(), d.dq.view(), d.dkv.view(), shared ? d.dcontext.view() : View{});
    for (Matrix* m : {&d.dq, &d.dkv, &d.dcontext}) expect_padding(*m, "attention_backward");
    EXPECT_EQ(b.context.arena->used(), 0u);
    return d;
  }
  Gradients backward(Bench& b, int64_t layer) {
    return backward(b, layer, 0, static_cast<int64_t>(sizes.size()), dcontext);
  }
};

// Largest length of one head's part of a row.
double head_length(Matrix& m, int64_t size) {
  double top = 0;
  for (int64_t i = 0; i < m.rows(); ++i)
    for (int64_t j = 0; j < m.cols(); j += size) {
      const double square = sum(size, [&](int64_t e) { return std::pow(m.at(i, j + e), 2); });
      top = std::isnan(square) ? top : std::fmax(top, square);
    }
  return std::sqrt(top);
}

// Bounds by lengths (|a . b| <= |a| |b|), with |q|, |k|, |v|, |dout| the largest of a head. A score is at
// most S = |q| |k| / sqrt(D) and has (in_a_row(D) + 2) eps32 S; a weight p has twice that, its exponent's rounding
// (at most 2 S eps32, twice), 2 * 3.4 of exp_f32 and the sum of n: relative error `weight`.
struct Bounds {
  double weight, out, dq, dk, dv;
  Bounds(AttentionCase& a) {
    const double D = static_cast<double>(a.heads.size), scale = 1 / std::sqrt(D);
    double n = 1, terms = 0, k = head_length(a.kv, a.heads.size);
    for (Matrix& c : a.contexts) k = std::fmax(k, head_length(c, a.heads.size));
    for (const GroupSize& g : a.sizes) {
      n = std::fmax(n, static_cast<double>(g.context + g.rows));
      const auto pairs = static_cast<double>(g.queries * (a.heads.heads / a.heads.kv_heads));
      terms = a.shared ? terms + pairs : std::fmax(terms, pairs);  // that a key meets
    }
    const double q = head_length(a.q, a.heads.size), d = head_length(a.dout, a.heads.size), S = q * k * scale;
    weight = eps32 * (2 * (Backends::in_a_row(D) + 2) * S + 4 * S + 2 * n + 12);
    out = (weight + (n + 1) * eps32) * k;
    // dp = dout . v, at most P; ds = p (dp - sum p dp) / sqrt(D)
    const double P = d * k, ds = 4 * (weight + eps32 * (n + Backends::in_a_row(D) + 6)) * P * scale;
    dq = ds * k;
    dk = (ds + 2 * P * scale * terms * eps32) * terms * q;
    dv = (weight + (terms + 1) * eps32) * terms * d;
  }
};

void expect_gradients(AttentionCase& a, Backends& b, int64_t layer) {
  AttentionCase exact = a.as_double();
  const Bounds bound(exact);
  auto got = a.backward(b.two, layer), want = exact.backward(b.reference, layer);
  const auto of_kv = [&](int64_t, int64_t j) { return j < a.width / 2 ? bound.dk : bound.dv; };
  expect_close(got.dq, want.dq, bound.dq, "dq");
  expect_close(got.dkv, want.dkv, of_kv, "dkv");
  expect_close(
      got.dcontext, want.dcontext,
      [&](int64_t i, int64_t j) {  // no text's sum is above the bound's, and they are added up in fp32
        const auto n = static_cast<double>(a.sizes.size());
        return of_kv(i, j) + (n + 1) * eps32 * (std::abs(want.dcontext.at(i, j)) + 4);
      },
      "dcontext");
  for (Bench* bench : {&b.one, &b.seven}) {
    auto other = a.backward(*bench, layer);
    EXPECT_TRUE(same_bits(got.dq, other.dq) && same_bits(got.dkv, other.dkv) &&
                same_bits(got.dcontext, other.dcontext))
        << "threads";
  }
  // Each group alone: the same rows, and what it adds to the context, in order.
  Matrix total = a.dcontext, zero = f32(total.rows(), total.cols()).fill(0);
  const auto groups = a.groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    auto alone = a.backward(b.one, layer, static_cast<int64_t>(g), 1, zero);
    for (int64_t i = 0; i < groups[g].queries; ++i)
      EXPECT_TRUE(same_row(alone.dq, groups[g].query + i, got.dq, groups[g].query + i));
    for (int64_t i = 0; i < groups[g].rows; ++i)
      EXPECT_TRUE(same_row(alone.dkv, groups[g].row + i, got.dkv, groups[g].row + i));
    for (int64_t i = 0; i < total.rows(); ++i)
      for (int64_t j = 0; j < total.cols(); ++j)
        total.set(i, j, static_cast<float>(total.at(i, j) + (a.shared ? alone.dcontext.at(i, j) : 0)));
  }
  expect_close(got.dcontext, total, 0, "dcontext as the sum of its groups, in order");
}

void expect_attention(AttentionCase& a, Backends& b, int64_t layer) {
  AttentionCase exact = a.as_double();
  const Bounds bound(exact);
  Matrix got = a.forward(b.two, layer), want = exact.forward(b.reference, layer);
  expect_close(
      got, want,
      [&](int64_t i, int64_t j) { return bound.out + store_error(a.type) * std::abs(want.at(i, j)); },
      "attention");
  for (Bench* bench : {&b.one, &b.seven}) {
    Matrix other = a.forward(*bench, layer);
    EXPECT_TRUE(same_bits(got, other)) << "threads";
  }
  const auto groups = a.groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    Matrix alone = a.forward(b.one, layer, static_cast<int64_t>(g));
    for (int64_t i = 0; i < groups[g].queries; ++i)
      EXPECT_TRUE(same_row(alone, groups[g].query + i, got, groups[g].query + i)) << "group alone";
  }
}

TEST(SUITE, Attention) {
  Random r(16);
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    for (const int64_t size : {2, 16, 18, 64})
      for (const Heads h : {Heads{1, 1, size}, Heads{3, 1, size}, Heads{6, 2, size}})
        for (const int64_t context : {0, 1, 5}) {
          SCOPED_TRACE(std::to_string(h.heads) + " heads over " + std::to_string(h.kv_heads) + " of " +
                       std::to_string(size) + ", context " + std::to_string(context));
          AttentionCase one(r, h, type, true,
                            {{context, 1, 1}, {context, 7, 3}, {context, 17, 1}, {context, 4, 4}});
          expect_attention(one, b, context % 3);
          if (context) expect_gradients(one, b, context % 3);
          AttentionCase own(r, h, type, false,
                            {{2, 3, 3}, {context, 1, 1}, {0, 2, 1}, {1, 3, 0}, {context, 16, 2}});
          expect_attention(own, b, 2);
          expect_gradients(own, b, 2);
        }
  }
}

// Scores in the hundreds: only their differences may reach the exponential.
TEST(SUITE, AttentionOfLargeScores) {
  Random r(18);
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    AttentionCase a(r, {6, 2, 16}, type, true, {{5, 3, 3}, {5, 7, 2}});
    a.q.random(r, 80);
    expect_attention(a, b, 1);
    expect_gradients(a, b, 1);
  }
}

// A NaN reaches the queries that see it, and no others.
TEST(SUITE, AttentionNaN) {
  Random r(17);
  for (const Type type : {Type::f32, Type::bf16}) {
    Backends b(type);
    AttentionCase clean(r, {6, 2, 16}, type, false, {{2, 3, 3}, {1, 5, 4}, {0, 2, 2}});
    Matrix want = clean.forward(b.two, 1);
    auto gradients = clean.backward(b.two, 1);
    for (const bool value : {false, true}) {
      AttentionCase a = clean;
      a.kv.set(3 + 2, value ? 40 : 5, nan_value);  // third row of the second group: its second query on
      Matrix out = a.forward(b.two, 1);
      auto d = a.backward(b.two, 1);
      for (int64_t i = 0; i < a.Q; ++i) {
        const bool sees = i >= 3 + 1 && i < 3 + 4;
        EXPECT_TRUE(sees ? has_nan(out, i) : same_row(out, i, want, i)) << i;
        EXPECT_TRUE(sees ? has_nan(d.dq, i) : same_row(d.dq, i, gradients.dq, i)) << i;
      }
      for (int64_t i = 0; i < a.R; ++i)
        EXPECT_TRUE((i >= 3 && i < 8) || same_row(d.dkv, i, gradients.dkv, i)) << i;
    }
    AttentionCase a = clean;
    a.q.set(4, 1, nan_value);
    Matrix out = a.forward(b.two, 1);
    for (int64_t i = 0; i < a.Q; ++i) EXPECT_TRUE(i == 4 ? has_nan(out, i) : same_row(out, i, want, i)) << i;
    a = clean;
    a.dout.set(4, 1, nan_value);
    auto d = a.backward(b.two, 1);
    for (int64_t i = 0; i < a.Q; ++i)
      EXPECT_TRUE(i == 4 ? has_nan(d.dq, i) : same_row(d.dq, i, gradients.dq, i)) << i;
  }
}

}  // namespace
}  // namespace quest
