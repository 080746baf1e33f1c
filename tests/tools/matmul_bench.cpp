// Speed of the packed matmuls beside the machine's own ceiling, measured in the same run, in turn with them.
//   matmul_bench [THREADS [ROUNDS [PATH]]]
// The ceiling is what a loop of nothing but fused multiply-adds on registers reaches (a bf16 dot counts as
// four operations a lane). Shapes: the linear layers of SmolLM2-135M, in Q4_1. The share is the median over
// rounds of speed / ceiling; "best" is the best round of each.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"
#include "kernels/matmul.h"
#include "kernels/tile_math.h"

using namespace quest;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Each runs `steps` times 12 independent operations and returns the floating-point operations done.
double ceiling_portable(int64_t steps) {
  __m128 sum[12] = {}, one = _mm_set1_ps(0.999f);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm_add_ps(_mm_mul_ps(one, one), sum[j]);
      asm volatile("" : "+x"(sum[j]), "+x"(one));
    }
  }
  return static_cast<double>(steps) * 12 * 4 * 2;
}

__attribute__((target("avx2,fma"))) double ceiling_avx2(int64_t steps) {
  __m256 sum[12] = {}, one = _mm256_set1_ps(0.999f);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm256_fmadd_ps(one, one, sum[j]);
      asm volatile("" : "+x"(sum[j]));
    }
  }
  return static_cast<double>(steps) * 12 * 8 * 2;
}

__attribute__((target("avx512f"))) double ceiling_avx512(int64_t steps) {
  __m512 sum[12] = {}, one = _mm512_set1_ps(0.999f);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm512_fmadd_ps(one, one, sum[j]);
      asm volatile("" : "+v"(sum[j]));
    }
  }
  return static_cast<double>(steps) * 12 * 16 * 2;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) double ceiling_avx512bf16(int64_t steps) {
  __m512 sum[12] = {};
  const __m512bh one = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      sum[j] = _mm512_dpbf16_ps(sum[j], one, one);
      asm volatile("" : "+v"(sum[j]));
    }
  }
  return static_cast<double>(steps) * 12 * 16 * 4;
}

double (*ceiling_of(const KernelPath& path, Type activation))(int64_t) {
  if (path.tile_pairs && activation == Type::bf16) return ceiling_avx512bf16;
  return path.columns == 48 ? ceiling_avx512 : path.columns == 16 ? ceiling_avx2 : ceiling_portable;
}

struct Shape { const char* name; int64_t outputs, inputs; };

struct Buffers {
  std::vector<uint8_t> weights;
  std::vector<float> x, y;
};

Buffers make_buffers(int64_t rows) {
  Buffers b;
  b.weights.resize(static_cast<size_t>(row_bytes(Type::q4_1, 576 * 1536)));
  for (size_t i = 0; i < b.weights.size(); ++i) b.weights[i] = static_cast<uint8_t>(random_bits(1, 0, i));
  for (size_t i = 0; i < b.weights.size(); i += sizeof(BlockQ4_1)) b.weights[i + 1] = b.weights[i + 3] = 0x2c;
  b.x.resize(static_cast<size_t>(rows * 1536));
  b.y.resize(b.x.size());
  for (size_t i = 0; i < b.x.size(); ++i) b.x[i] = static_cast<float>(random_uniform(2, 0, i)) - 0.5f;
  return b;
}

double gigaflops(double operations, double start) { return operations / (now() - start) * 1e-9; }

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

void measure(const Context& context, Shape shape, int64_t rows, bool forward, int rounds, Buffers& b) {
  const Type activation = context.ops->activation;
  const int64_t in = forward ? shape.inputs : shape.outputs, out = forward ? shape.outputs : shape.inputs;
  const Type x_type = forward ? activation : Type::f32;
  std::vector<uint16_t> narrow;
  for (float v : b.x) narrow.push_back(to_bf16(v));
  const View x{x_type == Type::bf16 ? static_cast<void*>(narrow.data()) : b.x.data(), x_type, rows, in, in};
  const View y{b.y.data(), forward ? activation : Type::f32, rows, out, out};
  const View w{b.weights.data(), Type::q4_1, shape.outputs, shape.inputs, shape.inputs};
  const double operations = 2.0 * static_cast<double>(rows * in * out);
  const auto ceiling = ceiling_of(*context.ops->kernel_path, activation);
  const int repeats = 1 + static_cast<int>(0.01 / (operations / 100e9));
  std::vector<double> speed, limit, share;
  for (int round = 0; round <= rounds; ++round) {
    std::vector<double> done(static_cast<size_t>(context.threads->count()));
    double start = now();
    context.threads->each(static_cast<int64_t>(done.size()), [&](int64_t i, int) {
      done[static_cast<size_t>(i)] = ceiling(300000);
    });
    double total = 0;
    for (double d : done) total += d;
    const double top = gigaflops(total, start);
    start = now();
    for (int i = 0; i < repeats; ++i)
      (forward ? matmul : matmul_backward)(context, x, w, y, Into::set);
    const double reached = gigaflops(operations * repeats, start);
    if (round == 0) continue;  // the first touches the memory
    speed.push_back(reached);
    limit.push_back(top);
    share.push_back(reached / top);
  }
  const auto [least, most] = std::minmax_element(speed.begin(), speed.end());
  printf("%-10s %-4s %-9s %5ld %-8s %7.1f %7.1f..%-7.1f %8.1f %6.0f %% %6.0f %%\n",
         context.ops->kernel_path->name, activation == Type::bf16 ? "bf16" : "fp32", shape.name, rows,
         forward ? "forward" : "backward", median(speed), *least, *most, median(limit), 100 * median(share),
         100 * *most / *std::max_element(limit.begin(), limit.end()));
}

}  // namespace

int main(int argc, char** argv) {
  Threads threads(argc > 1 ? atoi(argv[1]) : 0);
  const int rounds = argc > 2 ? std::max(1, atoi(argv[2])) : 15;
  Arena arena(size_t{1} << 30);
  Buffers buffers = make_buffers(1024);
  printf("%d threads, GFLOP/s\n%-10s %-4s %-9s %5s %-8s %7s %16s %8s %8s %8s\n", threads.count(), "path",
         "as", "out x in", "rows", "", "median", "least..most", "ceiling", "share", "best");
  for (const KernelPath& path : kernel_paths()) {
    if (argc > 3 && strcmp(argv[3], path.name)) continue;
    for (Type activation : {Type::bf16, Type::f32}) {
      Ops ops{};
      ops.kernel_path = &path;
      ops.activation = activation;
      const Context context{&ops, &threads, &arena};
      for (Shape shape : {Shape{"576x576", 576, 576}, {"192x576", 192, 576}, {"1536x576", 1536, 576},
                          {"576x1536", 576, 1536}})
        for (int64_t rows : {512, 1024})
          for (bool forward : {true, false}) measure(context, shape, rows, forward, rounds, buffers);
    }
  }
}
