// What kernels may use beside the language itself: the instructions that only PTX names, loads and stores of
// a given width, conversions with the CPU's bits, dynamic shared memory, the launch. nvcc compiles this; the
// tests compile the same kernels with g++ and tests/cuda/emulator.h in place of it, which defines all of this
// by what it does.
#pragma once
#ifdef QUEST_EMULATE
#include "tests/cuda/emulator.h"
#include "tests/cuda/runtime.h"
#else
#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>

namespace quest {

struct Grid {
  int64_t x = 1, y = 1, z = 1;  // blocks
};
using Stream = cudaStream_t;

#ifdef __CUDACC__  // tests that only launch are compiled by g++

using Words4 = uint4;  // of 32 bits, aligned to 16 bytes

// Bytes of global memory that nothing writes while the kernel runs, aligned to their size.
template <class T>
__device__ T fetch(const void* global) {
  return __ldg(static_cast<const T*>(global));
}
template <class T>
__device__ void put(void* to, T value) {
  *static_cast<T*>(to) = value;
}

// ---- bf16 as bits, to the nearest, ties to even

__device__ inline float from_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ inline uint16_t to_bf16(float f) { return static_cast<uint16_t>(pack_bf16(f, 0.0f)); }
__device__ inline float from_f16(uint16_t bits) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}

// ---- tensor cores: all lanes of a warp together; fragments as the PTX manual draws them

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of 16-bit elements; lane 8 i + j gives the address of row j (16 bytes) of matrix i.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16,8] += a [16,16] . b [16,8]; volatile, so that it stays where all lanes come by
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- asynchronous copies: 16 bytes, both addresses multiples of 16. A thread's copies since its last commit
// are a group; the wait returns when all its groups but the last `groups` have landed. A barrier shows them
// to the others.

__device__ inline void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

#define DYNAMIC_SHARED(type, name)                            \
  extern __shared__ __align__(16) unsigned char all_shared[]; \
  type* name = reinterpret_cast<type*>(all_shared)

#define UNROLL _Pragma("unroll")    // every round of the loop that follows, one after another
#define ROLLED _Pragma("unroll 1")  // none

#endif

// ---- the launch

void check(cudaError_t, const char* what);  // runtime.cu

template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes, Stream stream,
            A... arguments) {
  const auto* entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory of a kernel");
  std::tuple<P...> values(static_cast<P>(arguments)...);
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  std::apply(
      [&](P&... value) {
        void* pointers[] = {&value...};
        check(cudaLaunchKernelExC(&config, entry, pointers), "launch of a kernel");
      },
      values);
}

}  // namespace quest
#endif

namespace quest {

__host__ __device__ constexpr int64_t tiles_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

}  // namespace quest
