#include "kernels/base/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

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
    fail(Exit::machine, "memory: %.1f MiB more were needed with %.1f of %.1f MiB in use; use shorter texts, a smaller "
         "batch or --text-cache 0", bytes / 0x1p20, used_ / 0x1p20, limit_ / 0x1p20);
  void* p = base_ + used_;
  used_ += rounded;
  if (used_ > peak_) peak_ = used_;
  return p;
}

void Arena::poison() { memset(base_ + used_, 0xff, peak_ - used_); }

static size_t read_number(const char* path, const char* format) {
  FILE* f = fopen(path, "r");
  if (!f) return SIZE_MAX;
  char line[256];
  size_t number = SIZE_MAX;
  while (number == SIZE_MAX && fgets(line, sizeof line, f))
    if (sscanf(line, format, &number) != 1) number = SIZE_MAX;
  fclose(f);
  return number;
}

size_t available_memory() {
  size_t available = read_number("/proc/meminfo", "MemAvailable: %zu kB");
  available = available == SIZE_MAX ? size_t{4} << 30 : available * 1024;
  const size_t limit = read_number("/sys/fs/cgroup/memory.max", "%zu");
  const size_t current = read_number("/sys/fs/cgroup/memory.current", "%zu");
  if (limit != SIZE_MAX && current != SIZE_MAX && limit > current && limit - current < available)
    available = limit - current;
  return available;
}

}  // namespace quest
