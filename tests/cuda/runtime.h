// CUDA's runtime functions, those that kernels/cuda/ may call and no others, over the host's memory: a GPU for
// tests. It is absent until a test sets it up. Its memory is NaN bytes at first, with canaries at both ends.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorIllegalAddress = 700
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaHostAllocDefault = 0, cudaEventDisableTiming = 2;
constexpr int CUDART_VERSION = 13000;
using cudaStream_t = void*;
using cudaEvent_t = void*;

namespace quest::emulator {

struct Gpu {
  bool present = false;
  int driver = 13000, major = 8, minor = 6;
  size_t memory = size_t{1} << 28;
  std::string fails = {};  // the function that fails, after so many calls of it, and how
  int fails_after = 0;
  cudaError_t how = cudaErrorIllegalAddress;

  static constexpr size_t canary = 4096;
  char* block = nullptr;  // what cudaMalloc gave, between its canaries
  size_t block_bytes = 0;
  int64_t copies = 0;   // to the GPU and back
  bool intact = true;   // no canary was overwritten

  cudaError_t call(const char* name) {
    if (!present) return driver < CUDART_VERSION ? cudaErrorInsufficientDriver : cudaErrorNoDevice;
    return fails == name && fails_after-- <= 0 ? how : cudaSuccess;
  }
  bool within(const void* p, size_t bytes) const {  // anywhere, as long as nothing was allocated
    if (!block) return true;
    const auto* at = static_cast<const char*>(p);
    return at >= block && at + bytes <= block + block_bytes;
  }
  void look_at_canaries() {
    for (size_t i = 0; i < canary; ++i)
      intact &= block[-1 - static_cast<int64_t>(i)] == '\x5c' && block[block_bytes + i] == '\x5c';
  }
};
inline Gpu& gpu() {
  static Gpu the;
  return the;
}

}  // namespace quest::emulator

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = quest::emulator::gpu().present;
  return quest::emulator::gpu().call("cudaGetDeviceCount");
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = quest::emulator::gpu().driver;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const auto& gpu = quest::emulator::gpu();
  *value = which == cudaDevAttrComputeCapabilityMajor ? gpu.major : gpu.minor;
  return quest::emulator::gpu().call("cudaDeviceGetAttribute");
}
inline cudaError_t cudaSetDevice(int) { return quest::emulator::gpu().call("cudaSetDevice"); }
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = quest::emulator::gpu().memory;
  return quest::emulator::gpu().call("cudaMemGetInfo");
}
inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  auto& gpu = quest::emulator::gpu();
  if (const cudaError_t error = gpu.call("cudaMalloc")) return error;
  if (gpu.block || bytes > gpu.memory) return cudaErrorMemoryAllocation;  // once
  const size_t rounded = (bytes + 255) / 256 * 256, all = rounded + 2 * gpu.canary;
  char* block = static_cast<char*>(aligned_alloc(4096, (all + 4095) / 4096 * 4096));
  memset(block, 0x5c, all);
  gpu.block = block + gpu.canary, gpu.block_bytes = bytes;
  memset(gpu.block, 0xff, bytes);
  *p = gpu.block;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void*) {
  auto& gpu = quest::emulator::gpu();
  gpu.look_at_canaries();
  free(gpu.block - gpu.canary);
  gpu.block = nullptr, gpu.block_bytes = 0;
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  if (const cudaError_t error = quest::emulator::gpu().call("cudaHostAlloc")) return error;
  *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  auto& gpu = quest::emulator::gpu();
  if (const cudaError_t error = gpu.call("cudaMemcpyAsync")) return error;
  if (!gpu.within(kind == cudaMemcpyHostToDevice ? to : from, bytes)) return cudaErrorIllegalAddress;
  memcpy(to, from, bytes);
  ++gpu.copies;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t stride, const void* from, size_t from_stride, size_t width,
                                     size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  for (size_t i = 0; i < rows; ++i)
    if (const cudaError_t error = cudaMemcpyAsync(static_cast<char*>(to) + i * stride,
                                                  static_cast<const char*>(from) + i * from_stride, width, kind, stream))
      return error;
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return quest::emulator::gpu().call("cudaStreamCreateWithFlags");
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return quest::emulator::gpu().call("cudaStreamSynchronize"); }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return quest::emulator::gpu().call("cudaEventCreateWithFlags");
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return quest::emulator::gpu().call("cudaEventRecord"); }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return quest::emulator::gpu().call("cudaEventSynchronize"); }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorOfATest"; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of a test"; }
