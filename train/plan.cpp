#include "train/plan.h"

#include <algorithm>

namespace quest {

Plan plan_step(const Model& model, const Ops& ops, int threads, const StepShape& s, const Policy& policy,
               bool list) {
  Rehearsal rehearsal(ops, threads, list);
  const Context& c = rehearsal.context;
  {
    Scope scope(c);
    View prompt = new_acc(c, s.prompt_rows, model.width, "prompt/rows");
    View gradient = new_acc(c, s.prompt_rows, model.width, "prompt/gradient");
    View loss = new_acc(c, 1, 1, "loss/loss");
    float number = 0;  // stands for what is on the host
    const View on_host{&number, Type::f32, s.prompt_rows, model.width, model.width};
    bring(c, on_host, "prompt/first moments"), bring(c, on_host, "prompt/second moments");
    bring(c, rows_of(on_host, 0, s.centred), "prompt/mean embedding");
    bring(c, {&number, Type::f32, 1, 1, 1}, "prompt/length of the gradient");
    const BatchArrays a(c.bookkeeping(), s.pairs, s.symmetric);
    const std::vector<int32_t> tokens(s.length);  // which the graph reads, and not the ops
    std::byte text{};                             // stands for keys and values, which only ops read
    const bool cached = s.placement == Placement::suffix && s.cached;
    for (int64_t t = 0; t < 2 * s.pairs; ++t)
      a.texts[t] = {tokens.data(),
                    static_cast<int32_t>(s.length),
                    {cached ? &text : nullptr, 0, cached ? s.length : 0}};
    const Encoder encoder{model, c, s.placement, s.pooling, prompt, s.rows};
    loss_and_gradient(encoder, a.batch(2 * s.pairs, s.pairs, s.pairs, s.pairs), policy, loss, gradient);
  }
  return rehearsal.plan();
}

StepShape step_shape(const Settings& s, int64_t rows, int64_t longest, bool cached) {
  const int64_t length = std::min(s.length, longest);
  // Texts of full length must fill a pass as others may; one more stands for the bookkeeping of more texts.
  const int64_t full = (rows + 2 * length - 1) / length * length;
  return {s.where(), s.pooled(), s.prompt_rows, s.batch, length, full, s.symmetric, s.centre, cached};
}

std::vector<int64_t> spacings(const Model& model, int64_t wanted) {
  if (wanted) return {wanted};
  std::vector<int64_t> all;
  for (int64_t l = model.layers; l >= 1; l = l == 3 ? 2 : l / 2) all.push_back(l);
  return all;
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

double step_cost(const Model& model, const StepShape& s, const Policy& policy, const Plan& plan) {
  // Decoding the weights takes a pass as long as so many rows: passes of 64 tokens run at half the speed of
  // passes of 1,024 (SmolLM2-135M, Q4_1, Cascade Lake).
  constexpr double rows_of_decoding = 60;
  const int64_t T = 2 * s.pairs, micro = std::min(policy.micro, T), passes = (T + micro - 1) / micro;
  const double runs = 3.0 * passes - std::min(policy.held, passes);  // forward, backward, some forward again
  return plan.flops + plan.again + runs * rows_of_decoding * pass_flops(model, 1, 1);
}

Chosen choose_policy(const Model& model, const Ops& ops, int threads, const StepShape& s, size_t bytes,
                     int64_t micro, int64_t spacing) {
  const int64_t T = 2 * s.pairs, tokens = s.placement == Placement::suffix ? s.prompt_rows : s.length;
  const auto plan = [&](const Policy& p) {
    try {
      return plan_step(model, ops, threads, s, p);
    } catch (const Error&) {  // more than there are addresses
      Plan none;
      none.peak = SIZE_MAX;
      return none;
    }
  };
  // When nothing fits: a rehearsal of many more passes would take minutes.
  Chosen best{{micro ? micro : (T + 1023) / 1024, 0, spacing ? spacing : 2}, false};
  // What every policy needs: a mask, the similarities and their gradient.
  if (Arena::product(s.pairs * s.pairs, 1 + 4 + 4) > bytes) return best;
  double least = 0;
  for (int64_t n = micro ? std::min(micro, T) : T;; n = (n + 1) / 2) {
    const int64_t passes = (T + n - 1) / n;
    const bool hopeless = Arena::product(n * tokens, 4 * model.width) > bytes;  // not even one matrix fits
    for (const int64_t l : spacings(model, spacing)) {
      if (hopeless) break;
      Policy p{n, passes, l};
      Plan found = plan(p);
      if (found.peak > bytes) {  // each pass that is held takes the same
        const size_t one = plan({n, 1, l}).peak, each = plan({n, 2, l}).peak - one;
        p.held = one > bytes || each == 0 ? 0 : std::min<int64_t>(passes - 1, 1 + (bytes - one) / each);
        found = plan(p);
      }
      const double cost = step_cost(model, s, p, found);
      if (found.peak <= bytes && (!best.fits || cost < least)) best = {p, true}, least = cost;
      if (found.peak <= bytes && found.again == 0) return best;  // smaller passes only cost more
    }
    if (n == 1 || micro || (best.fits && passes >= 512)) return best;
  }
}

}  // namespace quest
