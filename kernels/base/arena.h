// One arena, handed down to every op: a reserved range of addresses that is used as a stack. Memory is
// committed by the kernel at first touch, so what is never used costs nothing.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "kernels/base/error.h"

namespace quest {

class Arena {
 public:
  // limit: bytes in use at once; throws Error(machine) when it cannot be reserved.
  explicit Arena(size_t limit) : limit_(limit) {
    void* p =
        mmap(nullptr, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
      fail(Exit::machine, "memory: cannot reserve %.1f GiB of addresses: %m; lower the limit",
           limit / 0x1p30);
    madvise(p, limit, MADV_HUGEPAGE);
    base_ = static_cast<std::byte*>(p);
  }
  Arena(Arena&&) = delete;
  ~Arena() { munmap(base_, limit_); }

  // 64-byte aligned, contents undefined; throws Error(machine), naming the limit, when the arena is full.
  void* allocate(size_t bytes) {
    const size_t rounded = (bytes + 63) & ~size_t{63};
    if (rounded < bytes || rounded > limit_ - used_)
      fail(Exit::machine,
           "memory: %.1f MiB more were needed with %.1f of %.1f MiB in use; use shorter texts, "
           "a smaller batch or --text-cache 0",
           bytes / 0x1p20, used_ / 0x1p20, limit_ / 0x1p20);
    used_ += rounded;
    peak_ = std::max(peak_, used_);
    return base_ + used_ - rounded;
  }
  template <class T>
  T* array(int64_t count) {
    return static_cast<T*>(allocate(count * sizeof(T)));
  }

  size_t used() const { return used_; }
  void release(size_t mark) { used_ = mark; }  // mark: an earlier used(); frees all that came after it
  void poison() {
    memset(base_ + used_, 0xff, peak_ - used_);
  }  // NaN in what was used and is free (for tests)

 private:
  std::byte* base_;
  size_t limit_, used_ = 0, peak_ = 0;
};

// Frees on leaving the scope what was allocated inside it.
class Scratch {
 public:
  explicit Scratch(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  ~Scratch() { arena_.release(mark_); }
  Scratch(Scratch&&) = delete;

 private:
  Arena& arena_;
  size_t mark_;
};

// Bytes: the smaller of MemAvailable and what the control group leaves; 4 GiB where nothing can be read.
inline size_t available_memory() {
  size_t available = size_t{4} << 30, limit, used;
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);)
    if (size_t kib; sscanf(line.c_str(), "MemAvailable: %zu", &kib) == 1) available = kib * 1024;
  std::ifstream group("/sys/fs/cgroup/memory.max"), current("/sys/fs/cgroup/memory.current");
  if (group >> limit && current >> used && limit > used) available = std::min(available, limit - used);
  return available;
}

}  // namespace quest
