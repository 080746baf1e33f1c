// The row kernels of every instruction set of this machine give the bits of the portable ones.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/base/random.h"
#include "kernels/matmul.h"
#include "kernels/nf4.h"
#include "tests/kernels/encode.h"

using namespace quest;

namespace {

std::vector<float> numbers(int64_t n, uint64_t seed) {  // in (-6, 6)
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(12 * random_uniform(seed, 1, i) - 6);
  return x;
}

using Floats = std::vector<float>;

// run: what a path's kernels make of some rows of n.
void expect_same(int64_t n, const char* what, const std::function<Floats(const RowKernels&)>& run) {
  const Floats want = run(rows_portable);
  for (const KernelPath& path : kernel_paths()) {
    const Floats got = run(*path.row);
    ASSERT_EQ(got.size(), want.size());
    EXPECT_EQ(memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << what << " " << n << " " << path.name;
  }
}

constexpr int64_t lengths[] = {1, 7, 15, 16, 17, 33, 64, 100, 576};

}  // namespace

TEST(Rows, DecodersGiveTheSameBits) {
  for (const Type type : stored_types)
    for (const int64_t blocks : {1, 3, 18}) {
      const int64_t n = blocks * std::max(block_size, format_of(type).elements);
      const std::vector<uint8_t> row = encode(type, numbers(n, 1).data(), n);
      expect_same(n, "decode", [&](const RowKernels& k) {
        Floats out(n);
        decode(type, row.data(), 0, n, out.data(), k);
        return out;
      });
    }
}

TEST(Rows, Nf4DecodesToTheSameBits) {
  for (const int64_t n : {1, 63, 130, 576}) {
    const Nf4Matrix m = quantize_nf4(numbers(n, 1).data(), n);
    const Nf4 view = m.view();
    expect_same(n, "decode", [&](const RowKernels& k) {
      Floats out(n);
      decode(Type::nf4, &view, 0, n, out.data(), k);
      return out;
    });
  }
}

TEST(Rows, StoresGiveTheSameBits) {
  for (const int64_t n : lengths)
    for (const bool add : {false, true}) {
      const Floats x = numbers(n, 2);
      expect_same(n, "store_f32", [&](const RowKernels& k) {
        Floats y = numbers(n, 3);
        k.store_f32(x.data(), n, add, y.data());
        return y;
      });
      expect_same(n, "store_bf16", [&](const RowKernels& k) {
        Floats y = numbers(n, 3);
        k.store_bf16(x.data(), n, add, y.data());
        return y;
      });
      expect_same(n, "round", [&](const RowKernels& k) {
        Floats y = x;
        k.round(y.data(), n);
        return y;
      });
    }
  const Floats block = numbers(48 * 64, 4);
  for (const int64_t rows : {16, 48})
    expect_same(rows, "transpose", [&](const RowKernels& k) {
      Floats to(rows * 64);
      k.transpose(block.data(), rows, to.data());
      for (int64_t i = 0; i < rows * 64; ++i) EXPECT_EQ(to[i % 64 * rows + i / 64], block[i]) << i;
      return to;
    });
}

TEST(Rows, ElementwiseOpsGiveTheSameBits) {
  for (const int64_t n : lengths) {
    const Floats a = numbers(n, 5), b = numbers(n, 6), c = numbers(n, 7);
    expect_same(n, "rmsnorm", [&](const RowKernels& k) {
      Floats y(n);
      k.rmsnorm(a.data(), b.data(), 1e-5f, n, y.data());
      return y;
    });
    expect_same(n, "rmsnorm_backward", [&](const RowKernels& k) {
      Floats dx = c;
      k.rmsnorm_backward(a.data(), b.data(), c.data(), 1e-5f, n, dx.data());
      return dx;
    });
    expect_same(n, "swiglu in place", [&](const RowKernels& k) {
      Floats y = a;
      k.swiglu(y.data(), b.data(), n, y.data());
      return y;
    });
    expect_same(n, "swiglu_backward", [&](const RowKernels& k) {
      Floats both(2 * n);
      k.swiglu_backward(a.data(), b.data(), c.data(), n, both.data(), both.data() + n);
      return both;
    });
  }
  for (const int64_t size : {2, 6, 64})
    for (const float direction : {1.0f, -1.0f})
      for (const bool halves : {false, true}) {
        const Floats x = numbers(3 * size, 8), turns = numbers(size, 9);
        expect_same(size, "turn", [&](const RowKernels& k) {
          Floats y(3 * size);
          k.turn(x.data(), turns.data(), halves, size, direction, 3 * size, y.data());
          return y;
        });
      }
}

TEST(Rows, DotsGiveTheSameBits) {
  for (const int64_t width : {1, 15, 16, 33, 576})
    for (const int64_t n : {1, 5}) {
      const Floats q = numbers(width, 20), x = numbers(n * width, 21);
      expect_same(width, "dots", [&](const RowKernels& k) {
        Floats out(n);
        k.dots(q.data(), x.data(), n, width, out.data());
        for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out[i], dot(q.data(), &x[i * width], width)) << i;
        return out;
      });
    }
}

TEST(Rows, AttentionGivesTheSameBits) {
  for (const int64_t D : {2, 16, 20, 64, 150})
    for (const int64_t count : {1, 5, 33}) {
      const int64_t stride = 2 * D + 3;
      const Floats q = numbers(D, 10), dout = numbers(D, 11), kv = numbers(count * stride, 12);
      expect_same(D, "attention", [&](const RowKernels& k) {
        Floats out(count + D);
        k.attention(q.data(), kv.data(), kv.data() + D, D, stride, count, 0.25f, out.data(), out.data() + count);
        return out;
      });
      for (const int64_t first : {int64_t{0}, count / 2, count})
        expect_same(D, "attention_backward", [&](const RowKernels& k) {
          Floats p(count), dp(count), out(D + count * stride);
          float *dq = out.data(), *dkv = dq + D;
          k.attention_backward(dout.data(), q.data(), kv.data(), kv.data() + D, D, stride, first, count, 0.25f,
                               p.data(), dp.data(), dq, dkv, dkv + D);
          for (int64_t i = 0; i < first * stride; ++i) EXPECT_EQ(dkv[i], 0.0f) << i;
          return out;
        });
    }
}
