// quest plan: where every byte of a training step goes, for a model and a machine that need not be there.
#include "train/plan.h"

#include <cstdio>
#include <memory>

#include "kernels/backend.h"
#include "kernels/base/json.h"
#include "tools/commands.h"
#include "tools/run.h"

namespace quest {

namespace {

struct PlanOptions {
  Settings s;
  std::string model = "smollm2-135m";
  int64_t gpu = 0, memory = 0;
  bool json = false;
};

// Plans of one model and machine.
struct Planner {
  const PlanOptions& o;
  std::unique_ptr<Model> model = load_shape(o.model, o.s.quant == "nf4");
  Ops ops = o.gpu ? gpu_ops(o.s.activation()).value_or(cpu_ops(nullptr, o.s.activation()))
                  : cpu_ops(nullptr, o.s.activation());
  int threads = static_cast<int>(o.s.threads);
  size_t cache = o.s.placement == "suffix" ? o.s.text_cache : 0;
  StepShape shape = step_shape(o.s, o.s.rows, o.s.length, cache > 0);
  // Apart from what passes take.
  std::vector<PlanEntry> apart = ops.apart ? brought_weights(ops, *model) : weights_of(*model);
  size_t apart_bytes = 0, budget = o.gpu ? o.gpu : o.memory ? o.memory : available_memory() / 10 * 8;
  Policy policy;
  Plan plan;

  explicit Planner(const PlanOptions& options) : o(options) {
    const Settings& s = o.s;
    if (o.gpu && o.memory)
      fail(Exit::usage, "--gpu with --memory: a plan is for one of them; leave the other out");
    if (s.length + s.prompt_rows > model->max_positions)
      fail(Exit::usage, "--length %ld with --prompt-rows %ld: the model has %ld positions; take less",
           s.length, s.prompt_rows, model->max_positions);
    if (2 * s.batch * s.length > 1 << 24)
      fail(Exit::usage, "--batch %ld with --length %ld: expected at most 16 million tokens a step; take less",
           s.batch, s.length);
    for (const PlanEntry& e : apart)  // on the host they are mapped from a file, unless quantised at load
      if (o.gpu || (s.quant == "nf4" && e.type == "NF4")) apart_bytes += e.bytes;
    if (cache)
      apart.push_back({"texts", "keys and values kept", "bytes", int64_t(cache), 1, 0, cache, 0, 0, 1});
    if (ops.apart)  // not of the GPU's memory
      apart.push_back({"host", "staging, pinned", "bytes", staging_bytes, 1, 0, staging_bytes, 0, 0, 1});
    apart_bytes += cache;
    const size_t room = budget - std::min(budget, apart_bytes);
    policy = choose_policy(*model, ops, threads, shape, room, s.micro, s.spacing).policy;
    plan = plan_step(*model, ops, threads, shape, policy, true);
  }
  size_t peak() const { return apart_bytes + plan.peak; }

  // The largest number of pairs that fits under a policy, to one part in 64.
  int64_t largest_batch(const Policy& p) const {
    StepShape s = shape;
    const auto fits = [&](int64_t pairs) {
      s.pairs = pairs;
      return apart_bytes + plan_step(*model, ops, threads, s, p).peak <= budget;
    };
    int64_t low = 0, high = 1;
    for (; high <= 4096 && fits(high); high *= 2) low = high;
    while (low < 4096 && high - low > 1 + low / 64) (fits((low + high) / 2) ? low : high) = (low + high) / 2;
    return low;
  }
};

void print_json(const Planner& p) {
  JsonWriter j;
  j.object().field("peak_bytes", p.peak()).field("budget_bytes", p.budget);
  j.field("fits", p.peak() <= p.budget);
  j.field("flops_per_step", p.plan.flops + p.plan.again).field("flops_repeated", p.plan.again);
  j.key("entries").array();
  for (const auto* entries : {&p.apart, &p.plan.entries})
    for (const PlanEntry& e : *entries) {
      j.object().field("name", e.name).field("group", e.group);
      j.key("shape").array().value(e.rows).value(e.cols).end();
      j.field("dtype", e.type).field("bytes", e.bytes).field("offset", e.offset).field("times", e.times);
      j.field("first_use", e.first).field("last_use", e.last).end();
    }
  printf("%s\n", j.end().end().text().c_str());
}

void print_table(const Planner& p) {
  const Model& m = *p.model;
  const StepShape& s = p.shape;
  const size_t peak = p.peak();
  printf("%s: %ld layers, width %ld, MLP %ld, %ld heads over %ld, vocabulary %ld\n", m.name.c_str(), m.layers,
         m.width, m.mlp, m.heads.heads, m.heads.kv_heads, m.vocabulary);
  printf("a step: %ld pairs, %ld texts of %ld tokens, %s prompt of %ld rows%s\n%s\n\n", s.pairs, 2 * s.pairs,
         s.length, p.o.s.placement.c_str(), s.prompt_rows,
         s.placement == Placement::prefix ? ""
         : s.cached                       ? ", texts in the cache"
                                          : ", texts run in every step",
         describe(p.policy, 2 * s.pairs, m.layers).c_str());
  std::map<std::string, size_t> groups = p.plan.at_peak;
  if (p.ops.apart) groups["host, pinned (not of the GPU)"] = staging_bytes;
  groups["weights, text cache"] = p.apart_bytes, groups["~ at the peak"] = peak;  // ~: last
  for (const auto& [group, bytes] : groups)
    printf("%-29s %16zu %12s\n", group.c_str() + 2 * (group[0] == '~'), bytes, human_bytes(bytes).c_str());
  printf("\n%s of %s: %s\n", human_bytes(peak).c_str(), human_bytes(p.budget).c_str(),
         peak <= p.budget
             ? ("fits, " + human_bytes(p.budget - peak) + " to spare").c_str()
             : "does not fit; lower --batch, --length or --text-cache, or leave out --micro and --spacing");
  printf(
      "%.1f TFLOP a step, %.0f%% of it to do again what memory could not hold\n\nlargest batch by policy\n",
      (p.plan.flops + p.plan.again) / 1e12, 100 * p.plan.again / (p.plan.flops + p.plan.again));
  for (const int64_t micro : {keep_all, int64_t{64}})
    for (const int64_t spacing : {keep_all, int64_t{2}, int64_t{1}}) {
      const Policy policy{micro, micro == keep_all, spacing};
      const int64_t batch = p.largest_batch(policy);
      printf("%6ld%s  %s\n", batch, batch >= 4096 ? " or more" : "        ",
             batch ? describe(policy, 2 * batch, m.layers).c_str() : "not one pair fits");
    }
}

}  // namespace

std::vector<Command> plan_commands() {
  const auto o = std::make_shared<PlanOptions>();
  o->s.text_cache = 0;
  std::vector<Option> options = job_options(o->s,
                                            "quant length placement pooling prompt-rows batch symmetric "
                                            "precision threads text-cache rows micro spacing");
  options.insert(
      options.begin(),
      {{"model", 'm', &o->model, "NAME", "such as llama-7b or smollm2-135m, or a config.json or its folder"},
       {"gpu", 0, &o->gpu, "SIZE", "memory of a GPU, which also holds the weights", 1},
       {"memory", 0, &o->memory, "SIZE", "memory of the host for this; without it 0.8 of what there is", 1},
       {"json", 0, &o->json, "", "every allocation, for machines"}});
  return {{.name = "plan",
           .summary = "where every byte of a training step goes, before it is used",
           .examples = "  quest plan --model llama-7b --gpu 24GiB --batch 1024 --prompt-rows 5 --quant nf4\n",
           .options = std::move(options),
           .run = [o](const std::vector<std::string>&) {
             const Planner planner(*o);
             o->json ? print_json(planner) : print_table(planner);
             return 0;
           }}};
}

}  // namespace quest
