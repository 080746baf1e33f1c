// Which backends this program has: the CPU, and the GPU where it was built with CUDA.
#pragma once
#include <memory>
#include <optional>

#include "kernels/base/arena.h"
#include "kernels/ops.h"

namespace quest {

// A GPU that is there, or nullptr for the CPU. wanted: "cpu", "gpu" (throws Error(machine) when it cannot be
// had, and says why) or "auto" (the GPU where there is one; says why where there is one that cannot be used).
std::shared_ptr<Device> open_device(const char* wanted);

std::optional<Ops> gpu_ops(Type activation);  // nothing where the program was built without them

// Of an opened device. Its memory is asked for once.
size_t free_memory(const Device&);  // bytes
std::unique_ptr<Arena> arena_on(Device&, size_t bytes);
const char* describe(const Device&);
const char* kernels_of(const Device&);  // on what bits may depend

// For quest bench: what a card could do at most. Each waits for its work.
double multiply_adds(Device&, int64_t steps);           // on registers alone, by tensor cores; returns FLOP
void read_memory(Device&, void* memory, size_t bytes);  // ten times; what it holds may change
// The yardstick: y = x . w^T or, backward, x . w, of bf16 matrices, by cuBLAS; nullptr where there is none.
struct Cublas;
std::shared_ptr<Cublas> open_cublas(Device&);
void dense_product(const Cublas&, View x, View w, View y, bool forward);

constexpr size_t staging_bytes = 16 << 20;  // pinned memory of the host, through which all goes to a GPU

}  // namespace quest
