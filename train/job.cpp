#include "train/job.h"

#include <algorithm>
#include <filesystem>

#include "index/exact.h"
#include "index/hnsw.h"
#include "index/tfidf.h"
#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "kernels/base/progress.h"
#include "model/fetch.h"
#include "sampling/import.h"

namespace quest {

namespace {

struct Scores {  // of a method on a side, without the queries' own labels and with them
  std::string name;
  Metrics filtered, raw;
};

class Job {
 public:
  Job(const Settings& settings, const std::string& folder)
      : settings_(settings), folder_(folder), task_(settings, open_job_data(settings)), engine_(settings) {
    if (exists(folder + checkpoint_name))  // fails now, not after the text pass
      require_identity(read_tensors(folder + checkpoint_name), engine_, task_);
    else if (!settings.prompt.empty())
      prompt_from_file(settings, engine_.width());
  }
  std::string run(const std::string& config, Interrupt&, std::string& summary);

 private:
  void announce();
  std::vector<Scores> baselines(const Side& training, const Side& to);
  void choose_tfidf();
  void text_pass();
  std::vector<float> embed(Trainer&, const std::vector<float>& prompt, const std::vector<int32_t>& texts,
                           const char* label);
  Scores score(const std::string& name, const Side&, const std::vector<float>& queries,
               const std::vector<float>& labels);
  void choose_untrained(Trainer&);
  void evaluate_trained(Trainer&);
  void build_index(const std::vector<float>& labels, const std::vector<float>& queries);
  std::string result(const TrainState&) const;
  std::string summary() const;
  void end_phase(const char* name, double flops);

  const Settings& settings_;
  std::string folder_;
  Task task_;
  Engine engine_;
  std::unique_ptr<TextCache> cache_;
  struct Phase {
    std::string name;
    double seconds, tflop;
  };
  std::vector<Phase> phases_;
  double phase_start_ = now_seconds(), phase_flops_ = 0;
  std::vector<Scores> tfidf_;  // on the test queries
  size_t tfidf_best_ = 0;
  std::vector<std::pair<std::string, double>> untrained_choices_;  // the objective on validation
  Scores untrained_, trained_;
  std::vector<std::pair<std::string, Interval>> gain_;
  double hnsw_recall_ = 0, hnsw_rate_ = 0;
};

void Job::end_phase(const char* name, double flops = -1) {
  const double now = now_seconds();
  phases_.push_back({name, now - phase_start_, (flops < 0 ? engine_.flops - phase_flops_ : flops) / 1e12});
  phase_start_ = now, phase_flops_ = engine_.flops;
}

// What the job will cost, from its counts and one measured pass.
void Job::announce() {
  const double token = pass_flops(*engine_.model, 1, 1), texts = task_.corpus.size(),
               tokens = task_.corpus.tokens();
  const double rows =
      settings_.placement == "suffix" ? settings_.prompt_rows : tokens / texts;  // a text's, later
  const double ranked = task_.labels.size() + task_.test.queries.size();
  const double checked = std::min(validation_limit, task_.labels.size()) + task_.validation.queries.size();
  const double steps = task_.steps(),
               work = token * (tokens + rows * (steps * 4 * settings_.batch + 2 * ranked +
                                                checked * (2 + steps / settings_.validate_every)));
  fprintf(stderr,
          "job: %zu labels, %zu test, %zu validation queries, %zu pairs, %.0f distinct texts of %.1f tokens; "
          "about %.0f TFLOP\n",
          task_.labels.size(), task_.test.queries.size(), task_.validation.queries.size(), task_.pairs.size(),
          texts, tokens / texts, work / 1e12);
  std::vector<Text> some;
  double measured = 0, seconds = 0;
  for (int64_t i = 0; i < task_.corpus.size() && measured < 1000; measured += some.back().count)
    some.push_back(task_.corpus.text(i++));
  for (int i = 0; i < 2; ++i) {  // one pass to warm up, one to measure
    Scratch scope(engine_.arena);
    const double start = now_seconds();
    embed_texts(engine_.encoder(), some.data(), std::ssize(some),
                new_matrix(engine_.context, std::ssize(some), engine_.width(), Type::f32));
    seconds = now_seconds() - start;
  }
  const double speed = measured * token / seconds;
  fprintf(stderr, "speed: %.0f GFLOP/s with kernels %s, %d threads; expected time %s\n", speed / 1e9,
          engine_.ops.path, engine_.threads.count(), human_seconds(work / speed).c_str());
}

// The four TF-IDF rankings of a side, fitted on these training queries.
std::vector<Scores> Job::baselines(const Side& training, const Side& to) {
  const auto text_of = [](const Texts& texts, const std::vector<int32_t>& rows) -> TextOf {
    return [&](int64_t i) { return join_text(texts.title(rows[i]), texts.content(rows[i])); };
  };
  Tfidf tfidf(text_of(task_.data.train.texts, training.queries), training.labels(),
              text_of(task_.data.labels, task_.labels), std::ssize(task_.labels));
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

void Job::choose_tfidf() {
  fprintf(stderr, "TF-IDF: four baselines over %zu training queries and %zu labels\n",
          task_.training.queries.size() + task_.validation.queries.size(), task_.labels.size());
  std::vector<int32_t> all = task_.training.queries;
  all.insert(all.end(), task_.validation.queries.begin(), task_.validation.queries.end());
  std::sort(all.begin(), all.end());
  tfidf_ = baselines(task_.side(task_.data.train, all), task_.test);
  if (!task_.validation.queries.empty()) {
    const auto on_validation = baselines(task_.training, task_.validation);
    for (size_t i = 1; i < on_validation.size(); ++i)
      if (objective(on_validation[i].filtered) > objective(on_validation[tfidf_best_].filtered))
        tfidf_best_ = i;
  }
  end_phase("tfidf");
}

void Job::text_pass() {
  const bool suffix = settings_.placement == "suffix";
  const auto half = static_cast<int64_t>(available_memory() / 2);  // the other half is for everything else
  cache_ =
      std::make_unique<TextCache>(engine_, task_.corpus, suffix ? std::min(settings_.text_cache, half) : -1);
  if (suffix)
    fprintf(stderr, "text cache: %ld of %ld texts kept, %.2f GiB\n", cache_->kept, task_.corpus.size(),
            cache_->bytes / 0x1p30);
  end_phase("text_pass");
}

std::vector<float> Job::embed(Trainer& trainer, const std::vector<float>& prompt,
                              const std::vector<int32_t>& texts, const char* label) {
  engine_.stop_if_asked();
  return trainer.embed(prompt, texts, label);
}

Scores Job::score(const std::string& name, const Side& side, const std::vector<float>& queries,
                  const std::vector<float>& labels) {
  const int64_t d = engine_.width();
  const Ranked lists =
      exact_top_k({queries.data(), std::ssize(queries) / d, d}, {labels.data(), std::ssize(labels) / d, d},
                  depth + side.most_dropped(), engine_.threads);
  return {name, measure(task_, side, lists, true), measure(task_, side, lists, false)};
}

// The best on validation of: no prompt with the last token, no prompt with the mean, centred over the labels
// (what is known before any query comes), the start prompt.
void Job::choose_untrained(Trainer& trainer) {
  const int64_t d = engine_.width();
  const auto rows = [&](const std::vector<float>& state, const std::vector<int32_t>& texts) {
    std::vector<float> out;
    for (const int32_t t : texts) out.insert(out.end(), state.begin() + t * d, state.begin() + (t + 1) * d);
    return out;
  };
  const auto without = [&](const char* name, const std::vector<float>& state, bool centred,
                           const Side& side) {
    std::vector<float> queries = rows(state, side.texts), labels = rows(state, task_.label_texts);
    const std::vector<float> centre = centred ? mean_of_rows(labels, d) : std::vector<float>();
    for (auto* e : {&queries, &labels}) engine_.normalize(*e, centred ? engine_.view(centre) : View{});
    return score(name, side, queries, labels);
  };
  const std::vector<float>& prompt = trainer.state.start;
  std::vector<float> labels;  // with the start prompt, once for both sides
  const auto variant = [&](size_t i, const Side& side) {
    if (i == 0) return without("no prompt, last token", cache_->last, false, side);
    if (i == 1) return without("no prompt, centred mean", cache_->mean, true, side);
    if (labels.empty()) labels = embed(trainer, prompt, task_.label_texts, "start prompt, labels");
    return score("start prompt", side, embed(trainer, prompt, side.texts, "start prompt, queries"), labels);
  };
  size_t best = 0;
  for (size_t i = 0; i < 3 && !task_.validation.queries.empty(); ++i) {
    const Scores s = variant(i, task_.validation);
    untrained_choices_.emplace_back(s.name, objective(s.filtered));
    if (untrained_choices_[i].second > untrained_choices_[best].second) best = i;
  }
  untrained_ = variant(best, task_.test);
  end_phase("untrained");
}

void Job::build_index(const std::vector<float>& labels, const std::vector<float>& queries) {
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

void Job::evaluate_trained(Trainer& trainer) {
  const TrainState& state = trainer.state;
  const auto queries = embed(trainer, state.best, task_.test.texts, "trained prompt, queries");
  const auto labels = embed(trainer, state.best, task_.label_texts, "trained prompt, labels");
  trained_ = score("trained prompt", task_.test, queries, labels);
  for (const auto& [name, values] : {std::pair("P@1", &Metrics::p1), std::pair("R@10", &Metrics::r10)})
    gain_.emplace_back(name, paired_bootstrap(untrained_.filtered.*values, trained_.filtered.*values,
                                              settings_.seed, engine_.threads));
  end_phase("evaluation");
  TensorFile f{{{"prompt", engine_.view(state.best)}, {"mean", engine_.view(state.mean)}},
               identity(engine_, task_),
               {}};
  f.metadata["placement"] = settings_.placement, f.metadata["pooling"] = settings_.pooling;
  if (settings_.placement == "prefix") f.metadata["bos"] = "the prompt stands before it";
  write_tensors(folder_ + "/prompt.safetensors", f);
  write_tensors(folder_ + "/labels.safetensors", {{{"labels", engine_.view(labels)}}, {}, {}});
  build_index(labels, queries);
  end_phase("index");
}

std::string Job::result(const TrainState& state) const {
  JsonWriter j;
  const auto method = [&](const std::string& name, const Metrics& m) { write_json(j.key(name), m); };
  const std::pair<const char*, const Scores*> methods[] = {
      {"tfidf", &tfidf_[tfidf_best_]}, {"untrained", &untrained_}, {"trained", &trained_}};
  j.object();
  for (const auto& [name, s] : methods) method(name, s->filtered);
  j.key("tfidf_all").object();
  for (const Scores& s : tfidf_) method(s.name, s.filtered);
  j.end();
  j.key("raw").object();
  for (const auto& [name, s] : methods) method(name, s->raw);
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
  j.field("tfidf", tfidf_[tfidf_best_].name).field("untrained", untrained_.name);
  j.key("untrained_validation_R@10").object();
  for (const auto& [name, value] : untrained_choices_) j.field(name, value);
  j.end().field("trained_steps", state.best_step).field("trained_validation_R@10", state.best_score);
  j.field("kernels", engine_.ops.path).field("precision", settings_.precision);
  write_report(j.key("sample"), task_.report);
  j.end().field("hnsw_recall", hnsw_recall_).field("hnsw_ef", Hnsw::ef);
  j.key("seconds").object();
  for (const Phase& p : phases_) j.field(p.name, p.seconds);
  j.field("hnsw_queries_per_second", hnsw_rate_).end().key("tflop").object();
  for (const Phase& p : phases_) j.field(p.name, p.tflop);
  return j.end().end().text() + "\n";
}

// The results for people.
std::string Job::summary() const {
  const std::pair<std::string, Metrics> rows[] = {{"TF-IDF", tfidf_[tfidf_best_].filtered},
                                                  {"untrained", untrained_.filtered},
                                                  {"trained", trained_.filtered}};
  std::string out = metrics_table(rows) + "\n";
  for (const auto& [name, i] : gain_)
    out += format("gain of training in %s: %+.1f, 95%% interval %+.1f to %+.1f\n", name.c_str(), i.mean,
                  i.low, i.high);
  return out + format("HNSW recall %.1f%% at ef %ld, %.0f queries/s; %.1f TFLOP in %.0f s\n", hnsw_recall_,
                      Hnsw::ef, hnsw_rate_, phases_.back().tflop, phases_.back().seconds);
}

std::string Job::run(const std::string& config, Interrupt& interrupt, std::string& summary_text) {
  task_.draw_pairs(engine_.threads);
  fprintf(stderr, "%s", describe(task_.report).c_str());
  end_phase("sample");
  make_folders(folder_);  // bad input has failed by now, and leaves no folder
  if (!exists(folder_ + "/config.json")) write_file(folder_ + "/config.json", config);
  engine_.interrupt = &interrupt;
  task_.collect_texts(*engine_.tokenizer);
  end_phase("tokenise");
  announce();
  end_phase("probe", 0);
  choose_tfidf();
  text_pass();
  Trainer trainer(engine_, task_, cache_->texts, folder_);
  if (!trainer.resume()) trainer.start();
  if (!trainer.run(interrupt)) return "";
  end_phase("training", trainer.state.flops);
  choose_untrained(trainer);
  evaluate_trained(trainer);
  Phase total{"total", 0, 0};
  for (const Phase& p : phases_) total.seconds += p.seconds, total.tflop += p.tflop;
  phases_.push_back(total);
  const std::string text = result(trainer.state);
  summary_text = summary();
  write_file(folder_ + "/summary.txt", summary_text);
  write_file(folder_ + "/result.json", text);
  return text;
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

std::string run_job(const Settings& settings, const std::string& folder, const std::string& config,
                    Interrupt& interrupt, std::string& summary) {
  try {
    return Job(settings, folder).run(config, interrupt, summary);
  } catch (const Stopped&) {
    return "";
  }
}

}  // namespace quest
