// LD_PRELOAD: makes the N-th allocation from the heap fail: malloc, calloc, realloc, aligned_alloc and posix_memalign,
// of any thread. Counted from main() on: before it CUDA's runtime registers the kernels, and what it does without memory
// is not ours.
//
//   HEAP_FAULT_AT     the one that fails, from 1; 0: none
//   HEAP_FAULT_COUNT  a file that holds, when the program has ended, the number of allocations and the most bytes that
//                     were in use at once
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// glibc's own: to find them by dlsym would allocate.
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

static atomic_long allocations, in_use, most;
static long failing;

typedef int Main(int, char**, char**);
static Main* program;

static int start(int argc, char** argv, char** environment) {
  const char* at = getenv("HEAP_FAULT_AT");
  atomic_store(&allocations, 0);
  failing = at ? atol(at) : 0;
  return program(argc, argv, environment);
}

int __libc_start_main(Main* function, int argc, char** argv, void (*begin)(void), void (*finish)(void),
                      void (*loader)(void), void* stack) {
  int (*real)(Main*, int, char**, void (*)(void), void (*)(void), void (*)(void), void*);
  *(void**)&real = dlsym(RTLD_NEXT, "__libc_start_main");
  program = function;
  return real(start, argc, argv, begin, finish, loader, stack);
}

__attribute__((destructor)) static void end(void) {
  const char* path = getenv("HEAP_FAULT_COUNT");
  const int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
  if (fd < 0) return;
  dprintf(fd, "%ld %ld\n", atomic_load(&allocations), atomic_load(&most));
  close(fd);
}

static int fails(void) {
  if (atomic_fetch_add(&allocations, 1) + 1 != failing) return 0;
  errno = ENOMEM;
  return 1;
}

static void* counted(void* p) {
  const long now = p ? atomic_fetch_add(&in_use, (long)malloc_usable_size(p)) + (long)malloc_usable_size(p) : 0;
  for (long old = atomic_load(&most); old < now && !atomic_compare_exchange_weak(&most, &old, now);) continue;
  return p;
}

void free(void* p) {
  if (p) atomic_fetch_sub(&in_use, (long)malloc_usable_size(p));
  __libc_free(p);
}
void* malloc(size_t n) { return fails() ? NULL : counted(__libc_malloc(n)); }
void* calloc(size_t n, size_t size) { return fails() ? NULL : counted(__libc_calloc(n, size)); }
void* aligned_alloc(size_t alignment, size_t n) { return fails() ? NULL : counted(__libc_memalign(alignment, n)); }
void* realloc(void* p, size_t n) {
  if (fails()) return NULL;
  if (p) atomic_fetch_sub(&in_use, (long)malloc_usable_size(p));
  return counted(__libc_realloc(p, n));
}
int posix_memalign(void** p, size_t alignment, size_t n) {
  if (fails()) return ENOMEM;
  *p = counted(__libc_memalign(alignment, n));
  return *p ? 0 : ENOMEM;
}
