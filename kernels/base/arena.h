// One arena, handed down to every op: a reserved range of addresses that is used as a stack. Memory is
// committed by the kernel at first touch, so what is never used costs nothing.
#pragma once
#include <cstddef>
#include <cstdint>

namespace quest {

class Arena {
 public:
  explicit Arena(size_t limit);  // bytes in use at once; throws Error(machine) when it cannot be reserved
  Arena(Arena&&) = delete;
  ~Arena();

  // 64-byte aligned, contents undefined; throws Error(machine), naming the limit, when the arena is full.
  void* allocate(size_t bytes);
  template <class T>
  T* array(int64_t count) {
    return static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T)));
  }

  size_t used() const { return used_; }
  void release(size_t mark) { used_ = mark; }  // mark: an earlier used(); frees all that came after it
  void poison();  // fills the free part up to the peak with NaN bytes (for tests)

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

size_t available_memory();  // bytes: the smaller of MemAvailable and what the control group leaves

}  // namespace quest
