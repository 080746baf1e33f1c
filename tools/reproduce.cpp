// quest reproduce: a table of results in which every row follows one protocol, each from a run of its own.
#include <cstdio>
#include <map>
#include <memory>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "model/config.h"
#include "tools/commands.h"
#include "tools/run.h"

namespace quest {

namespace {

struct ReproduceOptions {
  std::string data, model, name = "table1";
  int64_t threads = 0, memory = 0;
  bool brief = false;
};

// The runs of table 1. All labels, 2,000 test queries by hash, at most 3,000 pairs, texts of at most 32
// tokens.
std::map<std::string, Settings> table1_runs(const ReproduceOptions& o) {
  std::map<std::string, Settings> runs;
  const auto add = [&](const char* name, const char* preset) -> Settings& {
    Settings& s = runs[name] = preset_settings(preset);
    s.job = std::string("table1 ") + name, s.data = o.data, s.model = o.model, s.threads = o.threads;
    s.test_queries = 2000, s.pairs = 3000, s.ratio = 0.25, s.length = 32;
    s.text_cache = int64_t{1} << 40;  // as much as there is memory for
    return s;
  };
  add("default", "default");
  if (o.brief) return runs;
  add("sampler-paper", "default").sampler = "paper";
  add("sampler-uniform", "default").sampler = "uniform";
  add("prefix", "default").placement = "prefix";
  add("paper", "paper");
  return runs;
}

struct Row {
  const char *name, *run, *method;  // method: its place in result.json
};
constexpr Row table1[] = {
    {"TF-IDF, label_text", "default", "tfidf_all/label_text"},
    {"TF-IDF, centroid", "default", "tfidf_all/centroid"},
    {"TF-IDF, neighbours", "default", "tfidf_all/neighbours"},
    {"TF-IDF, z_sum", "default", "tfidf_all/z_sum"},
    {"untrained suffix", "default", "untrained_all/start prompt"},
    {"untrained prefix", "prefix", "untrained_all/start prompt"},
    {"default (suffix, MinHash)", "default", "trained"},
    {"default, sampler paper", "sampler-paper", "trained"},
    {"default, sampler uniform", "sampler-uniform", "trained"},
    {"default as prefix", "prefix", "trained"},
    {"preset paper, L 32, 3,000 pairs", "paper", "trained"},
};
constexpr const char* columns[] = {"P@1", "P@5", "R@10", "R@100", "nDCG@5", "PSP@1"};

// Markdown. Seconds of a run; of the text pass too, which the runs of one process share.
void print_table(const std::string& folder, const std::map<std::string, Settings>& runs) {
  std::string head = "| method |", rule = "|---|";
  for (const char* column : columns) head += format(" %s |", column), rule += "---|";
  printf("%s seconds | with the text pass |\n%s---|---|\n", head.c_str(), rule.c_str());
  const Config one(folder + "/default/result.json");
  for (const Row& row : table1) {
    if (!runs.count(row.run)) continue;
    const Config result(folder + "/" + row.run + "/result.json");
    for (const char* key : {"protocol/dataset_sha256", "protocol/kernels", "protocol/precision"})
      if (result.text(key) != one.text(key))
        fail(Exit::input,
             "%s/%s: expected %s as in %s/default, found another; start anew with another --name",
             folder.c_str(), row.run, key, folder.c_str());
    std::string line = format("| %s |", row.name);
    for (const char* column : columns)
      line += format(" %.1f |", result.number(row.method + std::string("/") + column));
    const double all = result.number("seconds/total"), own = all - result.number("seconds/text_pass");
    const bool trained = std::string_view(row.method) == "trained";
    printf("%s %s\n", line.c_str(), trained ? format("%.0f | %.0f |", own, all).c_str() : " | |");
  }
  printf("\n%ld labels, %ld test queries\n", one.integer("protocol/labels"),
         one.integer("protocol/test_queries"));
}

int reproduce(const ReproduceOptions& o) {
  const std::string folder = "runs/" + o.name;
  const auto all = table1_runs(o);
  for (const char* quant : {"none", "nf4"}) {  // runs that share a model share its text pass
    std::vector<RunFolder> runs;
    for (const auto& [name, settings] : all) {
      const std::string path = folder + "/" + name;
      // What was finished is not opened again, so dataset and model must be the folder's.
      if (exists(path + "/config.json")) require_same_job(path, settings, true);
      if (settings.quant == quant && !exists(path + "/result.json"))
        runs.push_back(run_folder(settings, path));
    }
    if (!runs.empty() && !run_jobs(runs, o.memory)) {
      fprintf(stderr, "stopped; the same command goes on\n");
      return 130;
    }
  }
  print_table(folder, all);
  return 0;
}

}  // namespace

std::vector<Command> reproduce_commands() {
  const auto o = std::make_shared<ReproduceOptions>();
  return {
      {.name = "reproduce",
       .summary = "the README's table of results for a dataset; goes on where it was stopped",
       .arguments = "table1",
       .examples = "  quest reproduce table1 --data foldoc --name table1-foldoc\n",
       .options = {{"data", 'd', &o->data, "DIR", "dataset folder; without it the default dataset"},
                   {"model", 'm', &o->model, "PATH", "as in quest train"},
                   {"name", 'n', &o->name, "NAME", "its runs are kept in runs/NAME"},
                   {"brief", 0, &o->brief, "", "only TF-IDF, the untrained suffix prompt and the default"},
                   {"threads", 't', &o->threads, "N", "threads; 0: all", 0, 1024},
                   memory_option(o->memory)},
       .run = [o](const std::vector<std::string>& a) {
         if (a[0] != "table1")
           fail(Exit::usage, "quest reproduce: expected table1, found %s; see --help", a[0].c_str());
         return reproduce(*o);
       }}};
}

}  // namespace quest
