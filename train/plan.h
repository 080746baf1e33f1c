// Which memory a step takes under a policy, and which policy is the fastest that fits.
#pragma once
#include "model/plan.h"
#include "train/settings.h"
#include "train/step.h"

namespace quest {

// A step of the largest kind that a run can have: every pair brings two texts of full length.
struct StepShape {
  Placement placement = Placement::suffix;
  Pooling pooling = Pooling::last;
  int64_t prompt_rows = 4, pairs = 64, length = 64, rows = 1024;  // rows: tokens of a pass over texts
  bool symmetric = false, centred = false;
  bool cached = true;  // suffix: the texts' keys and values are at hand
};

// rows: tokens of a pass; longest: tokens of a text.
StepShape step_shape(const Settings&, int64_t rows, int64_t longest, bool cached);

Plan plan_step(const Model&, const Ops&, int threads, const StepShape&, const Policy&, bool list = false);

// What a step takes, in FLOP: its work, and for each run of a pass the decoding of the weights.
double step_cost(const Model&, const StepShape&, const Policy&, const Plan&);

struct Chosen {
  Policy policy;
  bool fits;
};
// The spacings that are tried: `wanted`, or if that is 0 all layers and by halves fewer.
std::vector<int64_t> spacings(const Model&, int64_t wanted);

// The cheapest of the policies tried (passes and spacings by halves, down to 512 passes and further when
// nothing fits; as many passes held as fit) whose arena takes at most so many bytes; when none does, one that
// takes little. micro, spacing: 0, or what they are to be.
Chosen choose_policy(const Model&, const Ops&, int threads, const StepShape&, size_t bytes, int64_t micro,
                     int64_t spacing);

std::string describe(const Policy&, int64_t texts, int64_t layers);

}  // namespace quest
