#include "kernels/base/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "kernels/base/error.h"

namespace quest {

Arena::Arena(size_t limit) : limit_(limit) {
  void* p = mmap(nullptr, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    fail(Exit::machine, "memory: cannot reserve %.1f GiB of addresses: %s; lower the limit", limit / 0x1p30,
         strerror(errno));
  madvise(p, limit, MADV_HUGEPAGE);
  base_ = static_cast<std::byte*>(p);
}

Arena::~Arena() { munmap(base_, limit_); }

void* Arena::allocate(size_t bytes) {
  const size_t rounded = (bytes + 63) & ~size_t{63};
  if (rounded < bytes || rounded > limit_ - used_)
    fail(Exit::machine,
         "memory: %.1f MiB more were needed with %.1f of %.1f MiB in use; use shorter texts, "
         "a smaller batch or --text-cache 0",
         bytes / 0x1p20, used_ / 0x1p20, limit_ / 0x1p20);
  void* p = base_ + used_;
  used_ += rounded;
  peak_ = std::max(peak_, used_);
  return p;
}

void Arena::poison() { memset(base_ + used_, 0xff, peak_ - used_); }

size_t available_memory() {
  size_t available = size_t{4} << 30, limit, used;  // 4 GiB where nothing can be read
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);)
    if (size_t kib; sscanf(line.c_str(), "MemAvailable: %zu", &kib) == 1) available = kib * 1024;
  std::ifstream group("/sys/fs/cgroup/memory.max"), current("/sys/fs/cgroup/memory.current");
  if (group >> limit && current >> used && limit > used) available = std::min(available, limit - used);
  return available;
}

}  // namespace quest
