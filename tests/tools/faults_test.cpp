// faults.so itself: every write, sync and rename of write_file(), failed in turn, is reported and leaves the
// old file.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

using namespace quest;

// This program again, under faults.so, doing FaultProbe alone; returns its exit status.
static int probe(const std::string& folder, int at, const std::string& count) {
  const pid_t pid = fork();
  if (pid == 0) {
    setenv("LD_PRELOAD", BUILD_ROOT "/faults.so", 1);
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
    setenv("FAULT_FOLDER", folder.c_str(), 1);
    setenv("FAULT_AT", std::to_string(at).c_str(), 1);
    setenv("FAULT_COUNT", count.c_str(), 1);
    setenv("FAULT_PROBE", (folder + "/file").c_str(), 1);
    unsetenv("GTEST_TOTAL_SHARDS"), unsetenv("GTEST_SHARD_INDEX");
    execl("/proc/self/exe", "all", "--gtest_filter=Faults.EachFailureKeepsTheOldFile", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Faults, EachFailureKeepsTheOldFile) {
  if (const char* path = getenv("FAULT_PROBE")) {
    try {
      write_file(path, "new");
    } catch (const Error& error) {
      _exit(static_cast<int>(error.code));
    }
    _exit(0);
  }
  std::string folder = std::filesystem::temp_directory_path() / "quest-faults-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::string count = folder + ".count", file = folder + "/file";
  write_file(file, "old");
  ASSERT_EQ(probe(folder, 0, count), 0);
  EXPECT_EQ(read_file(file), "new");
  const int calls = std::stoi(read_file(count));
  EXPECT_GE(calls, 5);  // open, write, fsync, rename, fsync of the folder
  for (int at = 1; at <= calls; ++at) {
    write_file(file, "old");
    EXPECT_EQ(probe(folder, at, count), static_cast<int>(Exit::machine)) << "call " << at;
    const std::string left = read_file(file);
    EXPECT_TRUE(left == "old" || (at == calls && left == "new")) << "call " << at << " left " << left;
    EXPECT_FALSE(exists(file + ".tmp")) << "call " << at;
  }
  std::filesystem::remove_all(folder);
  std::filesystem::remove(count);
}
