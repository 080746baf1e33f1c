// The device: what it says when it cannot work, and that what is sent through the staging buffer arrives.
#include "kernels/cuda/runtime.h"

#include <filesystem>
#include <regex>
#include <set>

#include "kernels/backend.h"
#include "kernels/base/file.h"
#include "tests/check.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

using emulator::gpu;

std::string refusal(const emulator::Gpu& how) {
  gpu() = how;
  return sentence_of(Exit::machine, [] { open_device("gpu"); });
}

TEST(CudaRuntime, SaysWhyThereIsNoGpu) {
  expect_contains(refusal({.driver = 0}), "found none; install the driver");
  expect_contains(refusal({.driver = 11040}), "found one for 11.4; update it");
  expect_contains(refusal({.present = true, .major = 7, .minor = 5}), "compute capability 8.0 or later, found 7.5");
  expect_contains(refusal({.present = true, .fails = "cudaHostAlloc", .how = cudaErrorMemoryAllocation}),
                  "no memory for the staging buffer");
  expect_contains(refusal({.present = true, .fails = "cudaSetDevice", .how = cudaErrorNoKernelImageForDevice}),
                  "CUDA_ARCHS=all");
  // Without being asked for one: the CPU.
  for (const emulator::Gpu& none : {emulator::Gpu{.driver = 0}, {.driver = 11040}, {.present = true, .major = 7}}) {
    gpu() = none;
    EXPECT_EQ(open_device("auto"), nullptr);
  }
  gpu() = {.present = true, .fails = "cudaSetDevice"};  // somebody else has it for himself
  EXPECT_EQ(open_device("auto"), nullptr);
  gpu() = {.present = true};
  EXPECT_EQ(open_device("cpu"), nullptr);
  EXPECT_NE(open_device("auto"), nullptr);
}

TEST(CudaRuntime, TheArenaIsAskedForOnceAndRefusedInASentence) {
  gpu() = {.present = true, .memory = 1 << 20};
  const auto device = open_device("gpu");
  expect_contains(sentence_of(Exit::machine, [&] { arena_on(*device, 2 << 20); }), "no memory for an arena of 2.0 MiB");
  EXPECT_EQ(arena_on(*device, 1 << 20)->room(), size_t{1} << 20);
}

// More than the buffer holds, in pieces that do not fill its halves.
TEST(CudaRuntime, WhatIsSentArrives) {
  gpu() = {.present = true};
  const auto device = open_device("gpu");
  const size_t bytes = 3 * Device::half + 12345;
  const auto arena = arena_on(*device, 2 * bytes + 4096);
  std::vector<std::byte> data(bytes), back(bytes);
  Random r(1);
  for (std::byte& b : data) b = std::byte(r.below(256));
  std::byte* to = arena->array<std::byte>(bytes, "test/bytes");
  size_t at = 0;
  for (const size_t piece : {size_t{1}, size_t{100}, Device::half - 7, Device::half, size_t{64}})
    device->send(to + at, data.data() + at, piece), at += piece;
  device->send(to + at, data.data() + at, bytes - at);
  device->receive(back.data(), to, bytes);
  EXPECT_EQ(back, data);

  const int64_t rows = 5000, row = 2400, stride = 2500;
  std::byte* matrix = arena->array<std::byte>(rows * stride, "test/matrix");
  int64_t made = 0;
  device->send_rows(matrix, stride, row, rows, [&](std::byte* piece, int64_t first, int64_t count) {
    EXPECT_EQ(first, made);
    EXPECT_LE(count * row, int64_t(Device::half));
    memset(piece, 1, count * row);
    made += count;
  });
  EXPECT_EQ(made, rows);
  int64_t ones = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < stride; ++j) ones += matrix[i * stride + j] == std::byte{1};
  EXPECT_EQ(ones, rows * row);
}

// The ceilings of quest bench do the work that they count.
TEST(CudaRuntime, CeilingsDoWhatTheyCount) {
  gpu() = {.present = true};
  const auto device = Device::open(true);
  const auto arena = arena_on(*device, 1 << 20);
  int64_t& products = emulator::machine().products;
  const int64_t before = products;
  const double flop = multiply_adds(*device, 1);
  EXPECT_EQ(flop, 2.0 * 16 * 8 * 16 * static_cast<double>(products - before));
  EXPECT_GT(flop, 1e8);
  void* memory = arena->allocate(1 << 16, {"test/memory", "bytes", 1 << 16, 1});
  read_memory(*device, memory, 1 << 16);
  EXPECT_EQ(device->launches, 1 + 10);
}

// runtime.h's list is all that kernels/cuda/ calls of CUDA's runtime.
TEST(CudaRuntime, CallsAClosedListOfFunctions) {
  std::set<std::string> listed, called;
  const std::regex function("\\bcuda[A-Z][A-Za-z0-9]*");
  const auto collect = [&](const std::string& text, std::set<std::string>& into, const std::string& behind) {
    for (std::sregex_iterator i(text.begin(), text.end(), function), end; i != end; ++i) {
      const size_t next = i->position() + i->length();
      if (behind.empty() || text.compare(next, behind.size(), behind) == 0) into.insert(i->str());
    }
  };
  const std::string folder = SOURCE_ROOT "/kernels/cuda/", header = read_file(folder + "runtime.h");
  const size_t begin = header.find("// Only these functions"), end = header.find("#pragma once");
  ASSERT_TRUE(begin != header.npos && end != header.npos);
  collect(header.substr(begin, end - begin), listed, "");
  for (const auto& entry : std::filesystem::directory_iterator(folder)) collect(read_file(entry.path()), called, "(");
  EXPECT_GE(called.size(), 15u);
  EXPECT_EQ(called, listed);
}

}  // namespace
}  // namespace quest
