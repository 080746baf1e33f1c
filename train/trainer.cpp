#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "index/exact.h"
#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "kernels/base/random.h"
#include "train/plan.h"
#include "train/prompt_file.h"

namespace quest {

namespace {

constexpr uint64_t epoch_stream = 101;  // random.h

// Cuts metrics.jsonl, which has one line a step, back to the lines of the first `steps` steps.
void cut_metrics(const std::string& path, int64_t steps) {
  const std::string text = exists(path) ? read_file(path) : "";
  size_t end = 0;
  long step = 0;
  for (size_t next; (next = text.find('\n', end)) != text.npos; end = next + 1)
    if (sscanf(text.c_str() + end, "{\"step\": %ld,", &step) != 1 || step > steps) break;
  write_file(path, std::string_view(text).substr(0, end));
}

View number_view(float& x) { return {&x, Type::f32, 1, 1, 1}; }

// The number of x in the list, which it joins if it is new.
int32_t place(int32_t* list, int64_t& count, int32_t x) {
  const int64_t at = std::find(list, list + count, x) - list;
  if (at == count) list[count++] = x;
  return static_cast<int32_t>(at);
}

}  // namespace

std::vector<std::pair<const char*, TrainState::Number>> TrainState::numbers() {
  return {{"step", &step},         {"best_step", &best_step},   {"stale", &stale},
          {"finished", &finished}, {"best_score", &best_score}, {"start_score", &start_score},
          {"flops", &flops},       {"seconds", &seconds}};
}

std::vector<std::pair<const char*, std::vector<float>*>> TrainState::matrices() {
  return {{"start", &start}, {"prompt", &prompt}, {"m", &m}, {"v", &v}, {"best", &best}, {"mean", &mean}};
}

TensorFile TrainState::file(int64_t width) {
  TensorFile f;
  for (const auto& [name, x] : matrices())
    f.tensors.emplace(name, View{x->data(), Type::f32, std::ssize(*x) / width, width, width});
  for (const auto& [name, number] : numbers())
    f.metadata[name] = std::visit([](auto* x) { return format("%.17g", static_cast<double>(*x)); }, number);
  return f;
}

TrainState read_state(const TensorFile& f, int64_t K, int64_t width, int64_t mean_rows) {
  TrainState s;
  for (const auto& [name, x] : s.matrices()) *x = f.numbers(name, x == &s.mean ? mean_rows : K, width);
  for (const auto& [name, number] : s.numbers()) {
    const double value = f.number(name);
    if (!(value >= 0 && value <= 0x1p53) && std::holds_alternative<int64_t*>(number))
      fail(Exit::input, "%s: expected %s to be a count, found %g; the checkpoint is damaged, start a new run",
           f.file.path().c_str(), name, value);
    std::visit([&](auto* x) { *x = static_cast<std::remove_pointer_t<decltype(x)>>(value); }, number);
  }
  return s;
}

std::map<std::string, std::string> identity(const Engine& engine, const Task& task) {
  return {{"kernels", engine.ops.path},
          {"precision", task.settings.precision},
          {"model", engine.model->sha256},
          {"data", task.data.sha256}};
}

void require_identity(const TensorFile& file, const Engine& engine, const Task& task,
                      const std::string& what) {
  for (const auto& [name, value] : identity(engine, task))
    if (what.find(name) != what.npos)
      file.expect(name, value,
                  format("give the %s that the run was started with, or start a new run",
                         name == "data" ? "dataset" : name.c_str())
                      .c_str());
}

Metrics measure(const Task& task, const Side& side, const Ranked& lists, bool drop) {
  const Ranked ranked = drop_labels(lists, drop ? side.dropped() : SparseRows(), depth);
  return evaluate(ranked, side.labels(), task.counts, task.data.train.texts.size());
}

double objective(const Metrics& m) { return m.percent[6]; }

std::vector<float> Trainer::embed(const std::vector<float>& prompt, const std::vector<int32_t>& numbers,
                                  const char* label) {
  auto e = engine_.embed(engine_.encoder(settings_, engine_.view(prompt)), cached_, numbers, label);
  engine_.normalize(e, engine_.view(state.mean));
  return e;
}

std::vector<int32_t> Trainer::validation_texts() const {
  std::vector<int32_t> texts;
  for (const int32_t l : task_.validation_labels) texts.push_back(task_.label_texts[l]);
  return texts;
}

// Vocabulary rows of the start text: its last K tokens before a text's end, its first K before a text's
// start.
std::vector<float> Trainer::start_prompt() const {
  if (!settings_.prompt.empty()) return prompt_from_file(settings_, engine_.width());
  std::vector<int32_t> ids, chosen;
  engine_.tokenizer->encode(settings_.init, ids);
  const int64_t K = settings_.prompt_rows;
  for (int64_t k = 0; k < K && settings_.init.empty(); ++k)
    ids.push_back((k + 1) % engine_.model->vocabulary);
  const int64_t n = std::ssize(ids);
  for (int64_t k = 0; k < K; ++k)
    chosen.push_back(settings_.placement == "prefix" ? ids[k % n] : ids[n - 1 - (K - 1 - k) % n]);
  std::vector<float> prompt(K * engine_.width());
  engine_.host_ops.embed(engine_.host, engine_.model->embedding, chosen.data(), engine_.view(prompt));
  return prompt;
}

void Trainer::start() {
  const double work = engine_.flops, begin = now_seconds();
  state = {};
  state.start = state.prompt = state.best = start_prompt();
  state.m = state.v = std::vector<float>(state.prompt.size());
  if (settings_.centre) {
    const Encoder encoder = engine_.encoder(settings_, engine_.view(state.prompt));
    std::vector<int32_t> texts = task_.validation.texts, labels = validation_texts();
    texts.insert(texts.end(), labels.begin(), labels.end());
    state.mean = engine_.mean_of(engine_.embed(encoder, cached_, texts, "centre"));
  }
  state.start_score = state.best_score = validate();
  state.flops = engine_.flops - work, state.seconds = now_seconds() - begin;
}

double Trainer::validate() {
  if (task_.validation.queries.empty()) return 0;
  const auto q = embed(state.prompt, task_.validation.texts, "validation queries"),
             l = embed(state.prompt, validation_texts(), "validation labels");
  const int64_t d = engine_.width();
  Ranked lists = exact_top_k({q.data(), std::ssize(q) / d, d}, {l.data(), std::ssize(l) / d, d},
                             depth + task_.validation.most_dropped, engine_.threads);
  for (int32_t& id : lists.ids)
    if (id >= 0) id = task_.validation_labels[id];
  return objective(measure(task_, task_.validation, lists, true));
}

bool Trainer::positive(int32_t pair, int32_t text) const {
  const int32_t query = task_.pairs[pair].query;
  const auto is = [&](int32_t label) {
    const int32_t n = label < 0 ? -1 : task_.number[label];
    return n >= 0 && task_.label_texts[n] == text;
  };
  return text == task_.pair_texts[pair] || is(task_.data.train.own(query)) ||
         std::ranges::any_of(task_.data.train.labels.row(query), is);
}

// The cheapest policy that memory allows beside what the arena holds already.
Policy Trainer::policy() const {
  const Settings& s = settings_;
  const Model& model = *engine_.model;
  const auto kept = [&](int32_t text) { return cached_[text].kv.data != nullptr; };
  bool cached = std::ranges::all_of(task_.pair_texts, kept);
  for (const DrawnPair& pair : task_.pairs) cached &= kept(task_.label_texts[task_.number[pair.label]]);
  const int64_t longest = std::ranges::max(cached_, {}, &Text::count).count;
  StepShape shape = step_shape(s, engine_.rows, longest, cached);
  shape.pairs = std::min(shape.pairs, std::ssize(task_.pairs));
  const int threads = engine_.threads.count();
  const Policy policy =
      choose_policy(model, engine_.ops, threads, shape, engine_.arena->room(), s.micro, s.spacing).policy;
  if (policy.micro < 2 * shape.pairs || policy.spacing < model.layers)
    fprintf(stderr, "memory: %s\n", describe(policy, 2 * shape.pairs, model.layers).c_str());
  return policy;
}

std::pair<float, float> Trainer::step(double rate) {
  const int64_t n = std::ssize(task_.pairs), B = std::min(settings_.batch, n);
  const int64_t per_epoch = n / B, epoch = state.step / per_epoch;
  if (epoch != order_epoch_) {  // a new order of the sample in every epoch
    order_.resize(n);
    std::iota(order_.begin(), order_.end(), 0);
    std::ranges::sort(order_, {}, [&](int32_t i) {
      return random_bits(settings_.seed, epoch_stream + epoch, task_.pairs[i].id());
    });
    order_epoch_ = epoch;
  }
  const int32_t* chosen = order_.data() + state.step % per_epoch * B;

  const Context& c = engine_.context;
  Scope scope(c);
  const BatchArrays a(c.bookkeeping(), B, settings_.symmetric);
  int64_t T = 0, U = 0, L = 0;  // distinct texts; query rows, label rows
  for (int64_t i = 0; i < B; ++i) {
    const int32_t query = place(a.numbers, T, task_.pair_texts[chosen[i]]);
    const int32_t label = place(a.numbers, T, task_.label_texts[task_.number[task_.pairs[chosen[i]].label]]);
    if (settings_.unmasked)  // every pair has rows of its own
      a.queries[U] = query, a.labels[L] = label, a.pairs[i] = {int32_t(U++), int32_t(L++)};
    else
      a.pairs[i] = {place(a.queries, U, query), place(a.labels, L, label)};
  }
  std::fill_n(a.hidden, B * L, uint8_t{0});
  if (a.hidden_queries) std::fill_n(a.hidden_queries, B * U, uint8_t{0});
  for (int64_t i = 0; i < B && !settings_.unmasked; ++i) {
    for (int64_t j = 0; j < L; ++j)
      a.hidden[i * L + j] = j != a.pairs[i].label && positive(chosen[i], a.numbers[a.labels[j]]);
    for (int64_t k = 0; k < B && a.hidden_queries; ++k)
      if (a.pairs[k].query != a.pairs[i].query && positive(chosen[k], a.numbers[a.labels[a.pairs[i].label]]))
        a.hidden_queries[i * U + a.pairs[k].query] = 1;
  }
  for (int64_t t = 0; t < T; ++t) a.texts[t] = cached_[a.numbers[t]];
  StepBatch b = a.batch(T, U, L, B);
  b.temperature = settings_.temperature;
  float loss = 0, norm = 0;
  const View host_prompt = engine_.view(state.prompt), host_m = engine_.view(state.m);
  const View host_v = engine_.view(state.v), host_loss = number_view(loss), host_norm = number_view(norm);
  const View prompt = bring(c, host_prompt, "prompt/rows");
  const View gradient = bring(c, engine_.view(gradient_), "prompt/gradient");
  const View loss_view = bring(c, host_loss, "loss/loss");
  const View m = bring(c, host_m, "prompt/first moments"), v = bring(c, host_v, "prompt/second moments");
  if (!state.mean.empty()) b.mean = bring(c, engine_.view(state.mean), "prompt/mean embedding");
  const View norm_view = bring(c, host_norm, "prompt/length of the gradient");
  loss_and_gradient(engine_.encoder(settings_, prompt), b, policy_, loss_view, gradient);
  c.ops->norm(c, gradient, norm_view);
  fetch(c, loss_view, host_loss), fetch(c, norm_view, host_norm);
  if (!std::isfinite(loss) || !std::isfinite(norm))
    fail(Exit::input, "%s: the loss of step %ld is not finite; lower --rate, or check the model file",
         folder_.c_str(), state.step + 1);
  c.ops->adamw(c, prompt, gradient, m, v, norm_view, settings_.clip,
               {rate, 0.9, 0.999, 1e-8, settings_.decay, state.step + 1});
  fetch(c, prompt, host_prompt), fetch(c, m, host_m), fetch(c, v, host_v);
  return {loss, norm};
}

bool Trainer::resume() {
  const std::string path = folder_ + checkpoint_name;
  if (!exists(path)) return false;
  const TensorFile f = read_tensors(path);
  require_identity(f, engine_, task_);
  state = read_state(f, settings_.prompt_rows, engine_.width(), settings_.centre ? 1 : 0);
  if (state.step > task_.steps())
    fail(Exit::input, "%s: expected a step of 0 to %ld, found %ld; it belongs to another run", path.c_str(),
         task_.steps(), state.step);
  return true;
}

void Trainer::run() {
  const int64_t steps = task_.steps();
  const std::string metrics_path = folder_ + "/metrics.jsonl";
  cut_metrics(metrics_path, state.step);
  std::ofstream metrics(metrics_path, std::ios::app);
  const double warm = std::max(1.0, std::floor(settings_.warmup * steps));
  gradient_.resize(state.prompt.size());
  policy_ = policy();
  Progress progress("training", steps - state.step, "steps");
  double saved = now_seconds();
  while (state.step < steps && !state.finished) {
    const double begin = now_seconds(), work = engine_.flops, number = state.step + 1;
    const double turn = number / steps;
    const double cosine = settings_.rate * std::min(1.0, number / warm) *
                          (0.05 + 0.95 * 0.5 * (1 + std::cos(std::numbers::pi * turn)));
    const double rate = settings_.constant ? settings_.rate : cosine;
    const auto [loss, norm] = step(rate);
    ++state.step;
    JsonWriter line(true);
    line.object().field("step", state.step).field("loss", double{loss}).field("gradient_norm", double{norm});
    line.field("rate", rate);
    const bool validated = state.step % settings_.validate_every == 0 || state.step == steps;
    if (validated) {
      const double score = validate();
      line.field("validation_R@10", score);
      if (score > state.best_score || task_.validation.queries.empty()) {  // without queries: the last prompt
        state.best = state.prompt, state.best_score = score, state.best_step = state.step, state.stale = 0;
      } else {
        state.finished = ++state.stale >= settings_.patience;
      }
    }
    state.flops += engine_.flops - work, state.seconds += now_seconds() - begin;
    // At once, so that it tells how far a killed run came.
    if (!(metrics << line.end().text() << std::endl))
      fail(Exit::machine, "%s: cannot be written: %m; free space, then --resume", metrics_path.c_str());
    progress.add(1, format("loss %.3f, best R@10 %.1f at step %ld", loss, state.best_score, state.best_step));
    const bool stop = interrupted();
    if (validated || stop || now_seconds() - saved > 10) {
      sync(metrics_path);
      TensorFile file = state.file(engine_.width());
      file.metadata.merge(identity(engine_, task_));
      write_tensors(folder_ + checkpoint_name, file);
      saved = now_seconds();
    }
    if (stop) throw Stopped{};
  }
}

}  // namespace quest
