#include "train/memory.h"

#include <algorithm>

#include "index/hnsw.h"
#include "train/trainer.h"

namespace quest {

namespace {

// Rehearses passes over texts; returns the bytes of arena that they take.
struct Passes {
  const Encoder& encoder;
  Rehearsal rehearsal{*encoder.context.ops, encoder.context.threads->count(), false};
  Encoder e{encoder.model,   rehearsal.context, encoder.placement,
            encoder.pooling, encoder.prompt,    encoder.rows};
  float number = 0;

  View row(int64_t rows) { return {&number, Type::f32, rows, e.model.width, e.model.width}; }
  Passes& embed(const std::vector<Text>& texts, const std::vector<int32_t>& numbers) {
    each_part(texts, numbers, [&](const Text* part, int64_t n) { embed_texts(e, part, n, row(n)); });
    return *this;
  }
  size_t peak() { return rehearsal.plan().peak; }
};

std::vector<int32_t> validation_texts(const Task& task) {
  std::vector<int32_t> texts;
  for (const int32_t l : task.validation_labels) texts.push_back(task.label_texts[l]);
  return texts;
}

// Of the text pass, and of every embedding of the job with no text's keys and values at hand.
size_t passes_peak(const Engine& engine, const Task& task, const Corpus& corpus, int64_t rows) {
  std::vector<Text> texts = corpus.texts;
  Encoder plain = engine.encoder();
  plain.rows = rows;
  Passes text_pass{plain};
  const View all = text_pass.row(std::ssize(texts));
  text_passes(text_pass.e, texts, -1, all, all, [](int64_t, int64_t) {});

  Encoder encoder = engine.encoder(task.settings, text_pass.row(task.settings.prompt_rows));
  encoder.rows = rows;
  Passes passes{encoder};
  passes.embed(texts, task.validation.texts).embed(texts, validation_texts(task));
  passes.embed(texts, task.label_texts).embed(texts, task.test.texts);
  return std::max(text_pass.peak(), passes.peak());
}

[[noreturn]] void too_little(const Engine& engine, size_t beside, size_t least) {
  const size_t heap = heap_in_use(), needed = program_bytes + heap + beside + least;
  fail(Exit::machine,
       "memory: expected at least %zu bytes, %s for passes and steps, %s for results, %s for what is loaded "
       "and "
       "%s for the program, found %zu; give --memory %zu, or lower --batch or --length, or leave out --micro "
       "and --spacing",
       needed, human_bytes(least).c_str(), human_bytes(beside).c_str(), human_bytes(heap).c_str(),
       human_bytes(program_bytes).c_str(), engine.memory, needed);
}

}  // namespace

size_t results_bytes(const Task& task, const Corpus& corpus, int64_t width, int threads) {
  const int64_t L = task.labels.size(), Q = task.test.queries.size(), V = task.validation.queries.size();
  const int64_t ranked = std::ssize(task.validation_labels), row = width * 4;
  const auto lists = [](const Side& side, int64_t queries) {  // longer ones, and what is left of them
    return queries * (2 * depth + side.most_dropped) * 8;
  };
  const int64_t states = std::ssize(corpus.texts) * (sizeof(Text) + 2 * row);  // without a prompt
  const int64_t prompts = 8 * task.settings.prompt_rows * row;                 // of the training's state
  const int64_t validating = (V + ranked) * row + lists(task.validation, V);
  const int64_t metrics = 16 * 2 * 8 * Q + 4 * 8 * L;  // hits of each query, 16 times; counts of labels
  const int64_t evaluating = (L + Q) * row + lists(task.test, Q) + metrics;
  const int64_t indexing =
      (L + Q) * row + metrics + Hnsw::bytes(L, width, threads) + lists(task.test, std::min<int64_t>(Q, 1000));
  return states + prompts + std::max({validating, evaluating, indexing});
}

Division divide(const Engine& engine, const Task& task, const Corpus& corpus, int64_t pair_tokens,
                size_t beside) {
  const int64_t bytes = engine.room(beside);
  const Settings& s = task.settings;
  const Model& model = *engine.model;
  const int threads = engine.threads.count();
  const bool suffix = s.where() == Placement::suffix;
  const int64_t longest = std::ranges::max(corpus.texts, {}, &Text::count).count;

  // Passes take a quarter of the memory at most, or half, or all: the first that can be had.
  std::vector<std::pair<int64_t, int64_t>> sizes;  // tokens of a pass, and what it takes
  for (int64_t rows = s.rows;
       sizes.empty() || (sizes.back().second > bytes / 4 && rows != sizes.back().first);
       rows = (rows + 1) / 2)
    sizes.emplace_back(rows, passes_peak(engine, task, corpus, rows));
  auto [rows, passes] = sizes.back();
  for (const int64_t most : {bytes, bytes / 2, bytes / 4})
    if (const auto at = std::ranges::find_if(sizes, [&](auto& x) { return x.second <= most; });
        at != sizes.end())
      std::tie(rows, passes) = *at;
  Division best{rows, 0, 0, INFINITY};

  // Keys and values of the texts that steps read; the last of these share a pass with others.
  const int64_t tokens = std::min(corpus.tokens, pair_tokens + std::max(best.rows, longest));
  const int64_t read = suffix ? cached_bytes(model, engine.ops, tokens) : 0;
  const auto shape = [&](bool cached) {
    StepShape step = step_shape(s, best.rows, longest, cached);
    step.pairs = std::min(step.pairs, std::ssize(task.pairs));
    return step;
  };
  const auto plan = [&](const Policy& p, bool cached) {
    return plan_step(model, engine.ops, threads, shape(cached), p);
  };
  const auto cost = [&](const Policy& p, bool cached) {
    return step_cost(model, shape(cached), p, plan(p, cached));
  };
  // The step takes what the texts that it reads leave, when all are kept (0); or so many quarters of the
  // memory at most, and the cache the rest.
  for (const int64_t quarters : {0, 4, 3, 2, 1}) {
    const bool cached = quarters == 0;
    const int64_t room = cached ? bytes - read : bytes - bytes / 4 * (4 - quarters);
    if (room < 0 || (cached && read > s.text_cache)) continue;
    const auto [policy, fits] =
        choose_policy(model, engine.ops, threads, shape(cached), room, s.micro, s.spacing);
    if (!fits) continue;
    const Plan step = plan(policy, cached);
    const int64_t peak = std::max<int64_t>(step.peak, passes);
    if (peak > room) continue;
    const int64_t cache = std::min(s.text_cache, bytes - peak);
    const double share = cached ? 1 : std::min(1.0, static_cast<double>(cache) / read);
    const double slower = (share * cost(policy, true) + (1 - share) * cost(policy, false)) / cost({}, true);
    if (slower < best.slower) best = {best.rows, size_t(cache), size_t(peak), slower};
    if (!suffix || (cached && step.again == 0)) break;
  }
  if (best.slower < INFINITY) return best;

  best.rows = 1;
  size_t least = SIZE_MAX;
  for (const int64_t spacing : spacings(model, s.spacing))
    least = std::min(least, plan({s.micro ? s.micro : 1, 0, spacing}, false).peak);
  too_little(engine, beside, std::max(least, passes_peak(engine, task, corpus, 1)));
}

void reserve_for(Engine& engine, Encoder& encoder, const std::vector<Text>& texts,
                 const std::vector<int32_t>& numbers, size_t beside) {
  const size_t bytes = engine.room(beside);
  for (;; encoder.rows = (encoder.rows + 1) / 2) {
    const size_t peak = Passes{encoder}.embed(texts, numbers).peak();
    if (peak <= bytes) break;
    if (encoder.rows == 1) too_little(engine, beside, peak);
  }
  engine.reserve(bytes);
}

}  // namespace quest
