// Every op of the CUDA backend but the matmuls, executed by the emulator at its three schedules (or three times by a card): the CPU backend's
// tests over this table (tests/kernels/ops_tests.h), so against ref.h in double, with NaN and canaries beside every
// matrix; and the same bits at every schedule. What was executed is printed.
#include <map>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/cuda/runtime.h"
#include "kernels/matmul.h"
#include "tests/check.h"
#include "tests/cuda/hardware.h"

namespace quest {
namespace {

using emulator::Schedule;

const Ops& real_ops() {
  static const Ops ops = cuda_ops(Type::f32);
  return ops;
}
std::map<const void*, std::map<Schedule, int64_t>>& executed() {
  static std::map<const void*, std::map<Schedule, int64_t>> calls;
  return calls;
}

// An op that runs at one schedule.
template <Schedule schedule, auto op>
struct At;
template <Schedule schedule, class... A, void (*Ops::*op)(const Context&, A...)>
struct At<schedule, op> {
  static void run(const Context& c, A... a) {
    emulator::machine().schedule = schedule;
    ++executed()[reinterpret_cast<const void*>(real_ops().*op)][schedule];
    (real_ops().*op)(c, a...);
    c.device->wait();
  }
};
// embed() copies, and only to the arena.
void embed_there(const Context& c, View table, const int32_t* ids, View x) {
  const Scratch scope(*c.arena);
  const View there{c.arena->array<float>(x.rows * x.stride, "test/rows"), x.type, x.rows, x.cols, x.stride};
  real_ops().embed(c, table, ids, there);
  for (int64_t i = 0; i < x.rows; ++i)
    c.device->receive(row_pointer(x, i), row_pointer(there, i), static_cast<size_t>(x.cols) * sizeof(float));
}
template <Schedule schedule, auto... op>
Ops at(Type activation) {
  Ops o = real_ops();
  o.activation = activation, o.embed = embed_there;
  ((o.*op = At<schedule, op>::run), ...);
  return o;
}
template <Schedule schedule>
Ops all_at(Type activation) {
  return at<schedule, &Ops::gather, &Ops::gather_backward, &Ops::add, &Ops::zero, &Ops::rmsnorm, &Ops::rmsnorm_backward,
            &Ops::rope, &Ops::rope_backward, &Ops::attention, &Ops::attention_backward, &Ops::swiglu,
            &Ops::swiglu_backward, &Ops::pool, &Ops::pool_backward, &Ops::normalize, &Ops::normalize_backward,
            &Ops::similarity, &Ops::similarity_backward, &Ops::contrastive, &Ops::contrastive_backward, &Ops::norm,
            &Ops::adamw>(activation);
}

struct Backends {
  std::shared_ptr<Device> device;
  std::unique_ptr<Arena> arena;  // the device's, for scratch
  Bench one, two, seven, reference;
  explicit Backends(Type activation)
      : one(all_at<Schedule::forward>(activation), 1),
        two(all_at<Schedule::random>(activation), 1),
        seven(all_at<Schedule::reverse>(activation), 1),
        reference(ref::ref_ops<double>(), 1) {
    emulator::gpu() = {.present = true};
    device = Device::open(true);
    arena = arena_on(*device, 64 << 20);
    for (Bench* b : {&one, &two, &seven}) {
      b->context.device = device.get(), b->context.arena = arena.get();
      b->poison = [a = arena.get()] {
        const Scratch scope(*a);
        fill_nan(a->allocate(1 << 20, {"test/poisoned", "bytes", 1 << 20, 1}), 1 << 20);
      };
    }
  }
  Type activation() const { return one.ops.activation; }
  static double in_a_row(double n) { return n + 1; }  // roundings of a dot product of n terms
};

}  // namespace
}  // namespace quest

#define SUITE CudaOps
#include "tests/kernels/ops_tests.h"

namespace quest {
namespace {

// Heads larger than the CPU's tests have, of which a lane has several columns; long groups, of many chunks.
TEST(CudaOps, AttentionOfLargeHeadsAndLongGroups) {
  Random r(19);
  Backends b(Type::bf16);
  for (const int64_t size : {80, 128, 130, 256}) {
    AttentionCase a(r, {2, 1, size}, Type::bf16, true, {{33, 9, 9}, {33, 1, 1}});
    expect_attention(a, b, 1);
    expect_gradients(a, b, 1);
  }
  AttentionCase a(r, {2, 2, 16}, Type::bf16, true, {{3, 70, 70}, {3, 40, 33}, {3, 65, 1}});
  expect_attention(a, b, 1);
  expect_gradients(a, b, 1);
  AttentionCase too_large(r, {1, 1, 258}, Type::bf16, true, {{0, 1, 1}});
  EXPECT_THROW(too_large.forward(b.two, 0), Error);
}

// Rows of more columns than a block takes.
TEST(CudaOps, WideRows) {
  Random r(20);
  Backends b(Type::f32);
  Matrix x = f32(3, 2500).random(r), y = f32(3, 2500).random(r), sum = y;
  b.two.ops.add(b.two.context, x.view(), sum.view());
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t j = 0; j < 2500; ++j)
      ASSERT_EQ(sum.at(i, j), static_cast<float>(y.at(i, j) + x.at(i, j))) << i << ", " << j;
  EXPECT_TRUE(sum.padding_intact());
}

TEST(CudaOps, WhatWasExecuted) {
  const std::pair<const char*, const void*> names[] = {
#define OP(name) {#name, reinterpret_cast<const void*>(real_ops().name)}
      OP(gather),     OP(gather_backward),     OP(add),         OP(zero),
      OP(rmsnorm),    OP(rmsnorm_backward),    OP(rope),        OP(rope_backward),
      OP(attention),  OP(attention_backward),  OP(swiglu),      OP(swiglu_backward),
      OP(pool),       OP(pool_backward),       OP(normalize),   OP(normalize_backward),
      OP(similarity), OP(similarity_backward), OP(contrastive), OP(contrastive_backward),
      OP(norm),       OP(adamw)};
#undef OP
  if (executed().size() < std::size(names)) GTEST_SKIP() << "not all tests of this file ran before";
  for (const auto& [name, op] : names) {
    const auto& calls = executed()[op];
    EXPECT_EQ(calls.size(), 3u) << name;
    printf("    %-22s", name);
    for (const auto& [schedule, count] : calls) printf("  %s %ld", emulator::name_of(schedule), count);
    printf("\n");
  }
}

}  // namespace
}  // namespace quest
