// A fixed pool of threads. Work items are independent and write to places of their own, so the result does
// not depend on how many threads there are or on who takes which item.
#pragma once
#include <sched.h>

#include <atomic>
#include <barrier>
#include <cstdint>
#include <exception>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace quest {

class Threads {
 public:
  // idle: counts them, but starts none and does no work (for a rehearsal).
  explicit Threads(int count, bool idle = false)
      : count_(count > 0 ? count : allowed_cpus()), idle_(idle), gate_(idle ? 1 : count_) {
    workers_.reserve(count_);
    try {
      for (int t = 1; t < count_ && !idle; ++t)
        workers_.emplace_back([this, t] {
          while (gate_.arrive_and_wait(), work_) {
            work_(t);
            gate_.arrive_and_wait();
          }
        });
    } catch (const std::exception& error) {  // those that did start end
      (void)gate_.arrive(count_ - std::ssize(workers_));
      if (!dynamic_cast<const std::system_error*>(&error)) throw;
      fail(Exit::machine, "memory: cannot start %d threads: %s; close other programs, or take fewer", count_,
           error.what());
    }
  }
  ~Threads() {
    work_ = nullptr;  // the threads end
    gate_.arrive_and_wait();
  }

  int count() const { return count_; }

  // Calls f(item, thread) for every item in [0, items); returns when all are done. What f throws first ends
  // the work, and is thrown again.
  void each(int64_t items, auto&& f) {
    if (idle_) return;
    std::atomic<int64_t> next = 0;
    std::atomic_flag failed;
    std::exception_ptr error;
    const auto work = [&](int thread) {
      try {
        for (int64_t item; (item = next++) < items;) f(item, thread);
      } catch (...) {
        next = items;
        if (!failed.test_and_set()) error = std::current_exception();
      }
    };
    if (items <= 1) {
      work(0);  // not worth waking the others
    } else {
      work_ = std::ref(work);
      gate_.arrive_and_wait();
      work(0);
      gate_.arrive_and_wait();
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  static int allowed_cpus() {  // that this process may run on
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }
  int count_;
  bool idle_;
  std::barrier<> gate_;            // passed twice by all: before the work and after it
  std::function<void(int)> work_;  // of one thread
  std::vector<std::jthread> workers_;
};

}  // namespace quest
