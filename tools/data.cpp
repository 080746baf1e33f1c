// quest data import, quest data debian, quest sample: from sources to a dataset folder, and what the sampler
// draws.
#include <cstdio>
#include <memory>

#include "kernels/base/error.h"
#include "sampling/import.h"
#include "sampling/sampler.h"
#include "tools/commands.h"

namespace quest {

namespace {

int report(const ImportSummary& s, const std::string& folder) {
  for (const std::string& line : s.bad) fprintf(stderr, "skipped %s\n", line.c_str());
  printf("%s: %ld training and %ld test queries, %ld labels, %ld and %ld pairs, %ld bad lines\n",
         folder.c_str(), s.train, s.test, s.labels, s.train_pairs, s.test_pairs, s.bad_lines);
  return 0;
}

struct SampleSettings {
  std::string data, sampler = "minhash", out;
  double ratio = 0.25;
  int64_t pairs = 0, seed = 1, rows = 0, range = 0, first = 4, threads = 0;
  bool json = false;
};

int sample(const SampleSettings& s) {
  const Dataset data = open_dataset(s.data);
  Threads threads(s.threads);
  const int64_t k = s.pairs ? s.pairs : static_cast<int64_t>(s.ratio * data.train.labels.count());
  const SamplerOptions o{sampler_kind(s.sampler), static_cast<uint64_t>(s.seed), k, s.rows, s.range, s.first};
  SampleReport r;
  const auto pairs = sample_pairs(data, {}, o, threads, &r);
  if (!s.out.empty()) {
    OutFile out(s.out);
    for (const DrawnPair& p : pairs)
      for (const std::string_view part : {data.train.texts.uid(p.query), std::string_view("\t"),
                                          data.labels.uid(p.label), std::string_view("\n")})
        out.write(part);
    out.commit();
  }
  JsonWriter json;
  write_report(json, r);
  printf("%s", s.json ? (json.text() + "\n").c_str() : describe(r).c_str());
  return 0;
}

}  // namespace

std::vector<Command> data_commands() {
  const auto o = std::make_shared<ImportOptions>();
  const auto s = std::make_shared<SampleSettings>();
  return {
      {.name = "data import",
       .summary = "turn the repository's raw or sparse format, TSV or JSON lines into a dataset folder",
       .arguments = "SOURCE DIR",
       .examples =
           "  quest data import LF-Amazon-131K/ amazon\n"
           "  quest data import my.tsv mine        (lines: text<TAB>label<TAB>label...)\n"
           "  quest data import my.jsonl.gz mine   (lines: {\"title\": ..., \"content\": ..., \"labels\": "
           "[\"...\"]})\n",
       .options = {{"skip-bad", 0, &o->skip_bad, "",
                    "keep malformed lines as empty rows instead of stopping"},
                   {"name", 0, &o->name, "NAME", "of the dataset; without it the folder's name"}},
       .run =
           [o](const std::vector<std::string>& a) { return report(import_dataset(a[0], a[1], *o), a[1]); }},
      {.name = "data debian",
       .summary = "make a dataset from this machine's package index (apt-cache dumpavail)",
       .arguments = "DIR",
       .examples = "  quest data debian packages\n",
       .options = {{"name", 0, &o->name, "NAME", "of the dataset; without it the folder's name"}},
       .run = [o](const std::vector<std::string>& a) { return report(import_debian_index(a[0], *o), a[0]); }},
      {.name = "sample",
       .summary = "draw training pairs and report how they cover labels and queries",
       .examples = "  quest sample --data amazon --out pairs.tsv\n"
                   "  quest sample --data amazon --sampler paper --ratio 0.1\n",
       .options = {{"data", 'd', &s->data, "DIR", "dataset folder"},
                   {"sampler", 0, &s->sampler, "minhash|paper|uniform|first-m", "how pairs are weighted"},
                   {"ratio", 0, &s->ratio, "X", "share of the pairs to draw", 0, 1},
                   {"pairs", 0, &s->pairs, "N", "pairs to draw, instead of the share"},
                   {"rows", 0, &s->rows, "R", "MinHash functions; 0: the sampler's own"},
                   {"range", 0, &s->range, "B", "values of each; 0: the sampler's own"},
                   {"first", 0, &s->first, "M", "labels of a query that sampler first-m knows", 1},
                   {"seed", 0, &s->seed, "N", "seed"},
                   {"threads", 't', &s->threads, "N", "threads; 0: all", 0, 1024},
                   {"out", 'o', &s->out, "FILE", "write the pairs as query uid, TAB, label uid"},
                   {"json", 0, &s->json, "", "print the report as JSON"}},
       .run = [s](const std::vector<std::string>&) {
         if (s->data.empty())
           fail(Exit::usage, "--data DIR: expected a dataset folder, found none; see quest data");
         return sample(*s);
       }}};
}

}  // namespace quest
