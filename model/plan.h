// The memory plan: a run, rehearsed. The graph itself runs, over ops that take their scratch but compute
// nothing and an arena that is written nowhere but in its bookkeeping. What it asks for is the plan, so the
// plan and the run cannot differ.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "model/llama.h"

namespace quest {

// One place in the arena. Times are numbers of allocations, counted from 0.
struct PlanEntry {
  std::string group, name, type;
  int64_t rows = 0, cols = 0;
  size_t offset = 0, bytes = 0;
  int64_t first = 0, last = 0;  // when it is made, and when it is free again; several times: all of them
  int64_t times = 0;            // how often it is made
};

struct Plan {
  std::vector<PlanEntry> entries;
  std::map<std::string, size_t> at_peak;  // bytes by group when most is in use
  size_t peak = 0;                        // bytes of the arena
  double flops = 0, again = 0;            // work (pass.h); what of it is done a second time to save memory
};

// A context to run the graph with; afterwards plan() is what it asked for. list: with the entries, not only
// the sums.
class Rehearsal : Witness {
 public:
  Rehearsal(const Ops&, int threads, bool list);
  const Context context;

  Plan plan();

 private:
  void allocated(const What&, std::byte* base, size_t offset, size_t bytes) override;
  void released(size_t mark) override;

  Ops ops_;
  Threads threads_;
  Arena arena_, host_;
  double flops_ = 0, again_ = 0;
  int64_t time_ = 0;
  std::vector<size_t> live_;                                         // entries
  std::map<std::tuple<std::string, size_t, size_t>, size_t> known_;  // name, offset, bytes -> entry
  Plan plan_;
};

// The weights of a model by kind, as entries without a place in the arena. Mapped from a file they are no
// memory of the process; quantised when the model is loaded, they are.
std::vector<PlanEntry> weights_of(const Model&);

// Brings the weights where the ops see them; the embedding table stays on the host.
void bring_weights(const Context&, Model&);

// What bring_weights takes of the arena, by kind.
std::vector<PlanEntry> brought_weights(const Ops&, Model);

}  // namespace quest
