// quest predict, eval, info: what to do with a run, a model or a dataset.
#include <simdjson.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include "index/exact.h"
#include "index/hnsw.h"
#include "index/npy.h"
#include "kernels/base/error.h"
#include "tools/commands.h"
#include "tools/run.h"
#include "train/job.h"
#include "train/memory.h"

namespace quest {

std::vector<std::string> read_texts(std::vector<std::string> texts) {
  const bool lines = texts.empty();
  for (std::string line; lines && std::getline(std::cin, line);) texts.push_back(line);
  for (size_t i = 0; i < texts.size(); ++i)
    if (!simdjson::validate_utf8(texts[i]))
      fail(Exit::input, "text %zu: expected UTF-8, found other bytes; convert it first", i + 1);
  return texts;
}

namespace {

namespace fs = std::filesystem;

struct RunOptions {             // of predict and eval
  std::string run, out, bring;  // bring: vectors of the test queries by another model
  Settings settings;            // of what is brought: dataset and protocol
  std::string device = "cpu";
  int64_t top = 5, threads = 0, memory = 0;
  bool json = false, hnsw = false, keep_own = false;
};

std::string newest_run() {
  std::pair newest(fs::file_time_type::min(), std::string());
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("runs", ignored)) {
    const auto time = fs::last_write_time(entry.path() / "result.json", ignored);
    if (!ignored && time > newest.first) newest = {time, entry.path().string()};
  }
  if (newest.second.empty())
    fail(Exit::usage, "runs/: expected a finished run, found none; start one with quest train");
  return newest.second;
}

// A finished run, opened to answer queries.
struct Run {
  const RunOptions& options;
  std::string folder = options.run.empty() ? newest_run() : options.run;
  Settings settings = settings_of(folder, options);
  Task task{settings, open_job_data(settings)};
  Engine engine{settings, size_t(options.memory)};
  TensorFile prompt = read_tensors(folder + "/prompt.safetensors");
  TensorFile labels = read_tensors(folder + "/labels.safetensors");
  Corpus corpus;
  std::vector<int32_t> texts;  // in the corpus

  explicit Run(const RunOptions& o) : options(o) { require_identity(prompt, engine, task, "model data"); }
  static Settings settings_of(const std::string& folder, const RunOptions& o) {
    Settings s = read_config(folder);
    s.threads = o.threads, s.device = o.device;  // of this machine
    return s;
  }
  void add(std::string_view title, std::string_view content) {
    texts.push_back(corpus.add(*engine.tokenizer, settings, title, content, settings.query_text));
  }

  // The best `k` labels of every text.
  Ranked search(int64_t k) {
    const View p = prompt.matrix("prompt", settings.prompt_rows, engine.width());
    const View mean = prompt.matrix("mean", settings.centre ? 1 : 0, engine.width());
    const View l = labels.matrix("labels", std::ssize(task.labels), engine.width());
    Encoder encoder = engine.encoder(settings, p);
    const int64_t found = std::ssize(texts) * (engine.width() * 4 + (k + depth) * 8);
    const int64_t graph = options.hnsw ? Hnsw::bytes(l.rows, l.cols, engine.threads.count()) : 0;
    reserve_for(engine, encoder, corpus.texts, found + graph);
    auto e = engine.embed(encoder, corpus.texts, texts, "texts");
    engine.normalize(e, mean);
    const Vectors vectors{static_cast<const float*>(l.data), l.rows, l.cols},
        queries{e.data(), std::ssize(texts), l.cols};
    if (!options.hnsw) return exact_top_k(queries, vectors, k, engine.threads);
    return Hnsw(folder + "/index.hnsw", l.rows, l.cols).search(queries, k, engine.threads);
  }
  // f(label of the dataset, score) for the labels of a list, best first.
  void each_label(const Ranked& lists, int64_t row, auto&& f) const {
    for (int64_t at = row * lists.k; at < (row + 1) * lists.k && lists.ids[at] >= 0; ++at)
      f(task.labels[lists.ids[at]], lists.scores[at]);
  }
};

int predict(const RunOptions& o, const std::vector<std::string>& arguments) {
  Run run(o);
  const std::vector<std::string> texts = read_texts(arguments);
  for (const std::string& text : texts) run.add(text, "");
  if (texts.empty()) return 0;
  const Ranked lists = run.search(std::min(o.top, std::ssize(run.task.labels)));
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!o.json && texts.size() > 1) printf("%s%s\n", i ? "\n" : "", texts[i].c_str());
    JsonWriter j(true);
    j.object().field("text", texts[i]).key("labels").array();
    run.each_label(lists, i, [&](int32_t label, double score) {
      const Texts& all = run.task.data.labels;
      j.object().field("uid", all.uid(label)).field("title", all.title(label)).field("score", score).end();
      if (!o.json) printf("%.3f  %s\n", score, std::string(all.title(label)).c_str());
    });
    if (o.json) printf("%s\n", j.end().end().text().c_str());
  }
  return 0;
}

int evaluate_run(const RunOptions& o) {
  Run run(o);
  const Side& test = run.task.test;
  const Texts &queries = test.split->texts, &labels = run.task.data.labels;
  for (const int32_t q : test.queries) run.add(queries.title(q), queries.content(q));
  const Ranked all = run.search(depth + test.most_dropped);
  const Metrics m = measure(run.task, test, all, !o.keep_own);
  if (!o.out.empty()) {
    const Ranked lists = drop_labels(all, o.keep_own ? SparseRows() : test.dropped(), depth);
    OutFile out(o.out);
    for (int64_t q = 0; q < lists.queries; ++q) {
      int rank = 0;
      run.each_label(lists, q, [&](int32_t label, double score) {
        const std::string query(queries.uid(test.queries[q])), name(labels.uid(label));
        out.write(format("%s\t%d\t%s\t%.6f\n", query.c_str(), ++rank, name.c_str(), score));
      });
    }
    out.commit();
  }
  JsonWriter json;
  write_json(json, m);
  const std::pair<std::string, Metrics> row{fs::path(run.folder).filename(), m};
  printf("%s", o.json ? (json.text() + "\n").c_str() : metrics_table({&row, 1}).c_str());
  return 0;
}

// Rows of a .npy file, chosen and made unit vectors.
std::vector<float> unit_rows(const Npy& file, const std::vector<int32_t>& rows) {
  std::vector<float> out;
  out.reserve(rows.size() * file.vectors.width);
  for (const int32_t row : rows) {
    const float* x = file.vectors.row(row);
    double squares = 0;
    for (int64_t j = 0; j < file.vectors.width; ++j) squares += double{x[j]} * x[j];
    for (int64_t j = 0; j < file.vectors.width; ++j)
      out.push_back(squares > 0 ? static_cast<float>(x[j] / std::sqrt(squares)) : 0);
  }
  return out;
}

// Any other model under the same protocol: a vector for every test query and every label of the dataset, in
// its order.
int evaluate_brought(const RunOptions& o, const std::string& label_file) {
  Settings s = o.settings;
  s.validation = 0;  // nothing is chosen here
  if (s.data.empty() && s.min_positives == 0) s.min_positives = default_min_positives;
  if (s.data.empty() && s.test_queries == 0) s.test_queries = default_test_queries;
  const Task task(s, open_job_data(s));
  const Npy queries = read_npy(o.bring), labels = read_npy(label_file);
  const auto expect = [](const std::string& path, const char* what, int64_t found, int64_t expected) {
    if (found != expected)
      fail(Exit::input, "%s: expected %ld %s, found %ld; bring a vector for each, in the dataset's order",
           path.c_str(), expected, what, found);
  };
  expect(o.bring, "rows, one a test query", queries.vectors.count, task.data.test.texts.size());
  expect(label_file, "rows, one a label", labels.vectors.count, task.data.labels.size());
  expect(label_file, "columns, as the queries have", labels.vectors.width, queries.vectors.width);
  Threads threads(o.threads);
  const auto q = unit_rows(queries, task.test.queries), l = unit_rows(labels, task.labels);
  const int64_t d = queries.vectors.width;
  const Ranked lists =
      exact_top_k({q.data(), std::ssize(task.test.queries), d}, {l.data(), std::ssize(task.labels), d},
                  depth + task.test.most_dropped, threads);
  const std::pair<std::string, Metrics> rows[] = {{"brought", measure(task, task.test, lists, true)},
                                                  {"raw", measure(task, task.test, lists, false)}};
  JsonWriter json;
  json.object();
  for (const auto& [name, m] : rows) write_json(json.key(name), m);
  json.end();
  printf("%s", o.json ? (json.text() + "\n").c_str() : metrics_table(rows).c_str());
  return 0;
}

int info(const std::string& path) {
  const bool model_folder =
      exists(path + "/model.safetensors") || exists(path + "/model.safetensors.index.json");
  if (exists(path + "/config.json") && !model_folder) {
    const Settings s = read_config(path);
    printf("run: %s prompt of %ld rows, %s pooling, sampler %s, seed %ld\n", s.placement.c_str(),
           s.prompt_rows, s.pooling.c_str(), s.sampler.c_str(), s.seed);
    if (exists(path + "/result.json"))
      printf("%s", read_file(path + "/summary.txt").c_str());
    else
      printf("not finished; go on with: quest train --resume %s\n", path.c_str());
  } else if (exists(path + "/meta.json")) {
    const Dataset d = open_dataset(path);
    printf("dataset %s: %ld training and %ld test queries, %ld labels, %ld and %ld pairs\n", d.name.c_str(),
           d.train.texts.size(), d.test.texts.size(), d.labels.size(), d.train.labels.count(),
           d.test.labels.count());
  } else if (is_folder(path) && !model_folder) {
    fail(Exit::input,
         "%s: expected a run (config.json), a dataset (meta.json) or a model (model.safetensors), found "
         "none; give another folder",
         path.c_str());
  } else {
    const auto m = load_model(path);
    printf("model %s: %ld layers, width %ld, %ld heads over %ld KV heads of %ld, MLP %ld, vocabulary %ld\n",
           m->name.c_str(), m->layers, m->width, m->heads.heads, m->heads.kv_heads, m->heads.size, m->mlp,
           m->vocabulary);
    printf("%.4f GFLOP a token forward, sha256 %s\n", pass_flops(*m, 1, 1) / 1e9, m->sha256.c_str());
  }
  return 0;
}

}  // namespace

std::vector<Command> answer_commands() {
  const auto o = std::make_shared<RunOptions>();
  return {
      {.name = "predict",
       .summary = "top labels and scores for texts, from the arguments or one a line from stdin",
       .arguments = "[TEXT...]",
       .examples = "  quest predict \"a fast web server\"\n"
                   "  quest predict --run runs/first --json < texts\n",
       .options = {{"run", 'r', &o->run, "DIR", "run folder; without it the newest finished one"},
                   {"top", 'k', &o->top, "K", "labels a text", 1, 10000},
                   {"hnsw", 0, &o->hnsw, "", "search the approximate index instead of all labels"},
                   {"threads", 't', &o->threads, "N", "threads; 0: all", 0, 1024},
                   {"device", 0, &o->device, "auto|cpu|gpu", "where the model runs"},
                   memory_option(o->memory),
                   {"json", 0, &o->json, "", "one JSON object a text"}},
       .run = [o](const std::vector<std::string>& texts) { return predict(*o, texts); }},
      {.name = "eval",
       .summary = "evaluate a run on its test queries",
       .arguments = "[LABELS.npy]",
       .examples = "  quest eval --out lists.tsv\n"
                   "  quest eval --data mine --bring queries.npy labels.npy\n",
       .options = {{"run", 'r', &o->run, "DIR", "run folder; without it the newest finished one"},
                   {"out", 'o', &o->out, "FILE", "ranked lists: query uid, rank, label uid, score"},
                   {"hnsw", 0, &o->hnsw, "", "from the approximate index instead of the exact scan"},
                   {"bring", 0, &o->bring, "QUERIES.npy",
                    "evaluate these vectors and those of LABELS.npy instead"},
                   {"data", 'd', &o->settings.data, "DIR",
                    "with --bring: dataset; without it the default one"},
                   {"min-positives", 0, &o->settings.min_positives, "N", "with --bring: as in quest train"},
                   {"test-queries", 0, &o->settings.test_queries, "N", "with --bring: as in quest train"},
                   {"keep-own", 0, &o->keep_own, "", "do not drop a query's own label and filtered ones"},
                   {"threads", 't', &o->threads, "N", "threads; 0: all", 0, 1024},
                   {"device", 0, &o->device, "auto|cpu|gpu", "where the model runs"},
                   memory_option(o->memory),
                   {"json", 0, &o->json, "", "print JSON"}},
       .run =
           [o](const std::vector<std::string>& labels) {
             if (labels.empty() != o->bring.empty())
               fail(Exit::usage,
                    "--bring: expected two files, QUERIES.npy and LABELS.npy, found one; give both");
             const bool of_run = !o->run.empty() || !o->out.empty() || o->hnsw || o->keep_own || o->memory;
             const Settings& p = o->settings;
             const bool of_data = !p.data.empty() || p.min_positives || p.test_queries;
             if (labels.empty() ? of_data : of_run)
               fail(Exit::usage,
                    "quest eval: --run, --out, --hnsw, --keep-own and --memory belong to a run, --data, "
                    "--min-positives and --test-queries to --bring; leave the others out");
             return labels.empty() ? evaluate_run(*o) : evaluate_brought(*o, labels[0]);
           }},
      {.name = "info",
       .summary = "what is in this model, dataset or run",
       .arguments = "PATH",
       .examples = "  quest info runs/first\n  quest info model.gguf\n",
       .run = [](const std::vector<std::string>& a) { return info(a[0]); }}};
}

}  // namespace quest
