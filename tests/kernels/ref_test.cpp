// Every backward of ref.h is proved by complex step: d/dx sum(dy * op(x)) equals op_backward(dy).
#include "tests/check.h"

namespace quest {
namespace {

constexpr Type D = Type::ref_double, C = Type::ref_complex;

// sum of y * weights, the scalar whose gradient is taken
Complex project(Matrix& y, Matrix& weights) {
  Complex sum = 0;
  for (int64_t i = 0; i < y.rows(); ++i)
    for (int64_t j = 0; j < y.cols(); ++j) sum += y.get(i, j) * weights.at(i, j);
  return sum;
}

using Op = std::function<void(Matrix& x, Matrix& y)>;  // complex forward

// The gradient of project(op(x), dy) at x.
Matrix step(Matrix& x, Matrix& dy, const Op& op) {
  return complex_step(x, [&](Matrix& z) {
    Matrix y(dy.rows(), dy.cols(), C);
    op(z, y);
    return project(y, dy);
  });
}

TEST(Ref, Rows) {
  Random r(1);
  const int32_t rows[] = {2, 0, 2, 1};
  Matrix x = Matrix(3, 5, D).random(r), dy = Matrix(4, 5, D).random(r), dg = Matrix(3, 5, D).fill(0);
  ref::Over<double>::gather_backward(dy.view(), rows, dg.view());
  expect_gradient(
      dg, step(x, dy, [&](Matrix& a, Matrix& y) { ref::Over<Complex>::gather(a.view(), rows, y.view()); }),
      "gather");
}

TEST(Ref, RmsNorm) {
  Random r(2);
  Matrix w = Matrix(1, 7, Type::f32).random(r), x = Matrix(4, 7, D).random(r), dy = Matrix(4, 7, D).random(r);
  Matrix dx = Matrix(4, 7, D).fill(0);
  const auto op = [&](Matrix& a, Matrix& y) {
    ref::Over<Complex>::rmsnorm(a.view(), w.view(), 1e-2, y.view());
  };
  ref::Over<double>::rmsnorm_backward(dy.view(), x.view(), w.view(), 1e-2, dx.view());
  expect_gradient(dx, step(x, dy, op), "rmsnorm");
  Matrix twice = dx;
  ref::Over<double>::rmsnorm_backward(dy.view(), x.view(), w.view(), 1e-2, twice.view());
  for (int64_t j = 0; j < 7; ++j)
    EXPECT_DOUBLE_EQ(twice.at(1, j), 2 * dx.at(1, j)) << "dx is added to, not set";
}

TEST(Ref, Matmul) {
  Random r(3);
  Matrix w = Matrix(5, 7, Type::f32, 0).random(r), x = Matrix(3, 7, D).random(r),
         dy = Matrix(3, 5, D).random(r);
  Matrix dx(3, 7, D);
  ref::Over<double>::matmul_backward(dy.view(), w.view(), dx.view(), Into::set);
  expect_gradient(dx,
                  step(x, dy,
                       [&](Matrix& a, Matrix& y) {
                         ref::Over<Complex>::matmul(a.view(), w.view(), y.view(), Into::set);
                       }),
                  "matmul");
}

TEST(Ref, Rope) {
  Random r(4);
  Matrix turns(6, 4, Type::f32), x = Matrix(3, 8, D).random(r), dy = Matrix(3, 8, D).random(r), dx(3, 8, D);
  for (int64_t p = 0; p < 6; ++p)
    for (int64_t j = 0; j < 4; j += 2) {
      turns.set(p, j, std::cos(0.3 * static_cast<double>(p + j)));
      turns.set(p, j + 1, std::sin(0.3 * static_cast<double>(p + j)));
    }
  const int32_t positions[] = {5, 0, 2};
  for (const bool halves : {false, true}) {
    const Turns t{turns.view(), halves};
    ref::Over<double>::rope_backward(dy.view(), positions, t, dx.view());
    expect_gradient(
        dx,
        step(x, dy, [&](Matrix& a, Matrix& y) { ref::Over<Complex>::rope(a.view(), positions, t, y.view()); }),
        "rope");
    // By hand: pair 1 of head 1 of row 0, at elements 6 and 7 or 5 and 7.
    Matrix y(3, 8, D);
    ref::Over<double>::rope(x.view(), positions, t, y.view());
    const int64_t a = halves ? 5 : 6;
    EXPECT_EQ(y.at(0, a), x.at(0, a) * turns.at(5, 2) - x.at(0, 7) * turns.at(5, 3));
    EXPECT_EQ(y.at(0, 7), x.at(0, a) * turns.at(5, 3) + x.at(0, 7) * turns.at(5, 2));
  }
}

// Two groups over one shared context of 2 rows, GQA 4 heads over 2, the second group with its last row as
// query only.
struct AttentionCase {
  static constexpr Heads heads{4, 2, 3};
  static constexpr int64_t width = 12, layer = 1;
  Random r{5};
  Matrix context = Matrix(4, width, D, 0).random(r);  // 2 layers of 2 rows
  Matrix q = Matrix(4, 12, D).random(r), kv = Matrix(5, width, D).random(r),
         dout = Matrix(4, 12, D).random(r);

  static std::vector<Group> groups(Matrix& shared) {
    const KeyValues k{static_cast<std::byte*>(shared.view().data), 2 * row_bytes(shared.type(), width), 2};
    return {{k, 0, 3, 0, 3}, {k, 3, 2, 3, 1}};
  }
  Matrix gradient(int which) {  // 0: of q, 1: of kv, 2: of the context
    Matrix* inputs[3] = {&q, &kv, &context};
    return complex_step(*inputs[which], [&](Matrix& z) {
      Matrix in[3] = {q.as(C), kv.as(C), context.as(C)};
      in[which] = z;
      Matrix out(4, 12, C);
      const auto g = groups(in[2]);
      ref::Over<Complex>::attention(heads, layer, g.data(), 2, in[0].view(), in[1].view(), out.view());
      return project(out, dout);
    });
  }
};

TEST(Ref, Attention) {
  AttentionCase a;
  Matrix dq(4, 12, D), dkv(5, 12, D), dcontext = Matrix(2, 12, D).fill(0);
  const auto g = AttentionCase::groups(a.context);
  ref::Over<double>::attention_backward(a.heads, a.layer, g.data(), 2, a.dout.view(), a.q.view(), a.kv.view(),
                                        dq.view(), dkv.view(), dcontext.view());
  expect_gradient(dq, a.gradient(0), "attention dq");
  expect_gradient(dkv, a.gradient(1), "attention dkv");
  Matrix all = a.gradient(2), of_layer(2, 12, D);  // layer 0 gets none
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 12; ++j) {
      EXPECT_EQ(all.at(i, j), 0);
      of_layer.set(i, j, all.at(i + 2, j));
    }
  expect_gradient(dcontext, of_layer, "attention dcontext");
}

// Scores of 3,000, whose exponential is no number: queries 0 and 1 see the first key alone, query 2 two alike.
TEST(Ref, AttentionOfLargeScores) {
  Matrix q = Matrix(3, 2, D).fill(1000 * std::sqrt(2.0)), kv = Matrix(3, 4, D).fill(0), out(3, 2, D);
  kv.set(0, 0, 3), kv.set(2, 0, 3);  // keys (3,0) (0,0) (3,0), values (1,2) (3,4) (5,6)
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 2; ++j) kv.set(i, 2 + j, static_cast<double>(1 + 2 * i + j));
  const Group group{{}, 0, 3, 0, 3};
  ref::Over<double>::attention({1, 1, 2}, 0, &group, 1, q.view(), kv.view(), out.view());
  for (int64_t j = 0; j < 2; ++j) {
    EXPECT_EQ(out.at(0, j), 1 + static_cast<double>(j));
    EXPECT_EQ(out.at(1, j), 1 + static_cast<double>(j));
    EXPECT_EQ(out.at(2, j), 3 + static_cast<double>(j));
  }
}

TEST(Ref, SwiGlu) {
  Random r(6);
  Matrix gate = Matrix(3, 5, D).random(r), up = Matrix(3, 5, D).random(r), dy = Matrix(3, 5, D).random(r);
  Matrix dgate(3, 5, D), dup(3, 5, D), gate_c = gate.as(C), up_c = up.as(C);
  ref::Over<double>::swiglu_backward(dy.view(), gate.view(), up.view(), dgate.view(), dup.view());
  expect_gradient(
      dgate,
      step(gate, dy,
           [&](Matrix& g, Matrix& y) { ref::Over<Complex>::swiglu(g.view(), up_c.view(), y.view()); }),
      "swiglu gate");
  expect_gradient(
      dup,
      step(up, dy,
           [&](Matrix& u, Matrix& y) { ref::Over<Complex>::swiglu(gate_c.view(), u.view(), y.view()); }),
      "swiglu up");
}

TEST(Ref, PoolAndNormalize) {
  Random r(7);
  const Group groups[] = {{{}, 0, 3, 0, 3}, {{}, 3, 4, 3, 1}, {{}, 7, 2, 4, 2}};
  Matrix h = Matrix(6, 5, D).random(r), de = Matrix(3, 5, D).random(r), dh(6, 5, D);
  ref::Over<double>::pool_backward(groups, 3, de.view(), dh.view());
  expect_gradient(
      dh, step(h, de, [&](Matrix& a, Matrix& e) { ref::Over<Complex>::pool(groups, 3, a.view(), e.view()); }),
      "pool");
  Matrix e = Matrix(3, 5, D).random(r), du = Matrix(3, 5, D).random(r), mean = Matrix(1, 5, D).random(r);
  Matrix mean_c = mean.as(C), de2(3, 5, D);
  for (const bool centred : {false, true}) {
    ref::Over<double>::normalize_backward(du.view(), e.view(), centred ? mean.view() : View{}, de2.view());
    expect_gradient(de2,
                    step(e, du,
                         [&](Matrix& a, Matrix& u) {
                           ref::Over<Complex>::normalize(a.view(), centred ? mean_c.view() : View{},
                                                         u.view());
                         }),
                    "normalize");
  }
}

TEST(Ref, Loss) {
  Random r(8);
  Matrix q = Matrix(3, 5, D).random(r), l = Matrix(4, 5, D).random(r), ds = Matrix(3, 4, D).random(r);
  Matrix dq(3, 5, D), dl(4, 5, D), q_c = q.as(C), l_c = l.as(C);
  ref::Over<double>::similarity_backward(ds.view(), q.view(), l.view(), 0.3, dq.view(), dl.view());
  expect_gradient(dq,
                  step(q, ds,
                       [&](Matrix& a, Matrix& s) {
                         ref::Over<Complex>::similarity(a.view(), l_c.view(), 0.3, s.view());
                       }),
                  "similarity q");
  expect_gradient(dl,
                  step(l, ds,
                       [&](Matrix& a, Matrix& s) {
                         ref::Over<Complex>::similarity(q_c.view(), a.view(), 0.3, s.view());
                       }),
                  "similarity l");
  const Pair pairs[] = {{0, 1}, {2, 3}, {0, 2}, {1, 1}};
  std::vector<uint8_t> hidden(16), hidden_queries(12);
  hidden[0 * 4 + 2] = hidden[2 * 4 + 1] = hidden[1 * 4 + 0] =
      1;  // the other positive of query 0, a duplicate
  hidden_queries[0 * 3 + 1] = hidden_queries[3 * 3 + 0] = 1;
  Matrix s = Matrix(3, 4, D).random(r, 3), one = Matrix(1, 1, D).fill(1);
  for (const uint8_t* sym :
       {static_cast<const uint8_t*>(nullptr), static_cast<const uint8_t*>(hidden_queries.data())}) {
    Matrix got(3, 4, D);
    ref::Over<double>::contrastive_backward(s.view(), pairs, 4, hidden.data(), sym, got.view());
    expect_gradient(got,
                    step(s, one,
                         [&](Matrix& a, Matrix& loss) {
                           ref::Over<Complex>::contrastive(a.view(), pairs, 4, hidden.data(), sym,
                                                           loss.view());
                         }),
                    "contrastive");
  }
}

// One step of AdamW by hand: g = 3 clipped from |g| = 5 to 1, so 0.6; m = 0.1 * 0.6 + 0.9 * 1, and so on.
TEST(Ref, AdamW) {
  Matrix p = Matrix(1, 2, D).fill(2), g(1, 2, D), m = Matrix(1, 2, D).fill(1), v = Matrix(1, 2, D).fill(0.5);
  g.set(0, 0, 3), g.set(0, 1, -4);
  Matrix length(1, 1, D);
  ref::Over<double>::norm(g.view(), length.view());
  EXPECT_DOUBLE_EQ(length.at(0, 0), 5);
  ref::Over<double>::adamw(p.view(), g.view(), m.view(), v.view(), length.view(), 1.0,
                           {0.01, 0.9, 0.99, 1e-3, 0.1, 2});
  EXPECT_NEAR(m.at(0, 0), 0.96, 1e-15);
  EXPECT_NEAR(v.at(0, 0), 0.99 * 0.5 + 0.01 * 0.36, 1e-15);
  const double step = 0.96 / (1 - 0.81) / (std::sqrt(0.4986 / (1 - 0.9801)) + 1e-3);
  EXPECT_NEAR(p.at(0, 0), 2 - 0.01 * (step + 0.1 * 2), 1e-15);
  EXPECT_NEAR(m.at(0, 1), 0.9 - 0.08, 1e-15);
  ref::Over<double>::adamw(p.view(), g.view(), m.view(), v.view(), length.view(), 0,
                           {0.01, 0.9, 0.99, 1e-3, 0, 3});
  EXPECT_NEAR(m.at(0, 0), 0.9 * 0.96 + 0.1 * 3, 1e-15) << "clip 0 does not clip";
}

}  // namespace
}  // namespace quest
