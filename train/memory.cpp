#include "train/memory.h"

#include <algorithm>

#include "index/hnsw.h"
#include "train/trainer.h"

namespace quest {

namespace {

constexpr size_t group_bytes = 2 * sizeof(Group);  // of a text, in a pass

// One pass over texts that are added by their lengths alone, to learn what it takes of the arena.
struct Rehearsed {
  const Encoder& like;
  Rehearsal rehearsal{*like.context.ops, like.context.threads->count(), false};
  Encoder e{like.model, rehearsal.context, like.placement, like.pooling, like.prompt, like.rows};
  std::vector<int32_t> ids = {};  // which the graph reads, and not the ops
  std::vector<Text> texts = {};
  float number = 0;

  View row(int64_t rows) { return {&number, Type::f32, rows, e.model.width, e.model.width}; }
  void add(int64_t count, int64_t length, const void* kept = nullptr) {
    ids.resize(std::max<size_t>(ids.size(), length));
    const auto* data = static_cast<const std::byte*>(kept);
    for (; count > 0; --count)
      texts.push_back({nullptr, int32_t(length), {const_cast<std::byte*>(data), 0, kept ? length : 0}});
  }
  // Runs the pass; returns the bytes of arena that it took.
  size_t embed() {
    for (Text& t : texts) t.tokens = ids.data();
    Scope scope(e.context);
    const int64_t n = std::ssize(texts);
    e.prompt = bring(e.context, e.prompt, "prompt/rows");
    const View rows = bring(e.context, row(std::max(n, part_texts)), "texts/embeddings");
    const Pass prefix = prefix_pass(e, forward_only);
    embed_pass(e, with_keys_values(e, texts.data(), n), n, prefix.own, forward_only, rows);
    return rehearsal.plan().peak;
  }
  size_t text_pass() {
    for (Text& t : texts) t.tokens = ids.data();
    const int64_t n = std::ssize(texts);
    int64_t tokens = 0;
    for (const Text& t : texts) tokens += t.count;
    text_pass_into(e, texts.data(), n, tokens, row(n), row(n));
    return rehearsal.plan().peak;
  }
};

// Bytes of arena that embedding any texts of at most `longest` tokens takes, whether they are kept or not.
size_t embedding_bytes(const Encoder& encoder, int64_t longest) {
  Rehearsed r{encoder};
  const int64_t rows = encoder.rows, tokens = std::max(rows, longest);
  if (encoder.placement == Placement::suffix) {  // embed_texts: 4 rows and one text wait, others may be kept
    const int64_t n = std::min<int64_t>(part_texts, rows / encoder.prompt.rows + 1);
    const int64_t waiting = std::min(n, (4 * rows + longest - 1) / longest + 1);
    r.add(n - waiting, longest, &r), r.add(waiting, longest);
    r.e.rows = rows + longest;  // full texts fill a pass as shorter ones may
  } else {
    const int64_t n = std::min(part_texts, rows);
    r.add(1, longest);
    if (n > 1) r.add(n - 1, (tokens - longest + n - 2) / (n - 1) + (tokens == longest));
  }
  return r.embed() + longest * group_bytes;
}

// Of the text pass and every embedding of the job.
size_t passes_bytes(const Engine& engine, const Settings& s, int64_t rows, int64_t longest) {
  Encoder plain = engine.encoder();
  Rehearsed r{plain};
  r.add(1, longest), r.add(std::max<int64_t>(0, rows - longest), 1);
  Encoder encoder = engine.encoder(s, r.row(s.prompt_rows));
  encoder.rows = rows;
  return std::max(r.text_pass() + longest * group_bytes, embedding_bytes(encoder, longest));
}

[[noreturn]] void too_little(const Engine& engine, size_t beside, size_t least) {
  const auto [program, loaded, results] = engine.taken(beside);
  const size_t needed = program + loaded + results + least;
  fail(Exit::machine,
       "memory: expected at least %zu bytes, %s for passes and steps, %s for results, %s for what is loaded "
       "and "
       "%s for the program, found %zu; give --memory %zu, or lower --batch or --length, or leave out --micro "
       "and --spacing",
       needed, human_bytes(least).c_str(), human_bytes(results).c_str(), human_bytes(loaded).c_str(),
       human_bytes(program).c_str(), engine.memory, needed);
}

}  // namespace

size_t metrics_bytes(const Task& task) {
  return 16 * 2 * 8 * task.test.queries.size() +
         4 * 8 * task.labels.size();  // of queries, 16 times; of labels
}

size_t results_bytes(const Task& task, const Corpus& corpus, int64_t width, int threads) {
  const int64_t L = task.labels.size(), Q = task.test.queries.size(), V = task.validation.queries.size();
  const int64_t ranked = std::ssize(task.validation_labels), row = width * 4;
  const auto lists = [](const Side& side, int64_t queries) {  // longer ones, and what is left of them, twice
    return queries * (3 * depth + side.most_dropped) * 8;
  };
  const int64_t states = std::ssize(corpus.texts) * (sizeof(Text) + 2 * row);  // without a prompt
  const int64_t training = 8 * task.settings.prompt_rows * row + std::ssize(task.pairs) * 4;
  const int64_t validating = (V + ranked) * row + lists(task.validation, V);
  const int64_t choosing = (L + V) * row + lists(task.validation, V);
  const int64_t evaluating = (L + Q) * row + lists(task.test, Q);
  const int64_t indexing =
      (L + Q) * row + Hnsw::bytes(L, width, threads) + 2 * lists(task.test, std::min<int64_t>(Q, 1000));
  return states + training + std::max({validating, choosing, evaluating, indexing});
}

Division divide(const Engine& engine, const Task& task, const Corpus& corpus, int64_t pair_tokens,
                size_t beside) {
  const int64_t bytes = engine.room(beside);
  const Settings& s = task.settings;
  const Model& model = *engine.model;
  const int threads = engine.threads.count();
  const bool suffix = s.where() == Placement::suffix;
  const int64_t longest = std::ranges::max(corpus.texts, {}, &Text::count).count;

  Division best{s.rows, 0, 0, INFINITY};  // passes take half of the memory at most, if they can
  int64_t passes;
  while ((passes = passes_bytes(engine, s, best.rows, longest)) > bytes / 2 && best.rows > 1)
    best.rows = (best.rows + 1) / 2;

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
    const Plan step = plan(policy, cached);
    const int64_t peak = std::max<int64_t>(step.peak, passes);
    if (fits && peak <= room) {
      const int64_t cache = std::min(s.text_cache, bytes - peak);
      const double share = cached ? 1 : std::min(1.0, static_cast<double>(cache) / read);
      const double slower = (share * cost(policy, true) + (1 - share) * cost(policy, false)) / cost({}, true);
      if (slower < best.slower) best = {best.rows, size_t(cache), size_t(peak), slower};
    }
    if (!suffix || (fits && cached && step.again == 0)) break;
  }
  if (best.slower < INFINITY) return best;

  best.rows = 1;
  passes = passes_bytes(engine, s, 1, longest);
  size_t least = SIZE_MAX;
  for (const int64_t spacing : spacings(model, s.spacing))
    for (const bool cached : {false, true}) {
      const Policy p{s.micro ? s.micro : 1, 0, spacing};
      if (cached && read > s.text_cache) continue;
      least = std::min(least, std::max<size_t>(plan(p, cached).peak, passes) + (cached ? read : 0));
    }
  too_little(engine, beside, least);
}

void reserve_for(Engine& engine, Encoder& encoder, const std::vector<Text>& texts, size_t beside) {
  if (texts.empty()) return;
  const int64_t longest = std::ranges::max(texts, {}, &Text::count).count;
  const size_t bytes = engine.room(beside);
  size_t passes;
  while ((passes = embedding_bytes(encoder, longest)) > bytes && encoder.rows > 1)
    encoder.rows = (encoder.rows + 1) / 2;
  if (passes > bytes) too_little(engine, beside, passes);
  engine.reserve(passes);
}

}  // namespace quest
