#include "model/plan.h"

#include <cstring>

namespace quest {

namespace {

constexpr size_t addresses = size_t{1} << 46;  // of a rehearsal: as many as there may be

// The ops whose work is not divided among threads, which do none.
Ops silent(Ops o) {
  const auto silence = []<class... A>(void (*&op)(A...)) { op = [](A...) {}; };
  silence(o.gather), silence(o.gather_backward), silence(o.zero), silence(o.pool), silence(o.pool_backward);
  silence(o.normalize), silence(o.normalize_backward), silence(o.norm), silence(o.adamw);
  silence(o.similarity), silence(o.similarity_backward);
  silence(o.contrastive), silence(o.contrastive_backward);
  return o;
}

}  // namespace

Rehearsal::Rehearsal(const Ops& ops, int threads, bool list)
    : context{&ops_, &threads_, &arena_, &flops_, &again_, ops.apart ? &host_ : nullptr},
      ops_(silent(ops)),
      threads_(threads, true),
      arena_(addresses, true, list ? this : nullptr),
      host_(ops.apart ? addresses / 2 : 1, true) {}

void Rehearsal::allocated(const What& w, std::byte*, size_t offset, size_t bytes) {
  const auto [at, is_new] = known_.try_emplace({w.name, offset, bytes}, plan_.entries.size());
  const char* slash = strchr(w.name, '/');
  if (is_new)
    plan_.entries.push_back({{w.name, slash}, slash + 1, w.type, w.rows, w.cols, offset, bytes, time_, 0, 0});
  ++plan_.entries[at->second].times;
  live_.push_back(at->second);
  ++time_;
}

void Rehearsal::released(size_t mark) {
  if (arena_.used() > plan_.peak) {
    plan_.peak = arena_.used();
    plan_.at_peak.clear();
    for (const size_t i : live_)
      plan_.at_peak[plan_.entries[i].group] += (plan_.entries[i].bytes + 63) & ~size_t{63};
  }
  for (; !live_.empty() && plan_.entries[live_.back()].offset >= mark; live_.pop_back())
    plan_.entries[live_.back()].last = time_;
}

Plan Rehearsal::plan() {
  plan_.peak = arena_.peak(), plan_.flops = flops_, plan_.again = again_;
  return plan_;
}

std::vector<PlanEntry> weights_of(const Model& model) {
  std::map<std::string, PlanEntry> kinds;
  each_weight(model, [&](const View& w, int64_t, auto, const char* name, int64_t rows, int64_t cols) {
    PlanEntry& e = kinds[name];
    const size_t count = rows * cols, blocks = (count + nf4_block - 1) / nf4_block;
    e.group = "weights", e.name = name, e.rows = rows, e.cols = cols, ++e.times;
    e.type = w.type == Type::nf4 ? "NF4" : format_of(w.type).name;
    e.bytes += w.type == Type::nf4
                   ? count / 2 + blocks + (blocks + nf4_nested_block - 1) / nf4_nested_block * 4
                   : rows * row_bytes(w.type, cols);
  });
  std::vector<PlanEntry> entries;
  for (const auto& [name, e] : kinds) entries.push_back(e);
  const View& t = model.turns.table;
  entries.push_back(
      {"weights", "rotary table", "F32", t.rows, t.cols, 0, size_t(t.rows * t.cols * 4), 0, 0, 1});
  return entries;
}

void bring_weights(const Context& c, Model& m) {
  m.turns.table = bring(c, m.turns.table, "weights/rotary table");
  each_weight(m, [&](View& w, int64_t layer, auto, auto, int64_t rows, int64_t cols) {
    if (&w == &m.embedding) return;
    const char* name = layer < 0 || rows == 1 ? "weights/norms" : "weights/linear layers";
    if (w.type != Type::nf4) {
      w = bring(c, w, name);
      return;
    }
    const int64_t count = rows * cols, blocks = (count + nf4_block - 1) / nf4_block;
    m.nf4.push_back(w.data ? *static_cast<const Nf4*>(w.data) : Nf4{});
    Nf4& n = m.nf4.back();
    n.codes = bring(c, n.codes, (count + 1) / 2, name);
    n.book = bring(c, n.book, 16, "weights/code books");
    if (n.absmax) {
      n.absmax = bring(c, n.absmax, blocks, "weights/scales");
    } else {
      n.scale_codes = bring(c, n.scale_codes, blocks, "weights/scales");
      n.scale_map = bring(c, n.scale_map, 256, "weights/code books");
      n.nested = bring(c, n.nested, (blocks + nf4_nested_block - 1) / nf4_nested_block, "weights/scales");
    }
    w.data = const_cast<Nf4*>(bring(c, &n, 1, "weights/descriptions"));
  });
  if (c.ops->apart) m.quantized.clear();
}

std::vector<PlanEntry> brought_weights(const Ops& ops, Model model) {
  Rehearsal rehearsal(ops, 1, true);
  bring_weights(rehearsal.context, model);
  std::map<std::string, PlanEntry> kinds;
  for (const PlanEntry& part : rehearsal.plan().entries) {
    PlanEntry& e = kinds.try_emplace(part.name, PlanEntry{part.group, part.name, "bytes"}).first->second;
    e.bytes += (part.bytes + 63) & ~size_t{63}, e.rows = e.bytes, e.cols = 1, ++e.times;
  }
  std::vector<PlanEntry> entries;
  for (const auto& [name, e] : kinds) entries.push_back(e);
  return entries;
}

}  // namespace quest
