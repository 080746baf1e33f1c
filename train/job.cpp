#include "train/job.h"

#include <algorithm>
#include <deque>
#include <filesystem>

#include "index/exact.h"
#include "index/hnsw.h"
#include "index/tfidf.h"
#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "kernels/base/progress.h"
#include "model/fetch.h"
#include "sampling/import.h"
#include "train/memory.h"
#include "train/prompt_file.h"

namespace quest {

namespace {

struct Phase {
  std::string name;
  double seconds, tflop;
};

struct Phases {
  const Engine& engine;
  std::vector<Phase> list = {};
  double start = 0, flops = 0;

  void begin() { start = now_seconds(), flops = engine.flops; }
  void end(const char* name) { end(name, now_seconds() - start, engine.flops - flops); }
  void end(const char* name, double seconds, double work) {
    list.push_back({name, seconds, work / 1e12});
    begin();
  }
};

struct Scores {  // of a method on a side, without the queries' own labels and with them
  std::string name;
  Metrics filtered, raw;
  double validation = -1;  // its objective there, or -1
};

auto& best(const std::vector<Scores>& s) { return *std::ranges::max_element(s, {}, &Scores::validation); }

struct Job {
  Job(const std::string& folder, Task& task, Engine& engine)
      : settings_(task.settings), folder_(folder), task_(task), engine_(engine), phases_{engine} {
    engine.require_fitting(settings_);
    if (exists(folder + checkpoint_name))  // fails now, not after the text pass
      require_identity(read_tensors(folder + checkpoint_name), engine_, task_);
    else if (!settings_.prompt.empty())
      prompt_from_file(settings_, engine_.width());
  }
  const Settings& settings_;
  std::string folder_;
  FileLock lock_;
  Task& task_;
  Engine& engine_;
  Phases phases_;
  std::vector<Scores> tfidf_, untrained_;  // on the test queries
  Scores trained_;
  std::vector<std::pair<std::string, Interval>> gain_;
  double hnsw_recall_ = 0, hnsw_rate_ = 0;

  void draw() {
    phases_.begin();
    task_.draw_pairs(engine_.threads);
    fprintf(stderr, "%s", describe(task_.report).c_str());
    fprintf(stderr, "job %s: %zu labels, %zu test, %zu validation queries, %zu pairs, %ld steps\n",
            settings_.job.c_str(), task_.labels.size(), task_.test.queries.size(),
            task_.validation.queries.size(), task_.pairs.size(), task_.steps());
    phases_.end("sample");
  }

  void make_folder(const std::string& config) {  // what cannot run has failed by now, and leaves none
    make_folders(folder_);
    if (!exists(folder_ + "/config.json")) write_file(folder_ + "/config.json", config);
    lock_ = {folder_ + "/config.json", "this run"};
  }

  // Tokens that the job will run through the model, forward and backward, after the text pass, about.
  double work(double tokens_a_text) const {
    const double rows = settings_.placement == "suffix" ? settings_.prompt_rows : tokens_a_text;
    const double ranked = task_.labels.size() + task_.test.queries.size();
    const double checked = task_.validation_labels.size() + task_.validation.queries.size();
    const double steps = task_.steps();
    return rows *
           (steps * 4 * settings_.batch + 2 * ranked + checked * (2 + steps / settings_.validate_every));
  }

  // The four TF-IDF rankings of a side, fitted on these training queries.
  std::vector<Scores> baselines(const Side& training, const Side& to) {
    const auto text_of = [](const Texts& texts, const std::vector<int32_t>& rows) -> TextOf {
      return [&](int64_t i) { return join_text(texts.title(rows[i]), texts.content(rows[i])); };
    };
    Tfidf tfidf(text_of(task_.data.train.texts, training.queries), training.labels(),
                text_of(task_.data.labels, task_.labels), std::ssize(task_.labels), engine_.host_room());
    const auto rank = [&](SparseRows dropped) {
      return tfidf.rank(text_of(to.split->texts, to.queries), std::ssize(to.queries), dropped, depth,
                        engine_.threads);
    };
    const auto filtered = rank(to.dropped()), raw = rank({});
    std::vector<Scores> scores;
    for (size_t i = 0; i < raw.size(); ++i)
      scores.push_back(
          {Tfidf::names[i], measure(task_, to, filtered[i], false), measure(task_, to, raw[i], false)});
    return scores;
  }

  void choose_tfidf() {
    if (interrupted()) throw Stopped{};
    phases_.begin();
    fprintf(stderr, "TF-IDF: four baselines over %zu training queries and %zu labels\n",
            task_.training.queries.size() + task_.validation.queries.size(), task_.labels.size());
    std::vector<int32_t> all = task_.training.queries;
    all.insert(all.end(), task_.validation.queries.begin(), task_.validation.queries.end());
    std::sort(all.begin(), all.end());
    tfidf_ = baselines(task_.side(task_.data.train, all), task_.test);
    if (!task_.validation.queries.empty()) {
      const auto on_validation = baselines(task_.training, task_.validation);
      for (size_t i = 0; i < tfidf_.size(); ++i) tfidf_[i].validation = objective(on_validation[i].filtered);
    }
    phases_.end("tfidf");
  }

  Scores score(const std::string& name, const Side& side, const std::vector<float>& queries,
               const std::vector<float>& labels) {
    const int64_t d = engine_.width();
    const Ranked lists =
        exact_top_k({queries.data(), std::ssize(queries) / d, d}, {labels.data(), std::ssize(labels) / d, d},
                    depth + side.most_dropped, engine_.threads);
    return {name, measure(task_, side, lists, true), measure(task_, side, lists, false)};
  }

  // No prompt with the last token, no prompt with the mean, centred over the labels (what is known before any
  // query comes), the start prompt; and which is the best on validation.
  void choose_untrained(Trainer& trainer, const TextCache& cache) {
    const int64_t d = engine_.width();
    const auto rows = [&](const std::vector<float>& state, const std::vector<int32_t>& texts) {
      std::vector<float> out;
      out.reserve(texts.size() * d);
      for (const int32_t t : texts) out.insert(out.end(), state.begin() + t * d, state.begin() + (t + 1) * d);
      return out;
    };
    const std::vector<float> centre = engine_.mean_of(rows(cache.mean, task_.label_texts));
    const char* const names[] = {"no prompt, last token", "no prompt, centred mean", "start prompt"};
    for (size_t i = 0; i < 3; ++i) {
      const auto embedded = [&](const std::vector<int32_t>& texts) {
        if (interrupted()) throw Stopped{};
        if (i == 2) return trainer.embed(trainer.state.start, texts, names[i]);
        std::vector<float> e = rows(i == 0 ? cache.last : cache.mean, texts);
        engine_.normalize(e, i == 0 ? View{} : engine_.view(centre));
        return e;
      };
      const std::vector<float> labels = embedded(task_.label_texts);
      untrained_.push_back(score(names[i], task_.test, embedded(task_.test.texts), labels));
      if (task_.validation.queries.empty()) continue;
      const auto check = score(names[i], task_.validation, embedded(task_.validation.texts), labels);
      untrained_[i].validation = objective(check.filtered);
    }
    phases_.end("untrained");
  }

  void build_index(const std::vector<float>& labels, const std::vector<float>& queries) {
    const int64_t d = engine_.width();
    const Vectors l{labels.data(), std::ssize(labels) / d, d};
    const Vectors q{queries.data(), std::min<int64_t>(std::ssize(queries) / d, 1000), d};
    Progress progress("index", l.count, "labels");
    const Hnsw index(l, &progress);
    index.save(folder_ + "/index.hnsw");
    const Ranked exact = exact_top_k(q, l, depth, engine_.threads);
    const double start = now_seconds();
    const Ranked found = index.search(q, depth, engine_.threads);
    hnsw_rate_ = q.count / (now_seconds() - start);
    hnsw_recall_ = list_recall(found, exact);
  }

  void evaluate_trained(Trainer& trainer) {
    const TrainState& state = trainer.state;
    if (interrupted()) throw Stopped{};
    const auto queries = trainer.embed(state.best, task_.test.texts, "trained prompt, queries");
    if (interrupted()) throw Stopped{};
    const auto labels = trainer.embed(state.best, task_.label_texts, "trained prompt, labels");
    trained_ = score("trained prompt", task_.test, queries, labels);
    for (const auto& [name, values] : {std::pair("P@1", &Metrics::p1), std::pair("R@10", &Metrics::r10)})
      gain_.emplace_back(name, paired_bootstrap(best(untrained_).filtered.*values, trained_.filtered.*values,
                                                settings_.seed, engine_.threads));
    phases_.end("evaluation");
    TensorFile f{{{"prompt", engine_.view(state.best)}, {"mean", engine_.view(state.mean)}},
                 identity(engine_, task_),
                 {}};
    f.metadata["placement"] = settings_.placement, f.metadata["pooling"] = settings_.pooling;
    if (settings_.placement == "prefix") f.metadata["bos"] = "the prompt stands before it";
    write_tensors(folder_ + "/prompt.safetensors", f);
    write_tensors(folder_ + "/labels.safetensors", {{{"labels", engine_.view(labels)}}, {}, {}});
    build_index(labels, queries);
    phases_.end("index");
  }

  std::string result(const TrainState& state) const {
    JsonWriter j;
    const std::pair<const char*, const Scores*> methods[] = {
        {"tfidf", &best(tfidf_)}, {"untrained", &best(untrained_)}, {"trained", &trained_}};
    j.object();
    for (const auto& [name, s] : methods) write_json(j.key(name), s->filtered);
    for (const auto& [name, all] :
         {std::pair("tfidf_all", &tfidf_), std::pair("untrained_all", &untrained_)}) {
      j.key(name).object();
      for (const Scores& s : *all) write_json(j.key(s.name), s.filtered);
      j.end();
    }
    j.key("raw").object();
    for (const auto& [name, s] : methods) write_json(j.key(name), s->raw);
    j.end().key("gain").object();
    for (const auto& [name, i] : gain_)
      j.key(name).object().field("mean", i.mean).field("low", i.low).field("high", i.high).end();
    j.end().key("protocol").object();
    j.field("dataset", task_.data.name).field("dataset_sha256", task_.data.sha256);
    j.field("model", engine_.model->name).field("model_sha256", engine_.model->sha256);
    j.field("labels", task_.labels.size()).field("test_queries", task_.test.queries.size());
    j.field("validation_queries", task_.validation.queries.size());
    j.field("own_label", "dropped before ranking, with the pairs of a filter file; kept under raw")
        .field("metrics_from", "exact scan");
    j.field("tfidf", best(tfidf_).name).field("untrained", best(untrained_).name);
    j.key("untrained_validation_R@10").object();
    for (const Scores& s : untrained_)
      if (s.validation >= 0) j.field(s.name, s.validation);
    j.end().field("trained_steps", state.best_step).field("trained_validation_R@10", state.best_score);
    j.field("kernels", engine_.ops.path).field("precision", settings_.precision);
    write_report(j.key("sample"), task_.report);
    j.end().field("hnsw_recall", hnsw_recall_).field("hnsw_ef", Hnsw::ef);
    j.key("seconds").object();
    for (const auto& p : phases_.list) j.field(p.name, p.seconds);
    j.field("hnsw_queries_per_second", hnsw_rate_).end().key("tflop").object();
    for (const auto& p : phases_.list) j.field(p.name, p.tflop);
    return j.end().end().text() + "\n";
  }

  // The results for people.
  std::string summary() const {
    const std::pair<std::string, Metrics> rows[] = {{"TF-IDF", best(tfidf_).filtered},
                                                    {"untrained", best(untrained_).filtered},
                                                    {"trained", trained_.filtered}};
    std::string out = metrics_table(rows) + "\n";
    for (const auto& [name, i] : gain_)
      out += format("gain of training in %s: %+.1f, 95%% interval %+.1f to %+.1f\n", name.c_str(), i.mean,
                    i.low, i.high);
    return out + format("HNSW recall %.1f%% at ef %ld, %.0f queries/s; %.1f TFLOP in %.0f s\n", hnsw_recall_,
                        Hnsw::ef, hnsw_rate_, phases_.list.back().tflop, phases_.list.back().seconds);
  }

  // cache: of all texts; shared: what it took, and what else all jobs took together.
  void run(const TextCache& cache, const Phases& shared) {
    phases_.list.insert(phases_.list.end(), shared.list.begin(), shared.list.end());
    if (interrupted()) throw Stopped{};
    Trainer trainer(engine_, task_, cache.texts, folder_);
    if (!trainer.resume()) trainer.start();
    trainer.run();
    phases_.end("training", trainer.state.seconds, trainer.state.flops);  // of all processes that had a part
    choose_untrained(trainer, cache);
    evaluate_trained(trainer);
    Phase total{"total", 0, 0};
    for (const auto& p : phases_.list) total.seconds += p.seconds, total.tflop += p.tflop;
    phases_.list.push_back(total);
    write_file(folder_ + "/summary.txt", summary());
    write_file(folder_ + "/result.json", result(trainer.state));
  }
};

// FLOP/s of one pass over some texts, after one to warm up.
double measured_speed(Engine& engine, const Corpus& corpus) {
  int64_t n = 0, tokens = 0;
  double seconds = 0;
  const double counted = engine.flops;  // the probe is no work of a job
  while (n < std::min(std::ssize(corpus.texts), part_texts) && tokens < 1000)
    tokens += corpus.texts[n++].count;
  for (int i = 0; i < 2; ++i) {
    std::vector<float> rows(n * engine.width());
    Scope scope(engine.context);
    const View e = bring(engine.context, engine.view(rows), "texts/embeddings");
    const double start = now_seconds();
    embed_texts(engine.encoder(), corpus.texts.data(), n, e);
    fetch(engine.context, e, engine.view(rows));
    seconds = now_seconds() - start;
  }
  engine.flops = counted;
  return tokens * pass_flops(*engine.model, 1, 1) / seconds;
}

}  // namespace

Dataset open_job_data(const Settings& settings) {
  if (!settings.data.empty()) return open_dataset(settings.data);
  const std::string source = default_dataset_source();
  const std::string cache = std::filesystem::path(cached_model_path()).parent_path();
  const std::string folder = cache + "/debian-" + sha256_file(source + "/trn.json.gz").substr(0, 12);
  if (!exists(folder)) {
    fprintf(stderr, "data: converting the default dataset to %s\n", folder.c_str());
    make_folders(cache);
    import_dataset(source, folder, {.name = "debian"});
  }
  return open_dataset(folder);
}

bool run_jobs(const std::vector<RunFolder>& runs, size_t memory) try {
  if (runs[0].settings.model.empty()) default_model_path();  // fetched while Ctrl-C still ends pip
  hold_interrupts();
  std::deque<Task> tasks;  // bad data fails before the model is loaded
  for (const RunFolder& run : runs) tasks.emplace_back(run.settings, open_job_data(run.settings));
  const Settings& s = runs[0].settings;
  Engine engine(s, memory);
  std::deque<Job> jobs;
  for (size_t i = 0; i < runs.size(); ++i) jobs.emplace_back(runs[i].path, tasks[i], engine);
  for (Job& job : jobs) job.draw();

  Phases shared{engine};
  shared.begin();
  Corpus corpus;
  for (Task& task : tasks) task.collect_pairs(*engine.tokenizer, corpus);
  const int64_t pair_tokens = corpus.tokens;
  for (Task& task : tasks) task.collect_others(*engine.tokenizer, corpus);
  shared.end("tokenise");
  size_t beside = 0, metrics = 0;
  for (const Task& task : tasks) {
    beside = std::max(beside, results_bytes(task, corpus, engine.width(), engine.threads.count()));
    metrics += metrics_bytes(task);
  }
  beside += metrics;
  const bool suffix = std::ranges::any_of(runs, [](auto& r) { return r.settings.placement == "suffix"; });
  Division all{engine.rows, suffix ? size_t(cached_bytes(*engine.model, engine.ops, corpus.tokens)) : 0, 0,
               1};
  for (const Task& task : tasks) {
    const Division d = divide(engine, task, corpus, pair_tokens, beside);
    all = {std::min(all.rows, d.rows), std::min(all.cache, d.cache), std::max(all.peak, d.peak),
           std::max(all.slower, d.slower)};
  }
  engine.rows = all.rows;
  const Taken taken = engine.taken(beside);
  fprintf(
      stderr,
      "memory: %s given, %s planned: program %s, loaded %s, results %s, passes and steps %s, texts %s\n"
      "memory: passes of %ld tokens; a step does %.2f times the work that it would with all it could use\n",
      human_bytes(engine.memory).c_str(), human_bytes(taken.all() + all.peak + all.cache).c_str(),
      human_bytes(taken.program).c_str(), human_bytes(taken.loaded).c_str(),
      human_bytes(taken.results).c_str(), human_bytes(all.peak).c_str(), human_bytes(all.cache).c_str(),
      all.rows, all.slower);
  shared.end("plan");
  for (Job& job : jobs) job.choose_tfidf();
  for (size_t i = 0; i < runs.size(); ++i) jobs[i].make_folder(runs[i].config);
  engine.reserve(all.peak + all.cache);
  shared.begin();
  const double count = corpus.texts.size(), length = corpus.tokens / count;
  double work = corpus.tokens;
  for (const Job& job : jobs) work += job.work(length);
  work *= pass_flops(*engine.model, 1, 1);
  fprintf(stderr, "texts: %.0f distinct ones of %.1f tokens; about %.0f TFLOP in all\n", count, length,
          work / 1e12);
  const double speed = measured_speed(engine, corpus);
  fprintf(stderr, "speed: %.0f GFLOP/s with kernels %s, %d threads; expected time %s\n", speed / 1e9,
          engine.ops.path, engine.threads.count(), human_seconds(work / speed).c_str());
  shared.end("probe");

  const TextCache cache(engine, corpus, suffix ? int64_t(all.cache) : -1);
  if (suffix)
    fprintf(stderr, "text cache: %ld of %.0f texts kept, %.2f GiB\n", cache.kept, count,
            cache.bytes / 0x1p30);
  shared.end("text_pass");
  for (Job& job : jobs) job.run(cache, shared);
  return true;
} catch (const Stopped&) {
  return false;
}

}  // namespace quest
