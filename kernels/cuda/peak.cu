// What a card can do at most, for quest bench: tensor cores on registers alone, memory read once, and the
// product that cuBLAS makes of weights that are bf16 already. No other file needs cuBLAS, which is looked for
// when it is asked for.
#include <dlfcn.h>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/cuda/view.h"

namespace quest {

namespace {

constexpr int peak_blocks = 1024, peak_threads = 256;  // of a grid, of a block
constexpr int peak_sums = 8;                           // mma in flight a warp

__global__ void __launch_bounds__(peak_threads) mma_peak(float* out, int64_t steps) {
  float sums[peak_sums][4] = {};
  uint32_t a[4],
      b[2];  // bf16 of 0.008 to 0.12, of either sign: a card is faster on numbers that are all the same
  for (int i = 0; i < 6; ++i)
    (i < 4 ? a[i] : b[i - 4]) = ((threadIdx.x * 6 + i + 1) * 0x9e3779b9u & 0x81ff81ff) | 0x3c003c00;
  for (int64_t s = 0; s < steps; ++s) UNROLL
  for (int i = 0; i < peak_sums; ++i) mma_bf16(sums[i], a, b);
  float sum = 0;
  UNROLL
  for (int i = 0; i < peak_sums; ++i) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (sum == 0x1p100f) *out = sum;  // never
}

__global__ void __launch_bounds__(peak_threads) read_once(const Words4* from, int64_t count, uint32_t* out) {
  uint32_t all = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const Words4 w = fetch<Words4>(from + i);
    all |= w.x ^ w.y ^ w.z ^ w.w;
  }
  if (all == 0x12345678) *out = all;  // next to never, in memory that nobody reads
}

}  // namespace

double multiply_adds(Device& device, int64_t steps) {
  launch(mma_peak, Grid{peak_blocks}, peak_threads, 0, &device, nullptr, steps);
  device.wait();
  return 2.0 * 16 * 8 * 16 * peak_sums * (peak_threads / warp) * peak_blocks * steps;
}

void read_memory(Device& device, void* memory, size_t bytes) {
  for (int times = 0; times < 10; ++times)
    launch(read_once, Grid{4096}, peak_threads, 0, &device, static_cast<const Words4*>(memory),
           int64_t(bytes / 16), static_cast<uint32_t*>(memory));
  device.wait();
}

// cuBLAS, which no other file needs, is looked for when it is asked for; these are its functions and numbers
// as cublas_api.h of CUDA 12 and 13 has them.
struct Cublas {
  using Create = int(void** handle);
  using SetStream = int(void* handle, Stream);
  using GemmEx = int(void* handle, int turn_a, int turn_b, int m, int n, int k, const void* alpha,
                     const void* a, int type_a, int stride_a, const void* b, int type_b, int stride_b,
                     const void* beta, void* c, int type_c, int stride_c, int compute, int algorithm);
  static constexpr int as_it_is = 0, turned = 1, bf16 = 14, fp32_sums = 68, any_algorithm = -1;

  void* library = nullptr;
  void* handle = nullptr;

  template <class F, class... A>
  void call(const char* name, A... arguments) const {
    const auto f = reinterpret_cast<F*>(dlsym(library, name));
    const int status = f ? f(arguments...) : -1;
    if (status != 0)
      fail(Exit::machine, "cuBLAS: %s failed with status %d; leave out what needs it", name, status);
  }
};

std::shared_ptr<Cublas> open_cublas(Device& device) {
  auto cublas = std::make_shared<Cublas>();
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so"})
    if (!cublas->library) cublas->library = dlopen(name, RTLD_NOW);
  if (!cublas->library) return nullptr;
  cublas->call<Cublas::Create>("cublasCreate_v2", &cublas->handle);
  cublas->call<Cublas::SetStream>("cublasSetStream_v2", cublas->handle, device.stream);
  return cublas;
}

// By columns, as cuBLAS counts: y [cols,rows] = w (turned, forward) . x.
void dense_product(const Cublas& cublas, View x, View w, View y, bool forward) {
  using C = Cublas;
  const float one = 1, none = 0;
  cublas.call<C::GemmEx>("cublasGemmEx", cublas.handle, forward ? C::turned : C::as_it_is, C::as_it_is,
                         int(y.cols), int(y.rows), int(x.cols), &one, w.data, C::bf16, int(w.stride), x.data,
                         C::bf16, int(x.stride), &none, y.data, C::bf16, int(y.stride), C::fp32_sums,
                         C::any_algorithm);
}

}  // namespace quest
