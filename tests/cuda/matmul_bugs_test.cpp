// The checks of matmul_test.cpp see mistakes: the kernels are compiled here with each of these built in, to be switched
// on one at a time. The kernels know nothing of it: names that they use stand for others.
#include <gtest/gtest.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/matmul.cuh"
#include "tests/cuda/matmul_check.h"

using namespace quest;
using emulator::Schedule;

namespace {

enum class Bug { none, barrier, wait, fragment, nested, tail };

struct Switch {
  Bug bug = Bug::none;
  int site = 0;  // of the barrier that is missing
};
Switch& bugs() {
  static Switch the;
  return the;
}

void barrier_but_one(int site, emulator::Place at = emulator::Place::current()) {
  if (bugs().bug != Bug::barrier || bugs().site != site) __syncthreads(at);
}
template <int groups>
void wait_one_short() {
  bugs().bug == Bug::wait ? copy_async_wait<groups + 1>() : copy_async_wait<groups>();
}
void mma_swapped(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const bool swap = bugs().bug == Bug::fragment;  // rows g and g + 8
  const uint32_t swapped[4] = {a[swap], a[!swap], a[2 + swap], a[2 + !swap]};
  mma_bf16(d, swapped, b);
}
int64_t nested_block() { return bugs().bug == Bug::nested ? 2 * nf4_nested_block : nf4_nested_block; }
int64_t tiles_but_one(int64_t count, int64_t size) { return tiles_of(count - (bugs().bug == Bug::tail), size); }

constexpr int first_site = __COUNTER__ + 1;

}  // namespace

#define cuda_matmul broken_matmul
#define cuda_matmul_backward broken_matmul_backward
#define __syncthreads() barrier_but_one(__COUNTER__ - first_site)
#define copy_async_wait wait_one_short
#define mma_bf16 mma_swapped
#define nf4_nested_block nested_block()
#define tiles_of tiles_but_one
#include "kernels/cuda/matmul.cu"
#undef tiles_of
#undef nf4_nested_block
#undef mma_bf16
#undef copy_async_wait
#undef __syncthreads
#undef cuda_matmul_backward
#undef cuda_matmul

namespace {

constexpr int sites = __COUNTER__ - first_site;

// NF4 of 200 x 96: more than one nested block, two steps and more; 129 rows: one in the last tile.
std::vector<MatmulCase> cases(Rung rung) {
  std::vector<MatmulCase> out;
  const int64_t rows = rung == Rung::plain ? 5 : 129;
  for (const bool forward : {true, false})
    for (const Schedule s : emulator::schedules)
      out.push_back({{Type::nf4, "nf4"}, forward, rung, s, rows, 200, 96});
  return out;
}

// How many of the cases fail, by schedule.
std::vector<int> failures(Bug bug, int site = 0, std::vector<Rung> rungs = {Rung::plain, Rung::tile, Rung::tensor}) {
  bugs() = {bug, site};
  std::vector<int> failed(3);
  for (const Rung rung : rungs)
    for (const MatmulCase& c : cases(rung))
      failed[static_cast<int>(c.schedule)] += check(c, broken_matmul, broken_matmul_backward) != "";
  bugs() = {};
  return failed;
}

TEST(CudaMatmulBugs, WithoutOneAllChecksPass) { EXPECT_EQ(failures(Bug::none), std::vector<int>(3)); }

TEST(CudaMatmulBugs, EachMissingBarrierFailsBothDirections) {
  EXPECT_EQ(sites, 7);  // 1 of the plain rung, 3 of the tile's, 3 of the tensor cores'
  for (int site = 0; site < 7; ++site) {
    const Rung rung = site < 1 ? Rung::plain : site < 4 ? Rung::tile : Rung::tensor;
    const std::vector<int> failed = failures(Bug::barrier, site, {rung});
    for (const Schedule s : {Schedule::forward, Schedule::reverse})  // random order may be a lucky one
      EXPECT_EQ(failed[static_cast<int>(s)], 2) << site << " " << name_of(s);
  }
}

TEST(CudaMatmulBugs, AWaitOneStageShortFails) {
  EXPECT_EQ(failures(Bug::wait, 0, {Rung::tensor}), std::vector<int>(3, 2));
}

TEST(CudaMatmulBugs, ASwappedFragmentRowFails) {
  EXPECT_EQ(failures(Bug::fragment, 0, {Rung::tensor}), std::vector<int>(3, 2));
}

TEST(CudaMatmulBugs, AWrongNestedScaleFailsOnEveryRung) {
  EXPECT_EQ(failures(Bug::nested), std::vector<int>(3, 6));
}

TEST(CudaMatmulBugs, AnOffByOneTailFailsOnTiles) {
  EXPECT_EQ(failures(Bug::tail, 0, {Rung::tile, Rung::tensor}), std::vector<int>(3, 4));
}

}  // namespace
