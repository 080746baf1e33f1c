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
  Call call = nullptr;  // nullptr: the threads end
  void* argument = nullptr;
  uint64_t generation = 0;
  int busy = 0;
  std::vector<std::jthread> workers;
};

static int allowed_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

Threads::Threads(int count) : state_(new State), count_(count > 0 ? count : allowed_cpus()) {
  for (int t = 1; t < count_; ++t) {
    state_->workers.emplace_back([this, t] {
      for (uint64_t seen = 0;;) {
        {
          std::unique_lock lock(state_->mutex);
          state_->start.wait(lock, [&] { return state_->generation != seen; });
          if (!state_->call) return;
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
  begin(0, nullptr, nullptr);
  state_->workers.clear();  // joins
}

void Threads::take(int thread) {
  for (int64_t i; (i = state_->next.fetch_add(1)) < state_->items;) state_->call(state_->argument, i, thread);
}

void Threads::begin(int64_t items, Call call, void* argument) {
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
}

void Threads::run(int64_t items, Call call, void* argument) {
  if (items == 1) return call(argument, 0, 0);  // not worth waking the others
  begin(items, call, argument);
  take(0);
  std::unique_lock lock(state_->mutex);
  state_->done.wait(lock, [&] { return state_->busy == 0; });
}

}  // namespace quest
