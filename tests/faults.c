// LD_PRELOAD: makes the N-th write to a folder fail. Counts write, writev, pwrite, fsync, fdatasync, ftruncate, rename,
// mkdir and open with O_CREAT of whatever lies under the folder.
//
//   FAULT_FOLDER  absolute path; calls elsewhere are neither counted nor changed
//   FAULT_AT      the call that fails, from 1; 0 or unset: none
//   FAULT_ERRNO   its errno (28, ENOSPC, by default)
//   FAULT_COUNT   a file that holds the number of calls so far, and the last one's name
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int calls;

static int under_folder(const char* path) {
  const char* folder = getenv("FAULT_FOLDER");
  if (!folder || !*folder) return 0;
  char whole[2 * PATH_MAX];
  if (path[0] != '/') {
    if (!getcwd(whole, PATH_MAX)) return 0;
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 2);
    path = whole;
  }
  const size_t n = strlen(folder);
  return strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == 0);
}

// Counts the call; true when it is the one to fail.
static int fails(const char* name, const char* path) {
  const int saved = errno;
  if (!under_folder(path)) return errno = saved, 0;
  const int call = atomic_fetch_add(&calls, 1) + 1;
  const char *count = getenv("FAULT_COUNT"), *at = getenv("FAULT_AT"), *why = getenv("FAULT_ERRNO");
  if (count) {
    char line[64];
    const int n = snprintf(line, sizeof line, "%9d %-12s\n", call, name);
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, count, O_WRONLY | O_CREAT, 0644);
    if (fd >= 0) syscall(SYS_write, fd, line, (size_t)n), syscall(SYS_close, fd);
  }
  errno = saved;
  if (!at || atoi(at) != call) return 0;
  errno = why ? atoi(why) : ENOSPC;
  return 1;
}

static int fails_fd(const char* name, int fd) {
  char link[64], path[PATH_MAX];
  const int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  errno = saved;
  if (n < 0) return 0;
  path[n] = 0;
  return fails(name, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void* p, size_t n) { return fails_fd("write", fd) ? -1 : NEXT(write)(fd, p, n); }
ssize_t writev(int fd, const struct iovec* v, int n) { return fails_fd("writev", fd) ? -1 : NEXT(writev)(fd, v, n); }
ssize_t pwrite(int fd, const void* p, size_t n, off_t at) {
  return fails_fd("pwrite", fd) ? -1 : NEXT(pwrite)(fd, p, n, at);
}
ssize_t pwrite64(int fd, const void* p, size_t n, off64_t at) {
  return fails_fd("pwrite", fd) ? -1 : NEXT(pwrite64)(fd, p, n, at);
}
int fsync(int fd) { return fails_fd("fsync", fd) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails_fd("fdatasync", fd) ? -1 : NEXT(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return fails_fd("ftruncate", fd) ? -1 : NEXT(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails_fd("ftruncate", fd) ? -1 : NEXT(ftruncate64)(fd, size); }
int rename(const char* from, const char* to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }
int mkdir(const char* path, mode_t mode) { return fails("mkdir", path) ? -1 : NEXT(mkdir)(path, mode); }

int open(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
  va_end(args);
  return (flags & O_CREAT) && fails("open", path) ? -1 : NEXT(open)(path, flags, mode);
}
FILE* fopen(const char* path, const char* mode) {
  return mode[0] == 'w' && fails("open", path) ? NULL : NEXT(fopen)(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  return mode[0] == 'w' && fails("open", path) ? NULL : NEXT(fopen64)(path, mode);
}
int open64(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
  va_end(args);
  return (flags & O_CREAT) && fails("open", path) ? -1 : NEXT(open64)(path, flags, mode);
}
