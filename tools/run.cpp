// quest predict, eval, info: what to do with a run, a model or a dataset.
#include <simdjson.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include "index/exact.h"
#include "index/hnsw.h"
#include "index/metrics.h"
#include "kernels/base/error.h"
#include "kernels/base/json.h"
#include "kernels/base/words.h"
#include "tools/commands.h"
#include "tools/run.h"
#include "train/job.h"
#include "train/tensors.h"

namespace quest {

namespace fs = std::filesystem;

std::string newest_run() {
  std::string newest;
  std::error_code ignored;
  fs::file_time_type latest;
  for (const auto& entry : fs::directory_iterator("runs", ignored)) {
    const fs::path result = entry.path() / "result.json";
    const auto time = fs::last_write_time(result, ignored);
    if (ignored || (!newest.empty() && time <= latest)) continue;
    newest = entry.path(), latest = time;
  }
  if (newest.empty())
    fail(Exit::usage, "runs/: expected a finished run, found none; start one with quest train");
  return newest;
}

namespace {

// A finished run, opened to answer queries.
struct Run {
  Settings settings;
  Dataset data;
  Selection selection;
  Engine engine;
  TensorFile prompt, labels;
  View mean;

  explicit Run(const std::string& folder, int64_t threads)
      : settings(with_threads(read_config(folder), threads)),
        data(open_job_data(settings)),
        selection(select_job(data, settings)),
        engine(settings),
        prompt(read_tensors(folder + "/prompt.safetensors")),
        labels(read_tensors(folder + "/labels.safetensors")) {
    if (prompt.text("model") != engine.model->sha256)
      fail(Exit::input,
           "%s/prompt.safetensors: expected the model %s, found %s; give the model it was trained with",
           folder.c_str(), prompt.text("model").c_str(), engine.model->sha256.c_str());
    if (prompt.text("data") != data.sha256)
      fail(Exit::input,
           "%s/prompt.safetensors: expected the dataset %s, found %s; give the dataset it was trained with",
           folder.c_str(), prompt.text("data").c_str(), data.sha256.c_str());
    labels.matrix("labels", static_cast<int64_t>(selection.labels.size()), engine.model->width);
    prompt.matrix("prompt", settings.prompt_rows, engine.model->width);
    if (settings.centre) mean = prompt.matrix("mean", 1, engine.model->width);
  }
  static Settings with_threads(Settings s, int64_t threads) {
    s.threads = threads;
    return s;
  }
  Vectors label_vectors() const {
    const View v = labels.tensors.at("labels");
    return {static_cast<const float*>(v.data), v.rows, v.cols};
  }
  std::vector<float> embed(const Corpus& corpus, const std::vector<int32_t>& texts, const char* what) {
    std::vector<Text> list;
    for (const int32_t t : texts) list.push_back(corpus.text(t));
    const Encoder e = engine.encoder(settings.placement == "prefix" ? Placement::prefix : Placement::suffix,
                                     settings.pooling == "mean" ? Pooling::mean : Pooling::last,
                                     prompt.tensors.at("prompt"));
    return embed_all(engine, e, list, mean, what);
  }
};

struct PredictOptions {
  std::string run;
  int64_t top = 5, threads = 0;
  bool json = false, hnsw = false;
};

void print_answer(const Run& run, const std::string& text, const Ranked& lists, int64_t row, bool json) {
  JsonWriter j(true);
  j.object().field("text", text).key("labels").array();
  for (int64_t k = 0; k < lists.k; ++k) {
    const int32_t n = lists.ids[static_cast<size_t>(row * lists.k + k)];
    if (n < 0) break;
    const double score = lists.scores[static_cast<size_t>(row * lists.k + k)];
    const int32_t label = run.selection.labels[static_cast<size_t>(n)];
    j.object().field("uid", run.data.labels.uid(label)).field("title", run.data.labels.title(label));
    j.field("score", score).end();
    if (!json) printf("%.3f  %s\n", score, std::string(run.data.labels.title(label)).c_str());
  }
  if (json) printf("%s\n", j.end().end().text().c_str());
}

int predict(const PredictOptions& o, std::vector<std::string> texts) {
  const std::string folder = o.run.empty() ? newest_run() : o.run;
  Run run(folder, o.threads);
  const bool lines = texts.empty();
  for (std::string line; lines && std::getline(std::cin, line);) texts.push_back(line);
  CorpusBuilder builder(*run.engine.tokenizer, run.settings.length);
  std::vector<int32_t> numbers;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!valid_utf8(texts[i]))
      fail(Exit::input, "text %zu: expected UTF-8, found other bytes; convert it first", i + 1);
    numbers.push_back(builder.add(texts[i], ""));
  }
  if (texts.empty()) return 0;
  const auto e = run.embed(builder.corpus, numbers, "texts");
  const Vectors queries{e.data(), static_cast<int64_t>(texts.size()), run.engine.model->width};
  const Vectors labels = run.label_vectors();
  const int64_t top = std::min(o.top, labels.count);
  const Ranked lists =
      o.hnsw
          ? Hnsw(folder + "/index.hnsw", labels.count, labels.width).search(queries, top, run.engine.threads)
          : exact_top_k(queries, labels, {}, top, run.engine.threads);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!o.json && texts.size() > 1) printf("%s%s\n", i ? "\n" : "", texts[i].c_str());
    print_answer(run, texts[i], lists, static_cast<int64_t>(i), o.json);
  }
  return 0;
}

struct EvalOptions {
  std::string run, out;
  int64_t threads = 0;
  bool json = false, hnsw = false, keep_own = false;
};

int evaluate_run(const EvalOptions& o) {
  const std::string folder = o.run.empty() ? newest_run() : o.run;
  Run run(folder, o.threads);
  const auto& rows = run.selection.test;
  CorpusBuilder builder(*run.engine.tokenizer, run.settings.length);
  std::vector<int32_t> numbers;
  for (const int32_t q : rows)
    numbers.push_back(builder.add(run.data.test.texts.title(q), run.data.test.texts.content(q)));
  const auto e = run.embed(builder.corpus, numbers, "test queries");
  const Vectors queries{e.data(), static_cast<int64_t>(rows.size()), run.engine.model->width};
  const Vectors labels = run.label_vectors();
  const Ranked all =
      o.hnsw
          ? Hnsw(folder + "/index.hnsw", labels.count, labels.width).search(queries, 101, run.engine.threads)
          : exact_top_k(queries, labels, {}, 101, run.engine.threads);
  const std::vector<int32_t> own = own_labels(run.data.test, rows, run.selection);
  const Ranked lists = drop_own(all, o.keep_own ? std::span<const int32_t>() : own, 100);
  const Truth truth = truth_of(run.data.test, rows, run.selection);
  const Metrics m = evaluate(lists, truth.view(), run.selection.counts, run.data.train.texts.size());
  if (!o.out.empty()) {
    OutFile out(o.out);
    for (int64_t q = 0; q < lists.queries; ++q)
      for (int64_t k = 0; k < lists.k; ++k) {
        const auto at = static_cast<size_t>(q * lists.k + k);
        if (lists.ids[at] < 0) break;
        const int32_t label = run.selection.labels[static_cast<size_t>(lists.ids[at])];
        out.write(format("%s\t%lld\t%s\t%.6f\n",
                         std::string(run.data.test.texts.uid(rows[static_cast<size_t>(q)])).c_str(),
                         static_cast<long long>(k + 1), std::string(run.data.labels.uid(label)).c_str(),
                         static_cast<double>(lists.scores[at])));
      }
    out.commit();
  }
  JsonWriter json;
  write_json(json, m);
  const std::pair<std::string, Metrics> row{fs::path(folder).filename(), m};
  printf("%s", o.json ? (json.text() + "\n").c_str() : metrics_table({&row, 1}).c_str());
  return 0;
}

int info(const std::string& path) {
  if (exists(path + "/config.json")) {
    const Settings s = read_config(path);
    printf("run: %s prompt of %lld rows, %s pooling, sampler %s, seed %lld\n", s.placement.c_str(),
           static_cast<long long>(s.prompt_rows), s.pooling.c_str(), s.sampler.c_str(),
           static_cast<long long>(s.seed));
    if (exists(path + "/result.json"))
      printf("%s", summary_of(read_file(path + "/result.json")).c_str());
    else
      printf("not finished; go on with: quest train --resume %s\n", path.c_str());
  } else if (exists(path + "/meta.json")) {
    const Dataset d = open_dataset(path);
    printf("dataset %s: %lld training and %lld test queries, %lld labels, %lld and %lld pairs\n",
           d.name.c_str(), static_cast<long long>(d.train.texts.size()),
           static_cast<long long>(d.test.texts.size()), static_cast<long long>(d.labels.size()),
           static_cast<long long>(d.train.labels.count()), static_cast<long long>(d.test.labels.count()));
  } else if (fs::is_directory(path)) {
    fail(Exit::input,
         "%s: expected a run (config.json) or a dataset (meta.json), found neither; give another folder",
         path.c_str());
  } else {
    const auto m = load_gguf(path);
    printf(
        "model %s: %lld layers, width %lld, %lld heads over %lld KV heads of %lld, MLP %lld, vocabulary "
        "%lld\n",
        m->name.c_str(), static_cast<long long>(m->layers), static_cast<long long>(m->width),
        static_cast<long long>(m->heads.heads), static_cast<long long>(m->heads.kv_heads),
        static_cast<long long>(m->heads.size), static_cast<long long>(m->mlp),
        static_cast<long long>(m->vocabulary));
    printf("%.4f GFLOP a token forward, sha256 %s\n", pass_flops(*m, 1, 1) / 1e9, m->sha256.c_str());
  }
  return 0;
}

}  // namespace

Command predict_command() {
  const auto o = std::make_shared<PredictOptions>();
  return {.name = "predict",
          .summary = "top labels and scores for texts, from the arguments or one a line from stdin",
          .arguments = "[TEXT...]",
          .least_arguments = 0,
          .most_arguments = 10000,
          .examples =
              "  quest predict \"a fast web server\"\n"
              "  quest predict --run runs/first --json < texts\n",
          .options = {{"run", 'r', &o->run, "DIR", "run folder; without it the newest finished one"},
                      {"top", 'k', &o->top, "K", "labels a text", 1, 10000},
                      {"hnsw", 0, &o->hnsw, "", "search the approximate index instead of all labels"},
                      {"threads", 't', &o->threads, "N", "threads; 0: all", 0, 1024},
                      {"json", 0, &o->json, "", "one JSON object a text"}},
          .run = [o](const std::vector<std::string>& texts) { return predict(*o, texts); }};
}

Command eval_command() {
  const auto o = std::make_shared<EvalOptions>();
  return {.name = "eval",
          .summary = "evaluate a run on its test queries",
          .examples = "  quest eval --out lists.tsv\n",
          .options = {{"run", 'r', &o->run, "DIR", "run folder; without it the newest finished one"},
                      {"out", 'o', &o->out, "FILE", "ranked lists: query uid, rank, label uid, score"},
                      {"hnsw", 0, &o->hnsw, "", "from the approximate index instead of the exact scan"},
                      {"keep-own", 0, &o->keep_own, "", "do not drop a query's own label"},
                      {"threads", 't', &o->threads, "N", "threads; 0: all", 0, 1024},
                      {"json", 0, &o->json, "", "print JSON"}},
          .run = [o](const std::vector<std::string>&) { return evaluate_run(*o); }};
}

Command info_command() {
  return {.name = "info",
          .summary = "what is in this model, dataset or run",
          .arguments = "PATH",
          .least_arguments = 1,
          .most_arguments = 1,
          .examples = "  quest info runs/first\n  quest info model.gguf\n",
          .options = {},
          .run = [](const std::vector<std::string>& a) { return info(a[0]); }};
}

}  // namespace quest
