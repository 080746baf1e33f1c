// The one file that is compiled differently: without CUDA (make defines QUEST_CUDA with it), these functions
// stand here; with it, kernels/cuda/ has them.
#include "kernels/backend.h"

#include <cstring>

#ifndef QUEST_CUDA

namespace quest {

std::shared_ptr<Device> open_device(const char* wanted) {
  if (!strcmp(wanted, "gpu"))
    fail(Exit::machine,
         "--device gpu: expected a program that was built with CUDA, found one without; install nvcc and run "
         "make, or give --device cpu");
  return nullptr;
}

std::optional<Ops> gpu_ops(Type) { return {}; }
size_t free_memory(const Device&) { return 0; }
std::unique_ptr<Arena> arena_on(Device&, size_t) { return nullptr; }
const char* describe(const Device&) { return ""; }
const char* kernels_of(const Device&) { return ""; }
double multiply_adds(Device&, int64_t) { return 0; }
void read_memory(Device&, void*, size_t) {}
std::shared_ptr<Cublas> open_cublas(Device&) { return nullptr; }
void dense_product(const Cublas&, View, View, View, bool) {}

}  // namespace quest

#endif
