// Runs a CUDA kernel on the CPU, from its own source: block by block, with a fibre for each thread.
//
// A fibre runs until it meets others: at a barrier, or at a warp operation. Which fibre goes on then is the
// schedule: forward takes the lowest thread that can, so that the first warp runs as far ahead as the barriers let
// it; reverse the highest; random any, by seed. Blocks come in the same order. A kernel whose result depends on the
// schedule has a race.
//
// What hardware leaves undefined is made to hurt: shared memory is NaN bits before every block; the target of an
// asynchronous copy is NaN bits from its issue on, and holds the data only after its wait. What would hang or be
// undefined is a Failure with the line: a barrier that not all threads of a block reach, a warp operation that a
// named lane does not reach, a shuffle from a lane that is not named, an address that is not aligned, a write past the
// end of dynamic shared memory.
//
// One grid at a time in the whole process. __shared__ variables are thread-local ones of the system's thread: the
// program has no others, so that all of them can be found, to be poisoned, as the thread-local part of its image.
#pragma once
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/base/random.h"
#include "kernels/tile_math.h"  // from_bf16, to_bf16, from_f16

namespace quest {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};
using Stream = void*;

namespace emulator {

using Place = std::source_location;

enum class Schedule { forward, reverse, random };
constexpr Schedule schedules[] = {Schedule::forward, Schedule::reverse, Schedule::random};
inline const char* name_of(Schedule s) {
  return s == Schedule::forward ? "forward" : s == Schedule::reverse ? "reverse" : "random";
}

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x, y, z;
};

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Fibre {
  static constexpr size_t stack_bytes = size_t{1} << 17;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  ucontext_t start;
  jmp_buf place;  // swapcontext would ask the system at every switch
  bool begun = false, ended = false;
  const char* what = nullptr;  // it waits for
  Place at;
  std::vector<Copy> copies;  // asynchronous, not landed
  int groups = 0;            // committed
};

// Lanes of a warp that wait for each other at an operation; lanes[i]: the arguments of lane i.
struct Meeting {
  unsigned named, here, line;
  const char* what;
  void* lanes[32];
};

class Machine {
 public:
  Schedule schedule = Schedule::forward;
  uint64_t seed = 1;
  int64_t blocks = 0, switches = 0, products = 0, bank_conflicts = 0;  // so far; products: mma of a warp; conflicts of ldmatrix
  Index thread{}, block{}, block_size{}, grid{};
  std::span<std::byte> host_only{};  // whole pages that a kernel that touches them dies of

  // printf-like. A fibre that fails never comes back: nothing that it holds is freed, so this takes no string.
  [[noreturn, gnu::format(printf, 2, 3)]] void fail(const char* format, ...) {
    char text[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(failure_, sizeof failure_, "block %u,%u thread %u: %s", block.x, block.y, thread.x, text);
    if (current_ < 0) throw Failure(failure_);
    last_ = current_, current_ = -1;
    leave();
    _longjmp(host_, 1);
  }

  void run(Grid size, int threads, size_t shared_bytes, const std::function<void()>& body) {
    if (current_ >= 0) throw Failure("a grid within a grid");
    if (threads < 1 || threads > 1024) throw Failure("blocks have 1 to 1024 threads, not " + std::to_string(threads));
    if (size.x < 1 || size.y < 1 || size.z < 1 || size.y > 65535 || size.z > 65535) throw Failure("no such grid");
    body_ = &body;
    if (shared_bytes > 99 * 1024) throw Failure("more dynamic shared memory than a block of sm_86 may have");
    count_ = threads;
    statics_ = thread_locals();
    grid = {static_cast<unsigned>(size.x), static_cast<unsigned>(size.y), static_cast<unsigned>(size.z)};
    block_size = {static_cast<unsigned>(threads), 1, 1};
    dynamic_.assign(shared_bytes / 16 + 1 + red_zone / 16, Line{});
    shared_bytes_ = shared_bytes;
    warps_.assign(static_cast<size_t>(threads + 31) / 32, {});
    while (std::ssize(fibres_) < threads) add_fibre();
    const int64_t all = size.x * size.y * size.z;
    std::vector<int64_t> order(static_cast<size_t>(all));
    for (int64_t i = 0; i < all; ++i) order[i] = schedule == Schedule::reverse ? all - 1 - i : i;
    if (schedule == Schedule::random)
      for (int64_t i = all - 1; i > 0; --i) std::swap(order[i], order[draw(i + 1)]);
    const HostOnly locked(host_only);
    for (const int64_t i : order) {
      block = {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
               static_cast<unsigned>(i / size.x / size.y)};
      run_block();
    }
  }

  struct HostOnly {
    std::span<std::byte> pages;
    explicit HostOnly(std::span<std::byte> p) : pages(p) { protect(PROT_NONE); }
    ~HostOnly() { protect(PROT_READ | PROT_WRITE); }
    void protect(int how) const {
      if (!pages.empty() && mprotect(pages.data(), pages.size(), how)) abort();
    }
  };

  void barrier(const Place& at) {
    if (arrived_ == 0) barrier_ = at;
    if (at.line() != barrier_.line())
      fail("waits at a barrier in line %u, others at that in line %u", at.line(), barrier_.line());
    if (++arrived_ < count_) return wait("a barrier", at);
    arrived_ = 0;
    for (int i = 0; i < count_; ++i) set_ready(i, true);
    go(pick());
  }

  // A lane waits until all that are named have come; the last does act(lanes) for all. mine: its arguments.
  template <class F>
  void meet(unsigned named, const char* what, const Place& at, void* mine, F&& act) {
    const int lane = current_ % 32, first = current_ - lane;
    if (!(named >> lane & 1)) fail("%s does not name the lane that calls it", what);
    if (first + 32 - std::countl_zero(named) > count_) fail("%s names lanes that do not exist", what);
    std::vector<Meeting>& meetings = warps_[current_ / 32];
    auto m = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& o) {
      return o.named == named && o.line == at.line() && o.what == what && !(o.here >> lane & 1);
    });
    if (m == meetings.end()) m = meetings.insert(m, Meeting{named, 0, at.line(), what, {}});
    m->here |= 1u << lane;
    m->lanes[lane] = mine;
    if (m->here != named) return wait(what, at);
    act(m->lanes);
    meetings.erase(m);
    for (int i = 0; i < 32; ++i)
      if (named >> i & 1) set_ready(first + i, true);
    go(pick());
  }

  std::byte* dynamic() { return reinterpret_cast<std::byte*>(dynamic_.data()); }

  void* shared(const void* p, size_t bytes, const char* what) {  // which must lie there, aligned to its size
    const auto* from = static_cast<const std::byte*>(p);
    const bool inside = (from >= dynamic() && from + bytes <= dynamic() + shared_bytes_) ||
                        (from >= statics_.data() && from + bytes <= statics_.data() + statics_.size());
    if (!inside) fail("%s: not an address in shared memory", what);
    aligned(p, bytes, what);
    return const_cast<void*>(p);
  }
  void aligned(const void* p, size_t bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(p) % bytes)
      fail("%s: an address that is not a multiple of %zu", what, bytes);
  }

  void copy(void* to, const void* from) {
    memset(shared(to, 16, "copy_async16"), 0xff, 16);
    aligned(from, 16, "copy_async16");
    fibre().copies.push_back({to, from, fibre().groups});
  }
  void commit() { ++fibre().groups; }
  void land(int but) {  // all committed groups but the last `but`
    std::vector<Copy>& copies = fibre().copies;
    for (const Copy& c : copies)
      if (c.group < fibre().groups - but) memcpy(c.to, c.from, 16);
    std::erase_if(copies, [&](const Copy& c) { return c.group < fibre().groups - but; });
  }

 private:
  struct alignas(16) Line {
    std::byte bytes[16];
  };
  static constexpr size_t red_zone = 256;

  Fibre& fibre() { return *fibres_[current_]; }
  int64_t draw(int64_t n) { return static_cast<int64_t>(random_uniform(seed, 3, draws_++) * static_cast<double>(n)); }

  static std::span<std::byte> thread_locals() {  // of the program, without those of its libraries
    std::span<std::byte> found;
    const auto program = [](dl_phdr_info* info, size_t, void* to) {
      for (int i = 0; i < info->dlpi_phnum; ++i)
        if (const auto& part = info->dlpi_phdr[i]; part.p_type == PT_TLS && info->dlpi_tls_data)
          *static_cast<std::span<std::byte>*>(to) = {static_cast<std::byte*>(info->dlpi_tls_data), part.p_memsz};
      return 1;  // it comes first
    };
    dl_iterate_phdr(program, &found);
    return found;
  }

  void set_ready(int i, bool on) {
    const uint64_t bit = uint64_t{1} << i % 64;
    ready_[i / 64] = on ? ready_[i / 64] | bit : ready_[i / 64] & ~bit;
  }
  int pick() {  // -1: none
    int words = (count_ + 63) / 64, total = 0;
    if (schedule == Schedule::forward) {
      for (int w = 0; w < words; ++w)
        if (ready_[w]) return 64 * w + std::countr_zero(ready_[w]);
    } else if (schedule == Schedule::reverse) {
      for (int w = words; w-- > 0;)
        if (ready_[w]) return 64 * w + 63 - std::countl_zero(ready_[w]);
    } else {
      for (int w = 0; w < words; ++w) total += std::popcount(ready_[w]);
      int64_t left = total ? draw(total) : -1;
      for (int w = 0; w < words && left >= 0; ++w) {
        const int here = std::popcount(ready_[w]);
        if (left >= here) {
          left -= here;
          continue;
        }
        uint64_t bits = ready_[w];
        while (left-- > 0) bits &= bits - 1;
        return 64 * w + std::countr_zero(bits);
      }
    }
    return -1;
  }

  // Leaves this fibre (or the host) for another (-1: for the host); returns when somebody comes back.
  [[gnu::noinline]] void go(int next) {
    if (next == current_) return;
    ++switches;
    last_ = current_;
    if (_setjmp(current_ < 0 ? host_ : fibre().place)) return arrived();
    current_ = next;
    leave();
    if (next < 0) _longjmp(host_, 1);
    thread = {static_cast<unsigned>(next), 0, 0};
    if (fibre().begun) _longjmp(fibre().place, 1);
    fibre().begun = true;
    setcontext(&fibre().start);
  }
  // The address sanitizer wants to know on which stack we are.
#ifdef __SANITIZE_ADDRESS__
  void leave() {
    const void* stack = current_ < 0 ? host_stack_ : fibre().stack.get();
    __sanitizer_start_switch_fiber(nullptr, stack, current_ < 0 ? host_stack_bytes_ : Fibre::stack_bytes);
  }
  void arrived() {
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (last_ < 0) host_stack_ = stack, host_stack_bytes_ = bytes;
  }
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
#else
  void leave() {}
  void arrived() {}
#endif
  void wait(const char* what, const Place& at) {
    fibre().what = what, fibre().at = at;
    set_ready(current_, false);
    go(pick());
  }

  static void threads_life();
  void add_fibre() {
    fibres_.push_back(std::make_unique<Fibre>());
    Fibre& f = *fibres_.back();
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = Fibre::stack_bytes;
    f.start.uc_link = nullptr;
    makecontext(&f.start, threads_life, 0);
  }

  void run_block() {
    ++blocks;
    memset(dynamic(), 0xff, shared_bytes_);
    memset(dynamic() + shared_bytes_, 0xa5, red_zone);
    memset(statics_.data(), 0xff, statics_.size());
    arrived_ = ended_ = 0;
    failure_[0] = 0;
    for (int i = 0; i < count_; ++i) {
      set_ready(i, true);
      fibres_[i]->ended = false, fibres_[i]->copies.clear(), fibres_[i]->groups = 0;
    }
    go(pick());
    std::string failure = failure_;
    if (failure.empty() && ended_ < count_) failure = stuck();
    for (size_t i = 0; i < red_zone && failure.empty(); ++i)
      if (dynamic()[shared_bytes_ + i] != std::byte{0xa5})
        failure = "wrote " + std::to_string(i) + " bytes past the end of dynamic shared memory";
    if (failure.empty()) return;
    fibres_.clear();  // they stand in the middle of the kernel
    std::fill(std::begin(ready_), std::end(ready_), 0);
    throw Failure(failure);
  }
  std::string stuck() {
    std::string s = "block " + std::to_string(block.x) + "," + std::to_string(block.y) + " does not end: " +
                    std::to_string(ended_) + " of " + std::to_string(count_) + " threads have ended";
    for (int i = 0; i < count_; ++i)
      if (const Fibre& f = *fibres_[i]; !f.ended) {
        int last = i;
        while (last + 1 < count_ && !fibres_[last + 1]->ended && fibres_[last + 1]->at.line() == f.at.line()) ++last;
        s += "; " + std::to_string(i) + " to " + std::to_string(last) + " wait at " + f.what + " in line " +
             std::to_string(f.at.line());
        i = last;
      }
    return s;
  }
  void end() {
    fibre().ended = true;
    ++ended_;
    set_ready(current_, false);
    go(pick());
  }

  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<std::vector<Meeting>> warps_;
  uint64_t ready_[16] = {};
  int count_ = 0, current_ = -1, last_ = -1, arrived_ = 0, ended_ = 0;
  uint64_t draws_ = 0;
  Place barrier_;
  std::vector<Line> dynamic_;
  std::span<std::byte> statics_;
  size_t shared_bytes_ = 0;
  const std::function<void()>* body_ = nullptr;
  char failure_[300] = {};
  jmp_buf host_;
};

inline Machine& machine() {
  static Machine the;
  return the;
}

inline void Machine::threads_life() {
  machine().arrived();
  for (Machine& m = machine();;) (*m.body_)(), m.end();
}

// ---- the matrix instructions, by the tables of the PTX manual

struct MatrixLane {
  uint32_t* r;
  const void* row;
};

// Lane 8 i + j gives the address of row j of the i-th 8 x 8 matrix; register i of lane l gets elements 2 (l mod 4) and
// + 1 of row l / 4 of that matrix, or of its transpose.
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transpose, const Place& at) {
  Machine& m = machine();
  MatrixLane mine{r, m.shared(row, 16, "ldmatrix")};
  m.meet(~0u, transpose ? "ldmatrix.trans" : "ldmatrix", at, &mine, [&](void** lanes) {
    const auto lane = [&](int i) { return static_cast<MatrixLane*>(lanes[i]); };
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      unsigned banks = 0;  // of eight rows read at once, each in a group of four banks
      for (int j = 0; j < 8; ++j) {
        memcpy(matrix[j], lane(8 * i + j)->row, 16);
        banks |= 1u << reinterpret_cast<uintptr_t>(lane(8 * i + j)->row) / 16 % 8;
      }
      m.bank_conflicts += 8 - std::popcount(banks);
      for (int l = 0; l < 32; ++l) {
        const int a = l / 4, b = l % 4 * 2;
        const uint16_t low = transpose ? matrix[b][a] : matrix[a][b];
        const uint16_t high = transpose ? matrix[b + 1][a] : matrix[a][b + 1];
        lane(l)->r[i] = low | static_cast<uint32_t>(high) << 16;
      }
    }
  });
}

struct MmaLane {
  float* d;
  const uint32_t *a, *b;
};

// d += a . b over 16 inner indices, ascending, each product exact and each sum rounded. (Hardware does not say how it
// adds: tests on it need a tolerance.)
__attribute__((optimize("O3"))) inline void multiply_fragments(void** lanes) {
  float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto* lane = static_cast<MmaLane*>(lanes[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int half = 0; half < 2; ++half)
        a[g + i % 2 * 8][t + i / 2 * 8 + half] = from_bf16(static_cast<uint16_t>(lane->a[i] >> 16 * half));
    for (int i = 0; i < 2; ++i)
      for (int half = 0; half < 2; ++half)
        b[t + i * 8 + half][g] = from_bf16(static_cast<uint16_t>(lane->b[i] >> 16 * half));
    for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][t + i % 2] = lane->d[i];
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaLane*>(lanes[l])->d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

// ---- shuffles and votes

template <class T>
struct ShuffleLane {
  T value, result;
  int source;
};

template <class T>
T shuffle(unsigned named, T value, int source, const Place& at) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ShuffleLane<T> mine{value, value, source};
  machine().meet(named, "a shuffle", at, &mine, [&](void** lanes) {
    for (int l = 0; l < 32; ++l)
      if (named >> l & 1) {
        auto* lane = static_cast<ShuffleLane<T>*>(lanes[l]);
        if (!(named >> lane->source & 1)) machine().fail("a shuffle reads from a lane that it does not name");
        lane->result = static_cast<ShuffleLane<T>*>(lanes[lane->source])->value;
      }
  });
  return mine.result;
}
inline int lane_index() { return static_cast<int>(machine().thread.x % 32); }

struct VoteLane {
  bool value;
  unsigned result;
};
inline unsigned ballot(unsigned named, bool value, const char* what, const Place& at) {
  VoteLane mine{value, 0};
  machine().meet(named, what, at, &mine, [&](void** lanes) {
    unsigned all = 0;
    for (int l = 0; l < 32; ++l)
      if (named >> l & 1 && static_cast<VoteLane*>(lanes[l])->value) all |= 1u << l;
    for (int l = 0; l < 32; ++l)
      if (named >> l & 1) static_cast<VoteLane*>(lanes[l])->result = all;
  });
  return mine.result;
}

}  // namespace emulator

// ---- what kernels/cuda/device.h declares

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulator::Place at = emulator::Place::current()) {
  emulator::load_matrices(r, row, false, at);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulator::Place at = emulator::Place::current()) {
  emulator::load_matrices(r, row, true, at);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     emulator::Place at = emulator::Place::current()) {
  emulator::MmaLane mine{d, a, b};
  emulator::machine().products += emulator::machine().thread.x % 32 == 0;
  emulator::machine().meet(~0u, "mma", at, &mine, emulator::multiply_fragments);
}
inline void copy_async16(void* shared, const void* global) { emulator::machine().copy(shared, global); }
inline void copy_async_commit() { emulator::machine().commit(); }
template <int groups>
void copy_async_wait() {
  emulator::machine().land(groups);
}

inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | bf16_bits(high); }

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
template <class T>
T fetch(const void* global) {
  emulator::machine().aligned(global, sizeof(T), "fetch");
  T value;
  memcpy(&value, global, sizeof(T));
  return value;
}
template <class T>
void put(void* to, T value) {
  emulator::machine().aligned(to, sizeof(T), "put");
  memcpy(to, &value, sizeof(T));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes, Stream, A... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...));
  emulator::machine().run(grid, threads, shared_bytes, [&] { kernel(static_cast<P>(arguments)...); });
}

}  // namespace quest

// ---- the language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define UNROLL
#define ROLLED
#define DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::quest::emulator::machine().dynamic())
#define threadIdx (::quest::emulator::machine().thread)
#define blockIdx (::quest::emulator::machine().block)
#define blockDim (::quest::emulator::machine().block_size)
#define gridDim (::quest::emulator::machine().grid)

inline void __syncthreads(quest::emulator::Place at = quest::emulator::Place::current()) {
  quest::emulator::machine().barrier(at);
}
inline void __syncwarp(unsigned named = ~0u, quest::emulator::Place at = quest::emulator::Place::current()) {
  quest::emulator::ballot(named, false, "__syncwarp", at);
}
template <class T>
T __shfl_sync(unsigned named, T value, int from, int width = 32,
              quest::emulator::Place at = quest::emulator::Place::current()) {
  const int lane = quest::emulator::lane_index();
  return quest::emulator::shuffle(named, value, (lane & ~(width - 1)) | (from & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(unsigned named, T value, int bits, int width = 32,
                  quest::emulator::Place at = quest::emulator::Place::current()) {
  const int lane = quest::emulator::lane_index(), from = lane ^ bits;
  return quest::emulator::shuffle(named, value, from / width > lane / width ? lane : from, at);
}
template <class T>
T __shfl_down_sync(unsigned named, T value, int by, int width = 32,
                   quest::emulator::Place at = quest::emulator::Place::current()) {
  const int lane = quest::emulator::lane_index();
  return quest::emulator::shuffle(named, value, lane % width + by < width ? lane + by : lane, at);
}
template <class T>
T __shfl_up_sync(unsigned named, T value, int by, int width = 32,
                 quest::emulator::Place at = quest::emulator::Place::current()) {
  const int lane = quest::emulator::lane_index();
  return quest::emulator::shuffle(named, value, lane % width >= by ? lane - by : lane, at);
}
inline unsigned __ballot_sync(unsigned named, bool value,
                              quest::emulator::Place at = quest::emulator::Place::current()) {
  return quest::emulator::ballot(named, value, "a vote", at);
}
inline bool __any_sync(unsigned named, bool value, quest::emulator::Place at = quest::emulator::Place::current()) {
  return quest::emulator::ballot(named, value, "a vote", at) != 0;
}
inline bool __all_sync(unsigned named, bool value, quest::emulator::Place at = quest::emulator::Place::current()) {
  return quest::emulator::ballot(named, value, "a vote", at) == named;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> by % 32);
}
inline uint32_t __float_as_uint(float f) { return std::bit_cast<uint32_t>(f); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
template <class T>
T atomicAdd(T* to, T value) {
  static_assert(std::is_integral_v<T>, "the order of a sum of floats must be fixed");
  const T was = *to;
  *to += value;
  return was;
}
