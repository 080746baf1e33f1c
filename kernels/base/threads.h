// A fixed pool of threads. Work items are independent and write to places of their own, so the result does
// not depend on how many threads there are or on who takes which item.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace quest {

class Threads {
 public:
  explicit Threads(int count);  // count <= 0: as many as this process may run on
  Threads(Threads&&) = delete;
  ~Threads();

  int count() const { return count_; }

  // Calls f(item, thread) for every item in [0, items); returns when all are done. f must not throw.
  template <class F>
  void each(int64_t items, F&& f) {
    using G = std::remove_reference_t<F>;
    run(
        items, [](void* g, int64_t item, int thread) { (*static_cast<G*>(g))(item, thread); },
        const_cast<std::remove_const_t<G>*>(&f));
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  void begin(int64_t items, Call call, void* argument);
  void run(int64_t items, Call call, void* argument);
  void take(int thread);
  struct State;
  std::unique_ptr<State> state_;
  int count_;
};

}  // namespace quest
