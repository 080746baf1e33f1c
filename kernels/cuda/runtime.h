// The CUDA backend: one device, one stream, one allocation.
//
// The graph (model/, train/step.cpp) is the CPU's, call for call. Where data lies is decided by two fields of
// the context and two ops:
//   arena   is the device's memory: weights, matrices, scratch, text cache. The host never reads or writes
//   it. host    holds what only the host reads: texts, passes, groups and index arrays while they are made.
//   bring   copies what the host made into the arena, once a pass: groups, positions, pairs, the prompt.
//   fetch   waits and copies results back: loss, prompt, embeddings.
// On the CPU both arenas are one and both ops do nothing. The embedding table stays on the host: embed()
// decodes its rows there. All that goes to the device goes through the staging buffer: pinned, in two halves,
// of which one is filled while the other is copied, so the host is never further ahead than 16 MiB, and what
// was given to bring() may change as soon as it returns.
// A rehearsal has no device: launch(), bring() and fetch() then do nothing but take the arena's memory, so
// the plan of a GPU is made where there is none.
//
// Only these functions of CUDA's runtime are called (a test looks), with the same signatures in CUDA 12 and
// 13:
//   cudaGetDeviceCount cudaDeviceGetAttribute cudaDriverGetVersion cudaSetDevice cudaMemGetInfo
//   cudaMalloc cudaFree cudaHostAlloc cudaFreeHost cudaMemcpyAsync cudaMemcpy2DAsync
//   cudaStreamCreateWithFlags cudaStreamDestroy cudaStreamSynchronize
//   cudaEventCreateWithFlags cudaEventDestroy cudaEventRecord cudaEventSynchronize
//   cudaFuncSetAttribute cudaLaunchKernelExC cudaGetErrorName cudaGetErrorString
#pragma once
#include <memory>
#include <string>
#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/ops.h"

namespace quest {

// Throws Error(machine) with what was tried, unless it went well.
void check(cudaError_t, const char* what);

class Device {
 public:
  // Device 0; nullptr where there is none, or none that can be used unless one is required. Throws
  // Error(machine).
  static std::shared_ptr<Device> open(bool required);
  Device(Device&&) = delete;
  ~Device();

  std::byte* allocate(size_t bytes);  // once
  // Copies from the host, in the order of the stream; returns when `from` may change.
  void send(void* to, const void* from, size_t bytes);
  // The same for rows that are still to be made: fill(at, first, count) writes rows first .. first + count to
  // `at`, without holes. On the device they are `stride` bytes apart.
  void send_rows(void* to, size_t stride, size_t row_bytes, int64_t rows, auto&& fill) {
    const auto most = static_cast<int64_t>(half / row_bytes);
    for (int64_t first = 0, count; first < rows; first += count) {
      count = rows - first < most ? rows - first : most;
      std::byte* at = take(count * row_bytes);
      fill(at, first, count);
      copy(static_cast<std::byte*>(to) + first * stride, stride, at, row_bytes, count);
    }
  }
  void receive(void* to, const void* from, size_t bytes);  // waits for all that was asked for before
  void wait();

  std::string name;       // and what the context takes
  std::string kernels;    // "cuda sm_86": what bits may depend on
  size_t free_bytes = 0;  // before anything was allocated
  int64_t launches = 0;   // so far
  Stream stream = nullptr;

  static constexpr size_t half = 8 << 20;  // bytes of staging

 private:
  Device() = default;
  void prepare();                 // stream, staging, events; throws Error(machine)
  std::byte* take(size_t bytes);  // room in the staging buffer, at most half of it
  void copy(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows);

  std::byte *memory_ = nullptr, *staging_ = nullptr;
  cudaEvent_t copied_[2] = {};  // the copies out of this half
  size_t used_ = 0;             // of the half that is being filled
  int filling_ = 0;
};

// The one way to start a kernel (device.h checks it). Without a device, or without a block, nothing happens.
template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared, Device* device, A... arguments) {
  if (!device || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  ++device->launches;
  launch(kernel, grid, threads, shared, device->stream, arguments...);
}

Ops cuda_ops(Type activation);

}  // namespace quest
