// The same tests on a card that is there (make build/tests/gpu): what they say to the emulator, for hardware, whose
// schedule is its own. With QUEST_EMULATE only wait_for_kernels().
#pragma once
#include <cstring>
#include <span>
#include <stdexcept>

#include "kernels/cuda/runtime.h"

#ifdef QUEST_EMULATE

namespace quest {
constexpr bool on_hardware = false;
inline void wait_for_kernels() {}
inline void fill_nan(void* device, size_t bytes) { memset(device, 0xff, bytes); }
// Pages that no kernel may touch while this lives.
struct HostOnly {
  explicit HostOnly(std::span<std::byte> pages) { emulator::machine().host_only = pages; }
  ~HostOnly() { emulator::machine().host_only = {}; }
};
}  // namespace quest

#else

namespace quest {

constexpr bool on_hardware = true;
inline void wait_for_kernels() { check(cudaStreamSynchronize(nullptr), "a kernel of the tests"); }  // of no stream of theirs
inline void fill_nan(void* device, size_t bytes) {
  check(cudaMemset(device, 0xff, bytes), "memory of the tests");
  wait_for_kernels();
}

struct HostOnly {  // no kernel can
  explicit HostOnly(std::span<std::byte>) {}
};

namespace emulator {

enum class Schedule { forward, reverse, random };  // here: the first, second and third time
inline const char* name_of(Schedule s) {
  return s == Schedule::forward ? "first" : s == Schedule::reverse ? "second" : "third";
}
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Machine {
  Schedule schedule{};
  int64_t blocks = 0, bank_conflicts = 0;
};
inline Machine& machine() {
  static Machine the;
  return the;
}
struct Gpu {
  bool present = true, intact = true;
};
inline Gpu& gpu() {
  static Gpu the;
  return the;
}

}  // namespace emulator
}  // namespace quest

#endif
