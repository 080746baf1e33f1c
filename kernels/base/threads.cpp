#include "kernels/base/threads.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace quest {

struct Threads::State {
  std::mutex mutex;
  std::condition_variable start, done;
  std::atomic<int64_t> next{0};
  int64_t items = 0;
  Call call = nullptr;
  void* argument = nullptr;
  uint64_t generation = 0;
  int busy = 0;
  bool stop = false;
  std::vector<std::thread> workers;
};

static int allowed_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return 1;
}

Threads::Threads(int count) : state_(new State), count_(count > 0 ? count : allowed_cpus()) {
  for (int t = 1; t < count_; ++t) {
    state_->workers.emplace_back([this, t] {
      for (uint64_t seen = 0;;) {
        {
          std::unique_lock lock(state_->mutex);
          state_->start.wait(lock, [&] { return state_->stop || state_->generation != seen; });
          if (state_->stop) return;
          seen = state_->generation;
        }
        take(t);
        std::lock_guard lock(state_->mutex);
        if (--state_->busy == 0) state_->done.notify_one();
      }
    });
  }
}

Threads::~Threads() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->start.notify_all();
  for (auto& w : state_->workers) w.join();
  delete state_;
}

void Threads::take(int thread) {
  for (int64_t i; (i = state_->next.fetch_add(1)) < state_->items;) state_->call(state_->argument, i, thread);
}

void Threads::run(int64_t items, Call call, void* argument) {
  if (count_ == 1 || items <= 1) {
    for (int64_t i = 0; i < items; ++i) call(argument, i, 0);
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->items = items;
    state_->call = call;
    state_->argument = argument;
    state_->next = 0;
    state_->busy = count_ - 1;
    ++state_->generation;
  }
  state_->start.notify_all();
  take(0);
  std::unique_lock lock(state_->mutex);
  state_->done.wait(lock, [&] { return state_->busy == 0; });
}

}  // namespace quest
