// Runs every test and closes with one line: N passed, N failed, N skipped.
#include <gtest/gtest.h>

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

struct Summary : testing::EmptyTestEventListener {
  int passed = 0, failed = 0, skipped = 0;
  std::vector<std::string> failures, skips;
  std::string running;
  pid_t process = getpid();

  void OnTestStart(const testing::TestInfo& test) override {
    running = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& part) override {
    if (part.failed())
      printf("%s:%d: in %s\n%s\n", part.file_name() ? part.file_name() : "?", part.line_number(),
             running.c_str(), part.message());
    if (part.skipped()) skips.push_back(running + ": " + part.message());
    fflush(stdout);
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->Skipped())
      ++skipped;
    else if (test.result()->Passed())
      ++passed;
    else
      ++failed, failures.push_back(running);
    running.clear();
  }
  void OnTestSuiteEnd(const testing::TestSuite& suite) override {
    printf("  %-6s %s: %d tests, %.1f s\n", suite.Failed() ? "FAILED" : "ok", suite.name(),
           suite.test_to_run_count(), static_cast<double>(suite.elapsed_time()) / 1000);
    fflush(stdout);
  }
  void close() const {
    for (const std::string& line : skips) printf("skipped: %s\n", line.c_str());
    for (const std::string& line : failures) printf("failed: %s\n", line.c_str());
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    fflush(stdout);
  }
};

Summary* summary;

// A test that crashes has failed, and is named; so has one that --gtest_break_on_failure stops. (Not in a child of a test: that one dies as it would.)
void crashed(int signal) {
  if (summary->process == getpid()) {
    ++summary->failed;
    summary->failures.push_back(summary->running + " (signal " + std::to_string(signal) + ")");
    summary->close();
  }
  raise(signal);
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGINT, SIG_DFL);  // the background job of a shell ignores it, and so would all that the tests start
  testing::InitGoogleTest(&argc, argv);
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  listeners.Append(summary = new Summary);  // googletest deletes it, after main
  struct sigaction action = {};
  action.sa_handler = crashed;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER);
#ifndef __SANITIZE_ADDRESS__  // the sanitizer's own report says more
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigaction(signal, &action, nullptr);
#endif
  const int status = RUN_ALL_TESTS();
  summary->close();
  return status != 0 || summary->failed != 0 || summary->passed + summary->skipped == 0 ? 1 : 0;
}
