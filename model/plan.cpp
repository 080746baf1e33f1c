#include "model/plan.h"

#include <cstring>
#include <tuple>

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

PlanEntry entry_of(const What& what, size_t offset, size_t bytes) {
  const char* slash = strchr(what.name, '/');
  return {{what.name, slash}, slash + 1, what.type, what.rows, what.cols, offset, bytes, 0, 0, 0};
}

}  // namespace

Rehearsal::Rehearsal(const Ops& ops, int threads, bool list)
    : context{&ops_, &threads_, &arena_, &flops_, &again_},
      ops_(silent(ops)),
      threads_(threads, true),
      arena_(addresses, true, list ? this : nullptr),
      list_(list) {}

void Rehearsal::allocated(const What& what, std::byte*, size_t offset, size_t bytes) {
  if (offset + bytes > highest_) highest_ = offset + bytes, new_peak_ = true;
  size_t entry = 0;
  if (list_) {
    entry = known_.try_emplace({what.name, offset, bytes}, plan_.entries.size()).first->second;
    if (entry == plan_.entries.size()) plan_.entries.push_back(entry_of(what, offset, bytes));
    PlanEntry& e = plan_.entries[entry];
    if (e.times++ == 0) e.first = time_;
  }
  live_.push_back({what.name, offset, bytes, entry});
  ++time_;
}

void Rehearsal::released(size_t mark) {
  if (new_peak_ && !live_.empty() && live_.back().offset >= mark) {
    plan_.at_peak.clear();
    for (const Live& l : live_) plan_.at_peak[{l.name, strchr(l.name, '/')}] += (l.bytes + 63) & ~size_t{63};
    new_peak_ = false;
  }
  for (; !live_.empty() && live_.back().offset >= mark; live_.pop_back())
    if (list_) plan_.entries[live_.back().entry].last = time_;
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

}  // namespace quest
