// What the tests take from the heap, where a GPU sees it too, so that the tests of a host's matrices run on hardware as
// they are: operator new serves from one block, whose first part is registered with the driver (pinned and mapped, not
// managed). Where the card sees all of the host's pages by itself, which is printed, a green run proves nothing of host
// pointers that reach a kernel: the emulator, which hides them, does.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstdio>
#include <new>

namespace {

constexpr size_t addresses = size_t{64} << 30, registered = size_t{2} << 30;
constexpr int classes = 40;  // of sizes: 2^class bytes

struct Free {
  Free* next;
};

class Heap {
 public:
  void* take(size_t bytes) {
    const int size = std::bit_width(std::max(bytes + sizeof(size_t) - 1, size_t{127}));  // at least 128
    const Lock lock(busy_);
    if (!base_) {
      base_ = static_cast<char*>(
          mmap(nullptr, addresses, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (base_ == MAP_FAILED) _exit(4);
    }
    if (Free* f = free_[size]) {
      free_[size] = f->next;
      return f;
    }
    // A class's pieces are multiples of 64 bytes long and begin at one; 64 before each hold its class.
    const size_t at = used_ + 64;
    used_ = at + (size_t{1} << size);
    if (used_ > addresses) _exit(4);
    *reinterpret_cast<int*>(base_ + at - 64) = size;
    return base_ + at;
  }
  void give(void* p) {
    if (!p) return;
    const int size = *reinterpret_cast<int*>(static_cast<char*>(p) - 64);
    const Lock lock(busy_);
    auto* f = static_cast<Free*>(p);
    f->next = free_[size];
    free_[size] = f;
  }
  void* block() const { return base_; }

 private:
  struct Lock {
    std::atomic_flag& flag;
    explicit Lock(std::atomic_flag& f) : flag(f) {
      while (flag.test_and_set(std::memory_order_acquire)) {}
    }
    ~Lock() { flag.clear(std::memory_order_release); }
  };
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  char* base_ = nullptr;
  size_t used_ = 0;
  Free* free_[classes] = {};
};
constinit Heap heap;

struct Registered : testing::Environment {
  void SetUp() override {
    const cudaError_t error = cudaHostRegister(heap.block(), registered, cudaHostRegisterDefault);
    ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error) << ": these tests need a GPU";
    int same = 0;  // whether a kernel uses the host's own address
    cudaDeviceGetAttribute(&same, cudaDevAttrCanUseHostPointerForRegisteredMem, 0);
    ASSERT_TRUE(same) << "the GPU has other addresses for the host's memory";
    int all = 0;
    cudaDeviceGetAttribute(&all, cudaDevAttrPageableMemoryAccess, 0);
    printf("this card sees %s\n", all ? "all of the host's memory" : "only what of the host's memory is registered");
  }
};
[[maybe_unused]] testing::Environment* const environment = testing::AddGlobalTestEnvironment(new Registered);

}  // namespace

void* operator new(size_t bytes) { return heap.take(bytes); }
void* operator new(size_t bytes, std::align_val_t) { return heap.take(bytes); }  // to 64 bytes
void operator delete(void* p) noexcept { heap.give(p); }
void operator delete(void* p, size_t) noexcept { heap.give(p); }
void operator delete(void* p, std::align_val_t) noexcept { heap.give(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { heap.give(p); }
