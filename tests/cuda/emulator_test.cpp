// The emulator itself: it computes what the PTX manual says, and each kind of mistake is seen.
#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/check.h"

using namespace quest;
using emulator::Schedule;

namespace {

// Runs f on a machine with the schedule; what it failed with, or "".
template <class F>
std::string run_as(Schedule schedule, F&& f, uint64_t seed = 1) {
  emulator::machine().schedule = schedule, emulator::machine().seed = seed;
  try {
    f();
  } catch (const emulator::Failure& e) {
    return e.what();
  }
  return "";
}

bool is_nan(float f) { return f != f; }

// ---- matrix instructions. Fragments element by element, in the words of the PTX manual (mma.m16n8k16, .bf16).

struct Fragments {
  static int row_a(int lane, int i) { return i < 2 || (i >= 4 && i < 6) ? lane >> 2 : (lane >> 2) + 8; }
  static int col_a(int lane, int i) { return i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8; }
  static int row_b(int lane, int i) { return i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8; }
  static int col_b(int lane) { return lane >> 2; }
  static int row_c(int lane, int i) { return i < 2 ? lane >> 2 : (lane >> 2) + 8; }
  static int col_c(int lane, int i) { return lane % 4 * 2 + (i & 1); }
};

__global__ void multiply_by_definition(const uint16_t* a, const uint16_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t fa[4] = {}, fb[2] = {};
  float fd[4];
  for (int i = 0; i < 8; ++i)
    fa[i / 2] |= static_cast<uint32_t>(a[Fragments::row_a(lane, i) * 16 + Fragments::col_a(lane, i)]) << i % 2 * 16;
  for (int i = 0; i < 4; ++i)
    fb[i / 2] |= static_cast<uint32_t>(b[Fragments::row_b(lane, i) * 8 + Fragments::col_b(lane)]) << i % 2 * 16;
  for (int i = 0; i < 4; ++i) fd[i] = d[Fragments::row_c(lane, i) * 8 + Fragments::col_c(lane, i)];
  mma_bf16(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[Fragments::row_c(lane, i) * 8 + Fragments::col_c(lane, i)] = fd[i];
}

// The same through shared memory: a by rows, b by rows (transposed while it is read) or by columns.
__global__ void multiply_from_shared(const uint16_t* a, const uint16_t* b, float* d, bool transposed) {
  DYNAMIC_SHARED(uint16_t, shared);  // a [16][16], then b: [16][16] with 8 columns used, or [16 columns][16]
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i], shared[256 + i] = 0;
  __syncwarp();
  for (int i = lane; i < 128; i += 32)
    shared[256 + (transposed ? i % 8 * 16 + i / 8 : i / 8 * 16 + i % 8)] = b[i];
  __syncwarp();
  uint32_t fa[4], both[4];
  float fd[4] = {};
  ldmatrix_x4(fa, shared + lane % 16 * 16 + lane / 16 * 8);
  if (transposed)
    ldmatrix_x4(both, shared + 256 + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
  else
    ldmatrix_x4_trans(both, shared + 256 + lane % 16 * 16 + lane / 16 * 8);
  const uint32_t fb[2] = {both[0], both[1]};
  mma_bf16(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[Fragments::row_c(lane, i) * 8 + Fragments::col_c(lane, i)] = fd[i];
}

TEST(Emulator, MatrixInstructionsMultiply) {
  Random r(1);
  std::vector<uint16_t> a(256), b(128);
  for (uint16_t& x : a) x = to_bf16(static_cast<float>(r.below(64) - 32));  // sums are exact
  for (uint16_t& x : b) x = to_bf16(static_cast<float>(r.below(64) - 32));
  std::vector<float> want(128);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 16; ++k) want[i * 8 + j] += from_bf16(a[i * 16 + k]) * from_bf16(b[k * 8 + j]);
  for (const Schedule s : emulator::schedules) {
    std::vector<float> d(128, 1.0f), shared(128), transposed(128);
    EXPECT_EQ(run_as(s, [&] { launch(multiply_by_definition, Grid{}, 32, 0, nullptr, a.data(), b.data(), d.data()); }),
              "");
    for (float& x : d) x -= 1.0f;
    EXPECT_EQ(d, want);
    for (const bool t : {false, true}) {
      std::vector<float> got(128);
      EXPECT_EQ(run_as(s, [&] {
        launch(multiply_from_shared, Grid{}, 32, 1024, nullptr, a.data(), b.data(), got.data(), t);
      }), "");
      EXPECT_EQ(got, want) << t;
    }
  }
}

__global__ void count_conflicts(int stride) {
  DYNAMIC_SHARED(uint16_t, shared);
  uint32_t r[4];
  ldmatrix_x4(r, shared + (threadIdx.x % 8) * stride);
}

TEST(Emulator, BankConflictsAreCounted) {
  emulator::Machine& m = emulator::machine();
  const int64_t before = m.bank_conflicts;
  EXPECT_EQ(run_as(Schedule::forward, [&] { launch(count_conflicts, Grid{}, 32, 4096, nullptr, 72); }), "");
  EXPECT_EQ(m.bank_conflicts, before);
  EXPECT_EQ(run_as(Schedule::forward, [&] { launch(count_conflicts, Grid{}, 32, 4096, nullptr, 64); }), "");
  EXPECT_EQ(m.bank_conflicts, before + 4 * 7);
}

// ---- shuffles and votes

__global__ void exchange(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = static_cast<int>(threadIdx.x);
  int* mine = out + 8 * t;
  mine[0] = __shfl_sync(~0u, lane, 5);
  mine[1] = __shfl_xor_sync(~0u, lane, 3);
  mine[2] = __shfl_down_sync(~0u, lane, 4, 16);
  mine[3] = __shfl_up_sync(~0u, lane, 1, 8);
  mine[4] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  mine[5] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
  if (lane < 16)  // halves apart: each names its own
    mine[6] = __shfl_sync(0xffffu, lane, 15, 16);
  else
    mine[6] = __shfl_sync(0xffff0000u, lane, 15, 16);
  mine[7] = static_cast<int>(__shfl_xor_sync(~0u, static_cast<double>(lane), 16));
}

TEST(Emulator, ShufflesAndVotes) {
  for (const Schedule s : emulator::schedules) {
    std::vector<int> out(8 * 64);
    EXPECT_EQ(run_as(s, [&] { launch(exchange, Grid{}, 64, 0, nullptr, out.data()); }), "");
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      const std::vector<int> want = {5,
                                     lane ^ 3,
                                     lane % 16 < 12 ? lane + 4 : lane,
                                     lane % 8 ? lane - 1 : lane,
                                     0x49249249,
                                     1,
                                     lane < 16 ? 15 : 31,
                                     lane ^ 16};
      EXPECT_EQ(std::vector<int>(&out[8 * t], &out[8 * t] + 8), want) << t;
    }
  }
}

// ---- asynchronous copies

__global__ void copies(const float* from, float* early, float* after_one, float* after_all) {
  DYNAMIC_SHARED(float, shared);  // two groups of four floats
  shared[0] = 1, shared[4] = 1;
  copy_async16(shared, from), copy_async_commit();
  copy_async16(shared + 4, from + 4), copy_async_commit();
  early[0] = shared[0], early[1] = shared[4];
  copy_async_wait<1>();
  after_one[0] = shared[0], after_one[1] = shared[4];
  copy_async_wait<0>();
  after_all[0] = shared[0], after_all[1] = shared[4];
}

TEST(Emulator, CopiesLandAtTheirWait) {
  alignas(16) const float from[8] = {2, 3, 4, 5, 6, 7, 8, 9};
  float early[2], one[2], all[2];
  EXPECT_EQ(run_as(Schedule::forward, [&] { launch(copies, Grid{}, 1, 32, nullptr, &from[0], early, one, all); }), "");
  EXPECT_TRUE(is_nan(early[0]) && is_nan(early[1]));  // what stood there before is gone, too
  EXPECT_TRUE(one[0] == 2 && is_nan(one[1]));
  EXPECT_TRUE(all[0] == 2 && all[1] == 6);
}

__global__ void copy_to(const float* from, int offset) {
  DYNAMIC_SHARED(float, shared);
  copy_async16(shared + offset, from);
}

// ---- races, barriers, bounds

__global__ void neighbours(float* out, bool barrier) {
  __shared__ float values[64];
  const unsigned t = threadIdx.x;
  values[t] = static_cast<float>(t);
  if (barrier) __syncthreads();
  out[t] = values[(t + 63) % 64];
}

TEST(Emulator, AMissingBarrierIsSeen) {
  for (const Schedule s : emulator::schedules)
    for (const bool barrier : {true, false}) {
      std::vector<float> out(64, -1);
      EXPECT_EQ(run_as(s, [&] { launch(neighbours, Grid{}, 64, 0, nullptr, out.data(), barrier); }), "");
      int wrong = 0;
      for (int t = 0; t < 64; ++t) wrong += !(out[t] == static_cast<float>((t + 63) % 64));
      if (barrier) EXPECT_EQ(wrong, 0) << name_of(s);
      // Forward every thread's lower neighbour was there before; the other schedules show the race.
      else if (s == Schedule::forward) EXPECT_EQ(wrong, 1);
      else EXPECT_GT(wrong, 20) << name_of(s);
    }
}

template <int size>  // a variable of a template is another for each
__global__ void before_anything_is_written(float* out) {
  __shared__ float fixed[size];
  DYNAMIC_SHARED(float, sized);
  out[2 * blockIdx.x] = fixed[3], out[2 * blockIdx.x + 1] = sized[3];
  fixed[3] = sized[3] = 1;
}

TEST(Emulator, EveryBlockFindsPoison) {
  std::vector<float> out(6, 0);
  EXPECT_EQ(run_as(Schedule::forward,
                   [&] { launch(before_anything_is_written<4>, Grid{3}, 1, 16, nullptr, out.data()); }), "");
  for (const float f : out) EXPECT_TRUE(is_nan(f));
}

__global__ void some_leave(int kind) {
  const unsigned t = threadIdx.x;
  if (kind == 0 && t == 40) return;
  if (kind == 1 && t == 40) __syncthreads();
  else __syncthreads();
}
__global__ void some_lanes_leave(int kind) {
  const unsigned lane = threadIdx.x % 32;
  if (kind == 0 && lane == 7) return;
  if (kind == 1 && lane == 7) __ballot_sync(~0u, true);
  else if (kind == 2) __shfl_sync(0xffu, 1, 0);
  else if (kind == 3 && lane < 8) __shfl_sync(0xffu, 1, 9);
  else __syncwarp();
}

TEST(Emulator, WhatWouldHangIsReported) {
  for (const Schedule s : emulator::schedules) {
    const auto whole = [&](int kind) { return run_as(s, [&] { launch(some_leave, Grid{}, 64, 0, nullptr, kind); }); };
    const auto warp = [&](int kind, int threads = 64) {
      return run_as(s, [&] { launch(some_lanes_leave, Grid{}, threads, 0, nullptr, kind); });
    };
    EXPECT_EQ(whole(2), "");
    EXPECT_NE(whole(0).find("does not end: 1 of 64 threads have ended"), std::string::npos) << whole(0);
    EXPECT_NE(whole(1).find("waits at a barrier in line"), std::string::npos) << whole(1);
    EXPECT_EQ(warp(4), "");
    EXPECT_NE(warp(0).find("wait at __syncwarp"), std::string::npos) << warp(0);
    EXPECT_NE(warp(1).find("wait at a vote"), std::string::npos) << warp(1);
    EXPECT_NE(warp(2).find("does not name the lane"), std::string::npos) << warp(2);
    EXPECT_NE(warp(3).find("a lane that it does not name"), std::string::npos) << warp(3);
    EXPECT_NE(warp(4, 40).find("lanes that do not exist"), std::string::npos) << warp(4, 40);
    EXPECT_EQ(whole(2), "") << "the machine goes on after a failure";
  }
}

__global__ void write_at(int i) {
  DYNAMIC_SHARED(float, shared);
  shared[i] = 0;
}
__global__ void fetch_at(const char* p, float* out) { *out = fetch<float>(p); }
__global__ void read_rows(int offset) {
  DYNAMIC_SHARED(uint16_t, shared);
  uint32_t r[4];
  ldmatrix_x4(r, shared + offset);
}

TEST(Emulator, AddressesAreChecked) {
  alignas(16) const float from[8] = {};
  float out;
  const auto forward = [](auto&& f) { return run_as(Schedule::forward, f); };
  EXPECT_EQ(forward([&] { launch(write_at, Grid{}, 1, 40, nullptr, 9); }), "");
  EXPECT_NE(forward([&] { launch(write_at, Grid{}, 1, 40, nullptr, 10); }).find("past the end"), std::string::npos);
  EXPECT_NE(forward([&] { launch(write_at, Grid{}, 1, 99 * 1024 + 4, nullptr, 9); }).find("sm_86"), std::string::npos);
  const char* bytes = reinterpret_cast<const char*>(from);
  EXPECT_EQ(forward([&] { launch(fetch_at, Grid{}, 1, 0, nullptr, bytes + 4, &out); }), "");
  EXPECT_NE(forward([&] { launch(fetch_at, Grid{}, 1, 0, nullptr, bytes + 2, &out); }).find("multiple of 4"),
            std::string::npos);
  EXPECT_EQ(forward([&] { launch(read_rows, Grid{}, 32, 64, nullptr, 8); }), "");
  EXPECT_NE(forward([&] { launch(read_rows, Grid{}, 32, 64, nullptr, 4); }).find("multiple of 16"), std::string::npos);
  EXPECT_NE(forward([&] { launch(read_rows, Grid{}, 32, 64, nullptr, 32); }).find("not an address in shared"),
            std::string::npos);
  EXPECT_EQ(forward([&] { launch(copy_to, Grid{}, 1, 64, nullptr, &from[0], 4); }), "");
  EXPECT_NE(forward([&] { launch(copy_to, Grid{}, 1, 64, nullptr, &from[1], 4); }).find("multiple of 16"),
            std::string::npos);
  EXPECT_NE(forward([&] { launch(copy_to, Grid{}, 1, 64, nullptr, &from[0], 2); }).find("multiple of 16"),
            std::string::npos);
  EXPECT_NE(forward([&] { launch(copy_to, Grid{}, 1, 64, nullptr, &from[0], 16); }).find("not an address in shared"),
            std::string::npos);
}

// ---- schedules

__global__ void note_order(int* order, int* next) {
  order[(*next)++] = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  __syncthreads();
  order[(*next)++] = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
}

TEST(Emulator, SchedulesAreWhatTheySay) {
  const auto order = [](Schedule s, uint64_t seed) {
    std::vector<int> out(256);
    int next = 0;
    EXPECT_EQ(run_as(s, [&] { launch(note_order, Grid{2}, 64, 0, nullptr, out.data(), &next); }, seed), "");
    return out;
  };
  std::vector<int> up, down;
  for (int i = 0; i < 256; ++i) up.push_back(i / 128 * 64 + i % 64), down.push_back(127 - up.back());
  // Who comes last to a barrier goes on only in its turn.
  EXPECT_EQ(order(Schedule::forward, 1), up);
  EXPECT_EQ(order(Schedule::reverse, 1), down);
  std::vector<int> a = order(Schedule::random, 7);
  EXPECT_NE(a, order(Schedule::random, 8));
  std::sort(a.begin(), a.end()), std::sort(up.begin(), up.end());
  EXPECT_EQ(a, up);
}

}  // namespace
