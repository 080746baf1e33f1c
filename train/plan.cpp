#include "train/plan.h"

#include <algorithm>

namespace quest {

Plan plan_step(const Model& model, const Ops& ops, int threads, const StepShape& s, const Policy& policy,
               bool list) {
  Rehearsal rehearsal(ops, threads, list);
  const Context& c = rehearsal.context;
  {
    Scratch scope(*c.arena);
    View prompt = new_acc(c, s.prompt_rows, model.width, "prompt/rows");
    View gradient = new_acc(c, s.prompt_rows, model.width, "prompt/gradient");
    View loss = new_acc(c, 1, 1, "loss/loss");
    const BatchArrays a(*c.arena, s.pairs, s.symmetric);
    std::byte text{};  // stands for keys and values, which only ops read
    const bool cached = s.placement == Placement::suffix && s.cached;
    for (int64_t t = 0; t < 2 * s.pairs; ++t)
      a.texts[t] = {rehearsal.tokens(s.length),
                    static_cast<int32_t>(s.length),
                    {cached ? &text : nullptr, 0, cached ? s.length : 0}};
    const Encoder encoder{model, c, s.placement, s.pooling, prompt, s.rows};
    loss_and_gradient(encoder, a.batch(2 * s.pairs, s.pairs, s.pairs, s.pairs), policy, loss, gradient);
  }
  return rehearsal.plan();
}

StepShape step_shape(const Settings& s, bool cached) {
  return {s.placement == "prefix" ? Placement::prefix : Placement::suffix,
          s.pooling == "mean" ? Pooling::mean : Pooling::last,
          s.prompt_rows,
          s.batch,
          s.length,
          s.rows,
          s.symmetric,
          cached};
}

Policy given_policy(const Settings& s) {
  Policy policy;
  if (s.micro && s.micro < 2 * s.batch) policy.micro = s.micro, policy.held = 0;
  if (s.spacing) policy.spacing = s.spacing;
  return policy;
}

std::string describe(const Policy& p, int64_t texts, int64_t layers) {
  const int64_t micro = std::min(p.micro, texts), passes = (texts + micro - 1) / micro;
  const std::string runs = passes == 1 ? format("one pass of %ld texts", texts)
                                       : format("%ld passes of %ld texts, %ld of them held", passes, micro,
                                                std::min(p.held, passes));
  return runs + (p.spacing >= layers ? ", all activations kept"
                 : p.spacing == 1    ? ", every layer's input kept"
                                     : format(", an input every %ld layers kept", p.spacing));
}

Policy smallest_policy(const Model& model) {
  // Of a stretch of n layers all activations are kept, beside the inputs of L / n stretches.
  return {.micro = 1, .held = 0, .spacing = model.layers > 3 ? 2 : 1};
}

double step_cost(const Model& model, const StepShape& s, const Policy& policy, const Plan& plan) {
  constexpr double rows_of_decoding = 16;  // decoding the weights takes a pass as long as so many rows, about
  const int64_t T = 2 * s.pairs, micro = std::min(policy.micro, T), passes = (T + micro - 1) / micro;
  const double runs = 3.0 * passes - std::min(policy.held, passes);  // forward, backward, some forward again
  return plan.flops + plan.again + runs * rows_of_decoding * pass_flops(model, 1, 1);
}

std::optional<Policy> fastest_policy(const Model& model, const Ops& ops, int threads, const StepShape& s,
                                     size_t bytes) {
  const int64_t T = 2 * s.pairs, rows = s.placement == Placement::suffix ? s.prompt_rows : s.length;
  // What every policy needs: a mask, the similarities and their gradient.
  if (Arena::product(s.pairs * s.pairs, 1 + 4 + 4) > bytes) return {};
  std::optional<Policy> best;
  double least = 0;
  bool better = true;
  for (int64_t micro = T; better || !best; micro = (micro + 1) / 2) {
    better = false;
    const int64_t passes = (T + micro - 1) / micro;
    const bool hopeless = Arena::product(micro * rows, 4 * model.width) > bytes;  // not even one matrix fits
    for (int64_t spacing = hopeless ? 0 : model.layers; spacing >= 1; spacing /= 2) {
      const auto with = [&](int64_t held) {
        return plan_step(model, ops, threads, s, {micro, held, spacing});
      };
      int64_t held = passes;
      Plan plan = with(held);
      if (plan.peak > bytes) {  // each pass that is held takes the same
        const size_t one = with(1).peak, each = with(2).peak - one;
        held = one > bytes || each == 0 ? 0 : std::min<int64_t>(passes - 1, 1 + (bytes - one) / each);
        plan = with(held);
      }
      const double cost = step_cost(model, s, {micro, held, spacing}, plan);
      if (plan.peak <= bytes && (!best || cost < least))
        best = {micro, held, spacing}, least = cost, better = true;
      if (best && plan.again == 0) return best;
    }
    if (micro == 1) break;
  }
  return best;
}

}  // namespace quest
