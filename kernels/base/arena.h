// One arena, handed down to every op: a range of addresses that is used as a stack. Everything in it has a
// name, "group/name", and a shape, so that a rehearsal (model/plan.h) can list it before it exists.
#pragma once
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <type_traits>

#include "kernels/base/error.h"

namespace quest {

// What an allocation is, for the plan.
struct What {
  const char *name, *type;  // "group/name", element type
  int64_t rows, cols;
};

// Who wants to know of every allocation.
struct Witness {
  size_t gap = 0;  // bytes to leave free behind each
  virtual void allocated(const What&, std::byte* base, size_t offset, size_t bytes) = 0;
  virtual void released(size_t mark) = 0;  // all from this offset on
};

class Arena {
 public:
  // limit: bytes in use at once; throws Error(machine) when it cannot be reserved. Memory is committed by the
  // kernel at first touch. A rehearsal's memory is shared, which counts as no data of this process; of it
  // only the graph's bookkeeping is touched, and where addresses are scarce it is content with fewer.
  explicit Arena(size_t limit, bool rehearsal = false, Witness* witness = nullptr)
      : limit_(limit), witness_(witness) {
    const int kind = (rehearsal ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p;
    do p = mmap(nullptr, limit_, PROT_READ | PROT_WRITE, kind, -1, 0);
    while (p == MAP_FAILED && rehearsal && (limit_ /= 2) > 1 << 30);
    if (p == MAP_FAILED)
      fail(Exit::machine, "memory: cannot reserve %.1f GiB of addresses: %m; lower the limit",
           limit_ / 0x1p30);
    madvise(p, limit_, MADV_HUGEPAGE);
    base_ = static_cast<std::byte*>(p);
  }
  // Memory of somebody else, who frees it.
  Arena(std::byte* memory, size_t limit) : base_(memory), limit_(limit), witness_(nullptr), owned_(false) {}
  Arena(Arena&&) = delete;
  ~Arena() {
    if (owned_) munmap(base_, limit_);
  }

  // 64-byte aligned, contents undefined; throws Error(machine), naming the limit, when the arena is full.
  void* allocate(size_t bytes, const What& what) {
    const size_t rounded = (bytes + 63) & ~size_t{63};
    if (rounded < bytes || rounded > limit_ - used_)
      fail(Exit::machine,
           "memory: %.1f MiB more were needed (%s) with %.1f of %.1f MiB in use; give more "
           "--memory, use shorter texts or a smaller batch, or leave out --micro and --spacing",
           bytes / 0x1p20, what.name, used_ / 0x1p20, limit_ / 0x1p20);
    const size_t at = used_;
    if (witness_) witness_->allocated(what, base_, at, bytes);
    used_ += rounded + (witness_ ? witness_->gap : 0);
    peak_ = std::max(peak_, used_);
    return base_ + at;
  }
  // Bytes of so many rows; too many for a number are too many for any limit.
  static size_t product(int64_t rows, int64_t row_bytes) {
    size_t bytes;
    return __builtin_mul_overflow(rows, row_bytes, &bytes) ? SIZE_MAX : bytes;
  }
  template <class T>
  T* array(int64_t count, const char* name) {
    const char* type = std::is_same_v<T, float> ? "F32" : std::is_same_v<T, int32_t> ? "I32" : "bytes";
    const int64_t cols = *type == 'b' ? sizeof(T) : 1;
    return static_cast<T*>(allocate(product(count, sizeof(T)), {name, type, count, cols}));
  }

  size_t used() const { return used_; }
  size_t room() const { return limit_ - used_; }
  size_t peak() const { return peak_; }  // most bytes in use so far
  void release(size_t mark) {            // mark: an earlier used(); frees all that came after it
    if (witness_) witness_->released(mark);
    used_ = mark;
  }
  // NaN in what was used and is free (for tests).
  void poison() { memset(base_ + used_, 0xff, peak_ - used_); }

 private:
  std::byte* base_;
  size_t limit_, used_ = 0, peak_ = 0;
  Witness* witness_;
  bool owned_ = true;
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

// Bytes of the heap in use, rounded up: which thread allocated what makes a small difference.
inline size_t heap_in_use() {
  constexpr size_t unit = 1 << 20;
  const struct mallinfo2 m = mallinfo2();
  return (m.uordblks + m.hblkhd + unit - 1) / unit * unit;
}

inline std::string human_bytes(size_t bytes) {
  return bytes < 1e9 ? format("%.2f MiB", bytes / 0x1p20) : format("%.2f GiB", bytes / 0x1p30);
}

}  // namespace quest
