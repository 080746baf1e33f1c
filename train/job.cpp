#include "train/job.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "index/exact.h"
#include "index/hnsw.h"
#include "index/metrics.h"
#include "index/tfidf.h"
#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "model/fetch.h"
#include "sampling/import.h"
#include "train/tensors.h"

namespace quest {

namespace {

constexpr int64_t depth = 100;  // labels of a ranked list

// A method's lists of depth + 1, evaluated by both protocols.
struct Scores {
  std::string name;
  Metrics filtered, raw;  // without the query's own label; with it
};

Scores score(const std::string& name, const Ranked& filtered, const Ranked& raw, const Truth& truth,
             const Selection& s, int64_t training_queries) {
  return {name, evaluate(filtered, truth.view(), s.counts, training_queries),
          evaluate(raw, truth.view(), s.counts, training_queries)};
}

double objective(const Metrics& m) { return m.percent[6]; }  // R@10 decides between variants, on validation

// One side to rank: held-out training queries, or test queries.
struct Side {
  const Split& split;
  const std::vector<int32_t>& queries;
  const std::vector<int32_t>& texts;
  Truth truth;
  std::vector<int32_t> own;
};

struct Phases {  // seconds and work by phase
  Engine& engine;
  std::vector<std::pair<std::string, double>> seconds, tflop;
  double time = now_seconds(), work = 0;
  void end(const std::string& name, double flops = -1) {
    const double now = now_seconds();
    seconds.emplace_back(name, now - time);
    tflop.emplace_back(name, (flops < 0 ? engine.flops - work : flops) / 1e12);
    time = now, work = engine.flops;
  }
};

class Job {
 public:
  Job(const Settings& settings, const std::string& folder)
      : settings_(settings),
        folder_(folder),
        data_(open_job_data(settings)),
        selection_(select_job(data_, settings)),
        engine_(settings),
        phases_{engine_, {}, {}} {
    if (selection_.labels.empty() || selection_.test.empty() || selection_.training.empty())
      fail(Exit::input,
           "%s: expected labels with %lld training positives, training and test queries that have one, found "
           "%zu, %zu and %zu; lower --min-positives or choose a larger dataset",
           data_.path.c_str(), static_cast<long long>(settings.min_positives), selection_.labels.size(),
           selection_.training.size(), selection_.test.size());
    if (selection_.validation.empty() && settings.validation > 0)
      fail(Exit::input,
           "%s: expected validation queries, found none of %zu training queries at --validation %g; give a "
           "larger share, or 0 to train to the end without",
           data_.path.c_str(), selection_.training.size(), settings.validation);
    if (exists(folder + "/checkpoint.safetensors"))
      Trainer::open_checkpoint(folder, engine_, settings, data_);  // fails now, not after the text pass
  }
  std::string run(const std::string& config, Interrupt&, std::string& table);

 private:
  void baselines();
  void sample();
  void collect_texts();
  void announce() const;
  void text_pass();
  void choose_untrained(Trainer&);
  void evaluate_trained(Trainer&);
  void build_index(const std::vector<float>& labels, const std::vector<float>& queries);
  std::string result(const Trainer&);
  Side side(bool test) const;
  Scores score_embeddings(const std::string& name, const Side&, const std::vector<float>& queries,
                          const std::vector<float>& labels);
  std::vector<float> rows_of_state(const std::vector<float>& state, const std::vector<int32_t>& texts,
                                   View mean);

  const Settings& settings_;
  std::string folder_;
  Dataset data_;
  Selection selection_;
  Engine engine_;
  Phases phases_;
  std::vector<DrawnPair> pairs_;
  SampleReport report_;
  JobTexts texts_;
  std::unique_ptr<TextCache> cache_;
  std::vector<Scores> tfidf_;  // on the test queries
  size_t tfidf_best_ = 0;
  std::vector<std::pair<std::string, double>> untrained_choices_;  // R@10 on validation
  Scores untrained_, trained_;
  double hnsw_recall_ = 0, hnsw_rate_ = 0;
  int64_t hnsw_ef_ = 0;
};

Side Job::side(bool test) const {
  const Split& split = test ? data_.test : data_.train;
  const auto& queries = test ? selection_.test : selection_.validation;
  return {split, queries, test ? texts_.of_test : texts_.of_validation, truth_of(split, queries, selection_),
          own_labels(split, queries, selection_)};
}

void Job::baselines() {
  const auto text_of = [](const Texts& texts, const std::vector<int32_t>& rows) -> TextOf {
    return [&](int64_t i) {
      const int32_t row = rows[static_cast<size_t>(i)];
      return join_text(texts.title(row), texts.content(row));
    };
  };
  const auto n = static_cast<int64_t>(selection_.labels.size());
  const auto rank = [&](const std::vector<int32_t>& training, const Side& to) {
    const Truth truth = truth_of(data_.train, training, selection_);
    Tfidf tfidf(text_of(data_.train.texts, training), truth.view(), text_of(data_.labels, selection_.labels),
                n);
    const auto lists = [&](std::span<const int32_t> own) {
      const auto count = static_cast<int64_t>(to.queries.size());
      return tfidf.rank(text_of(to.split.texts, to.queries), count, own, {}, depth, engine_.threads);
    };
    const auto filtered = lists(to.own), raw = lists({});
    std::vector<Scores> scores;
    for (size_t i = 0; i < raw.size(); ++i)
      scores.push_back(
          score(Tfidf::names[i], filtered[i], raw[i], to.truth, selection_, data_.train.texts.size()));
    return scores;
  };
  fprintf(stderr, "TF-IDF: four baselines over %zu training queries and %lld labels\n",
          selection_.training.size() + selection_.validation.size(), static_cast<long long>(n));
  std::vector<int32_t> all = selection_.training;
  all.insert(all.end(), selection_.validation.begin(), selection_.validation.end());
  std::sort(all.begin(), all.end());
  tfidf_ = rank(all, side(true));
  if (!selection_.validation.empty()) {
    const auto on_validation = rank(selection_.training, side(false));
    for (size_t i = 1; i < on_validation.size(); ++i)
      if (objective(on_validation[i].filtered) > objective(on_validation[tfidf_best_].filtered))
        tfidf_best_ = i;
  }
  phases_.end("tfidf");
}

void Job::sample() {
  std::vector<uint8_t> counts(static_cast<size_t>(data_.labels.size()));
  for (const int32_t l : selection_.labels) counts[static_cast<size_t>(l)] = 1;
  PairFilter filter;
  filter.keep = [&](int64_t q) { return !held_out(data_.train.texts.uid(q), settings_.validation); };
  filter.label_ok = counts;
  int64_t total = 0;
  for (const int32_t q : selection_.training)
    for (const int32_t l : data_.train.labels.row(q))
      total += counts[static_cast<size_t>(l)] && l != data_.train.own(q);
  SamplerOptions options;
  options.seed = static_cast<uint64_t>(settings_.seed);
  options.kind = settings_.sampler == "paper"     ? SamplerKind::paper
                 : settings_.sampler == "uniform" ? SamplerKind::uniform
                                                  : SamplerKind::minhash;
  const double ratio = settings_.ratio > 0 ? settings_.ratio : 0.25;
  options.k = static_cast<int64_t>(ratio * static_cast<double>(total));
  if (settings_.ratio == 0) options.k = std::max(options.k, std::min<int64_t>(total, 2000));
  if (settings_.pairs > 0) options.k = std::min(options.k, settings_.pairs);
  if (options.k == 0)
    fail(Exit::input,
         "%s: expected at least one training pair, found %lld at --ratio %g; give a larger share",
         data_.path.c_str(), static_cast<long long>(total), settings_.ratio);
  pairs_ = sample_pairs(data_, filter, options, engine_.threads, &report_);
  fprintf(stderr, "%s", describe(report_).c_str());
  phases_.end("sample");
}

// Labels first, then what training reads, then what is read once: the text cache keeps the first ones.
void Job::collect_texts() {
  CorpusBuilder builder(*engine_.tokenizer, settings_.length);
  const auto add = [&](const Texts& texts, int64_t row) {
    return builder.add(texts.title(row), texts.content(row));
  };
  for (const int32_t l : selection_.labels) texts_.of_label.push_back(add(data_.labels, l));
  for (const DrawnPair& p : pairs_) texts_.of_pair_query.push_back(add(data_.train.texts, p.query));
  for (const int32_t q : selection_.validation) texts_.of_validation.push_back(add(data_.train.texts, q));
  for (const int32_t q : selection_.test) texts_.of_test.push_back(add(data_.test.texts, q));
  texts_.corpus = std::move(builder.corpus);
  phases_.end("tokenise");
}

// What the job will cost, from its counts and one measured pass.
void Job::announce() const {
  const Model& m = *engine_.model;
  const double token = pass_flops(m, 1, 1), K = static_cast<double>(settings_.prompt_rows);
  const double texts = static_cast<double>(texts_.corpus.size()),
               tokens = static_cast<double>(texts_.corpus.tokens.size());
  const bool suffix = settings_.placement == "suffix";
  const double encode = suffix ? K : tokens / texts;  // rows a text, after the text pass
  const auto steps = static_cast<double>(planned_steps(settings_, static_cast<int64_t>(pairs_.size())));
  const double ranked = static_cast<double>(selection_.labels.size() + selection_.test.size());
  const double checked =
      static_cast<double>(std::min<size_t>(1500, selection_.labels.size()) + selection_.validation.size());
  const double work =
      token * (tokens + steps * 4 * static_cast<double>(settings_.batch) * encode +
               encode * (2 * ranked + checked * (2 + steps / static_cast<double>(settings_.validate_every))));
  fprintf(stderr,
          "job: %zu labels, %zu test, %zu validation queries, %zu pairs, %.0f distinct texts of %.1f tokens; "
          "about %.0f TFLOP\n",
          selection_.labels.size(), selection_.test.size(), selection_.validation.size(), pairs_.size(),
          texts, tokens / texts, work / 1e12);
  // One pass to warm up, one to measure.
  Scratch scope(*engine_.context.arena);
  const Encoder e = engine_.encoder(Placement::none, Pooling::last, {});
  std::vector<Text> some;
  double rows = 0;
  for (int64_t i = 0; i < texts_.corpus.size() && rows < 1000; ++i) {
    some.push_back(texts_.corpus.text(i));
    rows += some.back().count;
  }
  View out = new_matrix(engine_.context, static_cast<int64_t>(some.size()), m.width, Type::f32);
  double spent = 0;
  for (int i = 0; i < 2; ++i) {
    const double start = now_seconds();
    embed_texts(e, some.data(), static_cast<int64_t>(some.size()), out);
    spent = now_seconds() - start;
  }
  fprintf(stderr, "speed: %.0f GFLOP/s with kernels %s, %d threads; expected time %s\n",
          rows * token / spent / 1e9, engine_.ops.path, engine_.threads.count(),
          human_seconds(work / (rows * token / spent)).c_str());
}

void Job::text_pass() {
  const auto half = static_cast<int64_t>(available_memory() / 2);  // the other half is for everything else
  const int64_t limit = settings_.placement == "suffix" ? std::min(settings_.text_cache, half) : 0;
  cache_ = std::make_unique<TextCache>(engine_, texts_.corpus, limit);
  if (settings_.placement == "suffix")
    fprintf(stderr, "text cache: %lld of %lld texts kept, %.2f GiB\n", static_cast<long long>(cache_->kept()),
            static_cast<long long>(texts_.corpus.size()), static_cast<double>(cache_->bytes()) / 0x1p30);
  phases_.end("text_pass");
}

Scores Job::score_embeddings(const std::string& name, const Side& s, const std::vector<float>& queries,
                             const std::vector<float>& labels) {
  const int64_t d = engine_.model->width;
  const Vectors q{queries.data(), static_cast<int64_t>(s.queries.size()), d};
  const Vectors l{labels.data(), static_cast<int64_t>(selection_.labels.size()), d};
  const Ranked lists = exact_top_k(q, l, {}, depth + 1, engine_.threads);
  return score(name, drop_own(lists, s.own, depth), drop_own(lists, {}, depth), s.truth, selection_,
               data_.train.texts.size());
}

std::vector<float> Job::rows_of_state(const std::vector<float>& state, const std::vector<int32_t>& texts,
                                      View mean) {
  const auto d = static_cast<size_t>(engine_.model->width);
  std::vector<float> out;
  for (const int32_t t : texts)
    out.insert(out.end(), state.begin() + static_cast<int64_t>(static_cast<size_t>(t) * d),
               state.begin() + static_cast<int64_t>((static_cast<size_t>(t) + 1) * d));
  normalize_all(engine_, out, mean);
  return out;
}

// The best on validation of: the start prompt, no prompt with the last token, no prompt with the centred
// mean.
void Job::choose_untrained(Trainer& trainer) {
  const auto d = static_cast<size_t>(engine_.model->width);
  std::vector<float> centre(d);
  for (size_t j = 0; j < d; ++j) {  // over the labels: what is known before any query comes
    double sum = 0;
    for (const int32_t t : texts_.of_label) sum += cache_->mean()[static_cast<size_t>(t) * d + j];
    centre[j] = static_cast<float>(sum / static_cast<double>(texts_.of_label.size()));
  }
  const View mean = view_of(centre, engine_.model->width);
  const auto state = [&](const char* name, const std::vector<float>& rows, View m, const Side& s) {
    return score_embeddings(name, s, rows_of_state(rows, s.texts, m),
                            rows_of_state(rows, texts_.of_label, m));
  };
  const auto prompt = trainer.start_prompt();
  std::vector<float> labels;  // with the start prompt, once for both sides
  const auto start = [&](const Side& s) {
    if (labels.empty()) labels = trainer.embed(prompt, texts_.of_label, "start prompt, labels");
    const auto queries = trainer.embed(prompt, s.texts, "start prompt, queries");
    return score_embeddings("start prompt", s, queries, labels);
  };
  const auto variant = [&](size_t i, const Side& s) {
    return i == 0   ? state("no prompt, last token", cache_->last(), {}, s)
           : i == 1 ? state("no prompt, centred mean", cache_->mean(), mean, s)
                    : start(s);
  };
  const Side validation = side(false), test = side(true);
  size_t best = 0;
  if (!validation.queries.empty()) {
    for (size_t i = 0; i < 3; ++i) {
      const Scores s = variant(i, validation);
      untrained_choices_.emplace_back(s.name, objective(s.filtered));
      if (untrained_choices_[i].second > untrained_choices_[best].second) best = i;
    }
  }
  untrained_ = variant(best, test);
  phases_.end("untrained");
}

void Job::build_index(const std::vector<float>& labels, const std::vector<float>& queries) {
  const int64_t d = engine_.model->width;
  const Vectors l{labels.data(), static_cast<int64_t>(selection_.labels.size()), d};
  const Vectors q{queries.data(), std::min<int64_t>(static_cast<int64_t>(selection_.test.size()), 1000), d};
  Progress progress("index", static_cast<double>(l.count), "labels");
  const Hnsw index(l, {}, &progress);
  index.save(folder_ + "/index.hnsw");
  TensorFile f;
  f.tensors["labels"] = view_of(labels, d);
  write_tensors(folder_ + "/labels.safetensors", f);
  const Ranked exact = exact_top_k(q, l, {}, depth, engine_.threads);
  const double start = now_seconds();
  const Ranked found = index.search(q, depth, engine_.threads);
  hnsw_rate_ = static_cast<double>(q.count) / (now_seconds() - start);
  hnsw_recall_ = list_recall(found, exact);
  hnsw_ef_ = Hnsw::ef;
}

void Job::evaluate_trained(Trainer& trainer) {
  const Side test = side(true);
  const auto queries = trainer.embed(trainer.state.best, test.texts, "trained prompt, queries");
  const auto labels = trainer.embed(trainer.state.best, texts_.of_label, "trained prompt, labels");
  trained_ = score_embeddings("trained prompt", test, queries, labels);
  phases_.end("evaluation");
  TensorFile f;
  f.tensors["prompt"] = view_of(trainer.state.best, engine_.model->width);
  if (!trainer.state.mean.empty()) f.tensors["mean"] = view_of(trainer.state.mean, engine_.model->width);
  f.metadata = {{"placement", settings_.placement},
                {"pooling", settings_.pooling},
                {"bos", "the prompt stands before it"},
                {"model", engine_.model->sha256},
                {"kernels", engine_.ops.path},
                {"precision", settings_.precision},
                {"data", data_.sha256}};
  write_tensors(folder_ + "/prompt.safetensors", f);
  build_index(labels, queries);
  phases_.end("index");
}

std::string Job::result(const Trainer& trainer) {
  JsonWriter j;
  const auto method = [&](const std::string& key, const Metrics& m) {
    j.key(key);
    write_json(j, m);
  };
  j.object();
  method("tfidf", tfidf_[tfidf_best_].filtered);
  j.key("tfidf_all").object();
  for (const Scores& s : tfidf_) method(s.name, s.filtered);
  j.end();
  method("untrained", untrained_.filtered);
  method("trained", trained_.filtered);
  j.key("raw").object();
  method("tfidf", tfidf_[tfidf_best_].raw);
  method("untrained", untrained_.raw);
  method("trained", trained_.raw);
  j.end();
  j.key("gain").object();
  for (const bool p1 : {true, false}) {
    const Metrics &a = untrained_.filtered, &b = trained_.filtered;
    const Interval i = paired_bootstrap(p1 ? a.p1 : a.r10, p1 ? b.p1 : b.r10,
                                        static_cast<uint64_t>(settings_.seed), engine_.threads);
    j.key(p1 ? "P@1" : "R@10").object().field("mean", i.mean).field("low", i.low).field("high", i.high).end();
  }
  j.end();
  j.key("protocol").object();
  j.field("dataset", data_.name).field("dataset_sha256", data_.sha256).field("model", engine_.model->name);
  j.field("model_sha256", engine_.model->sha256)
      .field("labels", static_cast<int64_t>(selection_.labels.size()));
  j.field("test_queries", static_cast<int64_t>(selection_.test.size()));
  j.field("validation_queries", static_cast<int64_t>(selection_.validation.size()));
  j.field("own_label", "dropped before ranking; kept under raw").field("metrics_from", "exact scan");
  j.field("tfidf", Tfidf::names[tfidf_best_]).field("untrained", untrained_.name);
  j.key("untrained_validation_R@10").object();
  for (const auto& [name, value] : untrained_choices_) j.field(name, value);
  j.end()
      .field("trained_steps", trainer.state.best_step)
      .field("trained_validation_R@10", trainer.state.best_score);
  j.field("kernels", engine_.ops.path).field("precision", settings_.precision);
  j.key("sample");
  write_report(j, report_);
  j.end();
  j.field("hnsw_recall", hnsw_recall_).field("hnsw_ef", hnsw_ef_);
  double seconds = 0, tflop = 0;
  j.key("seconds").object();
  for (const auto& [name, s] : phases_.seconds) j.field(name, s), seconds += s;
  j.field("total", seconds).field("hnsw_queries_per_second", hnsw_rate_).end();
  j.key("tflop").object();
  for (const auto& [name, t] : phases_.tflop) j.field(name, t), tflop += t;
  return j.field("total", tflop).end().end().text() + "\n";
}

std::string Job::run(const std::string& config, Interrupt& interrupt, std::string& table) {
  sample();
  make_folders(folder_);  // bad input has failed by now, and leaves no folder
  if (!exists(folder_ + "/config.json")) write_file(folder_ + "/config.json", config);
  engine_.interrupt = &interrupt;
  collect_texts();
  announce();
  phases_.end("probe", 0);
  baselines();
  text_pass();
  Trainer trainer(engine_, settings_, data_, selection_, texts_,
                  settings_.placement == "suffix" ? cache_.get() : nullptr, pairs_, folder_);
  if (!trainer.resume()) trainer.start();
  if (!trainer.run(interrupt)) return "";
  phases_.end("training", trainer.state.flops);
  choose_untrained(trainer);
  evaluate_trained(trainer);
  const std::string text = result(trainer);
  write_file(folder_ + "/result.json", text);

  const std::vector<std::pair<std::string, Metrics>> rows = {{"TF-IDF", tfidf_[tfidf_best_].filtered},
                                                             {"untrained", untrained_.filtered},
                                                             {"trained", trained_.filtered}};
  table = metrics_table(rows);
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
    ImportOptions options;
    options.name = "debian";
    import_dataset(source, folder, options);
  }
  return open_dataset(folder);
}

std::string run_job(const Settings& settings, const std::string& folder, const std::string& config,
                    Interrupt& interrupt, std::string& table) {
  try {
    return Job(settings, folder).run(config, interrupt, table);
  } catch (const Stopped&) {
    return "";
  }
}

}  // namespace quest
