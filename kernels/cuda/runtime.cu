#include "kernels/cuda/runtime.h"

#include <algorithm>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/base/error.h"

namespace quest {

static_assert(2 * Device::half == staging_bytes);

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  if (error == cudaErrorMemoryAllocation)
    fail(Exit::machine, "GPU: no memory for %s; close other programs that use it, or give less --memory",
         what);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
    fail(Exit::machine,
         "GPU: this program has no code for it (%s); build with CUDA_ARCHS=all, update the driver, or give "
         "--device cpu",
         cudaGetErrorName(error));
  fail(Exit::machine,
       "GPU: %s failed: %s (%s); the last checkpoint is whole: go on with quest train --resume", what,
       cudaGetErrorString(error), cudaGetErrorName(error));
}

static __global__ void nothing() {}

std::shared_ptr<Device> Device::open(bool required) {
  const auto unusable = [&](const std::string& why) -> std::shared_ptr<Device> {
    if (required) fail(Exit::machine, "--device gpu: %s; or give --device cpu", why.c_str());
    fprintf(stderr, "device: %s; the CPU does the work\n", why.c_str());
    return nullptr;
  };
  int count = 0, driver = 0, major = 0, minor = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaDriverGetVersion(&driver);  // 0: none
  if (error == cudaErrorInsufficientDriver && driver > 0)
    return unusable(format("expected a driver for CUDA %d or later, found one for %d.%d; update it",
                           CUDART_VERSION / 1000, driver / 1000, driver % 1000 / 10));
  if (error != cudaSuccess && error != cudaErrorNoDevice && driver > 0)
    return unusable(format("expected a GPU and its driver at work, found: %s", cudaGetErrorString(error)));
  if (error != cudaSuccess || count == 0) {
    if (required) unusable("expected a GPU and its driver, found none; install the driver");
    return nullptr;
  }
  std::shared_ptr<Device> d(new Device);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "its description");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "its description");
  d->name = format("GPU 0 (sm_%d%d)", major, minor);
  if (major < 8)
    return unusable(format("%s: expected compute capability 8.0 or later, found %d.%d; use a newer card",
                           d->name.c_str(), major, minor));
  d->kernels = format("cuda sm_%d%d", major, minor);
  try {
    d->prepare();
  } catch (const Error& why) {
    if (required) throw;
    return unusable(why.what());
  }
  return d;
}

void Device::prepare() {
  size_t free = 0, total = 0;
  void* pinned = nullptr;
  check(cudaSetDevice(0), "its context");
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "its stream");
  check(cudaHostAlloc(&pinned, staging_bytes, cudaHostAllocDefault), "the staging buffer");
  staging_ = static_cast<std::byte*>(pinned);
  for (cudaEvent_t& event : copied_)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  launch(nothing, Grid{1}, 32, 0, stream);  // whether this program has code for it
  wait();
  check(cudaMemGetInfo(&free, &total), "its memory's size");
  free_bytes = free;
  name += ", " + human_bytes(total - free) + " of its memory taken by the context and others";
}

Device::~Device() {  // nothing is checked: a lost device is one already
  if (stream) cudaStreamSynchronize(stream);
  for (cudaEvent_t event : copied_)
    if (event) cudaEventDestroy(event);
  if (memory_) cudaFree(memory_);
  if (staging_) cudaFreeHost(staging_);
  if (stream) cudaStreamDestroy(stream);
}

std::byte* Device::allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), format("an arena of %.1f MiB", bytes / 0x1p20).c_str());
  return memory_ = static_cast<std::byte*>(memory);
}

std::byte* Device::take(size_t bytes) {
  if (bytes > half - used_) {
    check(cudaEventRecord(copied_[filling_], stream), "a copy to it");
    filling_ = 1 - filling_, used_ = 0;
    check(cudaEventSynchronize(copied_[filling_]), "a copy to it");
  }
  std::byte* at = staging_ + filling_ * half + used_;
  used_ += (bytes + 63) & ~size_t{63};
  return at;
}

void Device::copy(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) {
  check(cudaMemcpy2DAsync(to, stride, from, row_bytes, row_bytes, rows, cudaMemcpyHostToDevice, stream),
        "a copy to it");
}

void Device::send(void* to, const void* from, size_t bytes) {
  for (size_t first = 0, count; first < bytes; first += count) {
    count = std::min(bytes - first, half);
    std::byte* at = take(count);
    memcpy(at, static_cast<const std::byte*>(from) + first, count);
    check(cudaMemcpyAsync(static_cast<std::byte*>(to) + first, at, count, cudaMemcpyHostToDevice, stream),
          "a copy to it");
  }
}

void Device::receive(void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "a copy from it");
  wait();
}

void Device::wait() { check(cudaStreamSynchronize(stream), "its work"); }

// ---- kernels/backend.h

std::shared_ptr<Device> open_device(const char* wanted) {
  return strcmp(wanted, "cpu") ? Device::open(!strcmp(wanted, "gpu")) : nullptr;
}
std::optional<Ops> gpu_ops(Type activation) { return cuda_ops(activation); }
size_t free_memory(const Device& device) { return device.free_bytes; }
std::unique_ptr<Arena> arena_on(Device& device, size_t bytes) {
  return std::make_unique<Arena>(device.allocate(bytes), bytes);
}
const char* describe(const Device& device) { return device.name.c_str(); }
const char* kernels_of(const Device& device) { return device.kernels.c_str(); }

}  // namespace quest
