// A fixed pool of threads. Work items are independent and write to places of their own, so the result does
// not depend on how many threads there are or on who takes which item.
#pragma once
#include <sched.h>

#include <atomic>
#include <barrier>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace quest {

class Threads {
 public:
  // idle: counts them, but starts none and does no work (for a rehearsal).
  explicit Threads(int count, bool idle = false)
      : count_(count > 0 ? count : allowed_cpus()), idle_(idle), gate_(idle ? 1 : count_) {
    for (int t = 1; t < count_ && !idle; ++t)
      workers_.emplace_back([this, t] {
        while (gate_.arrive_and_wait(), work_) {
          work_(t);
          gate_.arrive_and_wait();
        }
      });
  }
  ~Threads() {
    work_ = nullptr;  // the threads end
    gate_.arrive_and_wait();
  }

  int count() const { return count_; }

  // Calls f(item, thread) for every item in [0, items); returns when all are done. f must not throw.
  void each(int64_t items, auto&& f) {
    if (idle_) return;
    std::atomic<int64_t> next = 0;
    const auto work = [&](int thread) {
      for (int64_t item; (item = next++) < items;) f(item, thread);
    };
    if (items <= 1) return work(0);  // not worth waking the others
    work_ = std::ref(work);
    gate_.arrive_and_wait();
    work(0);
    gate_.arrive_and_wait();
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
