// quest train: the main job. config.json is the dump of the table below.
#include <cstdio>
#include <ctime>
#include <memory>

#include "kernels/base/error.h"
#include "kernels/base/json.h"
#include "model/config.h"
#include "tools/commands.h"
#include "tools/run.h"
#include "train/job.h"

namespace quest {

std::vector<Option> job_options(Settings& s, const std::string& only) {
  std::vector<Option> options = {
      {"preset", 0, &s.preset, "default|paper|authors",
       "start from these values; what else is given changes them"},
      {"job", 0, &s.job, "NAME", "name of the job, for the record"},
      {"data", 'd', &s.data, "DIR", "dataset folder (quest data import); without it the default dataset"},
      {"model", 'm', &s.model, "PATH",
       "GGUF or Hugging Face folder of a llama; without it SmolLM2-135M-Instruct"},
      {"quant", 0, &s.quant, "none|nf4", "quantise the linear layers at load: NF4 with double quantisation"},
      {"min-positives", 0, &s.min_positives, "N", "a label counts from so many training positives on"},
      {"test-queries", 0, &s.test_queries, "N", "evaluate so many test queries, by hash; 0: all"},
      {"ratio", 0, &s.ratio, "X", "share of the training pairs to draw; 0: a quarter, at least 2,000", 0, 1},
      {"pairs", 0, &s.pairs, "N", "draw at most so many; 0: no limit"},
      {"validation", 0, &s.validation, "X", "share of the training queries held out", 0, 0.5},
      {"length", 'L', &s.length, "N", "tokens of a text; the rest is cut", 1, 8192},
      {"query-text", 0, &s.query_text, "TEXT",
       "how a query reads; a sentence whose place is empty is left out"},
      {"label-text", 0, &s.label_text, "TEXT", "how a label reads"},
      {"keep-empty", 0, &s.keep_empty, "", "keep sentences whose place is empty"},
      {"placement", 0, &s.placement, "suffix|prefix", "where the prompt stands: after or before the text"},
      {"pooling", 0, &s.pooling, "last|mean", "what is the embedding: last row or mean of rows"},
      {"prompt-rows", 'K', &s.prompt_rows, "K", "rows of the soft prompt", 1, 1024},
      {"init", 0, &s.init, "TEXT",
       "text whose tokens the prompt starts from; empty: rows 1..K of the vocabulary"},
      {"prompt", 0, &s.prompt, "PATH", "start from this prompt.safetensors or PEFT folder instead"},
      {"centre", 0, &s.centre, "", "subtract the start prompt's mean embedding"},
      {"epochs", 0, &s.epochs, "N", "times through the sample; 0: so many that there are 100 steps", 0, 1e6},
      {"steps", 0, &s.steps, "N", "steps, instead of epochs; 0: epochs", 0, 1e9},
      {"batch", 'B', &s.batch, "N", "pairs a step", 2, 1e6},
      {"rate", 0, &s.rate, "X", "learning rate", 0, 10},
      {"warmup", 0, &s.warmup, "X", "share of the steps with a rising rate", 0, 1},
      {"temperature", 0, &s.temperature, "X", "of the contrastive loss", 1e-3, 10},
      {"clip", 0, &s.clip, "X", "longest gradient; 0: no clipping", 0, 1e9},
      {"decay", 0, &s.decay, "X", "weight decay", 0, 1},
      {"constant", 0, &s.constant, "", "the rate neither rises nor falls"},
      {"unmasked", 0, &s.unmasked, "", "keep other positives of a query in its denominator"},
      {"symmetric", 0, &s.symmetric, "", "half of the loss from labels to queries"},
      {"validate-every", 0, &s.validate_every, "N", "steps between two validations", 1, 1e9},
      {"patience", 0, &s.patience, "N", "stop after so many validations without a better one", 1, 1e9},
      {"sampler", 0, &s.sampler, "minhash|paper|uniform|first-m", "how training pairs are weighted"},
      {"first", 0, &s.first, "M", "labels of a query that --sampler first-m knows", 1},
      {"seed", 's', &s.seed, "N", "seed of the sample and of the order"},
      {"device", 0, &s.device, "auto|cpu|gpu",
       "where the model runs; auto: on the GPU when there is one. No card has run it yet"},
      {"precision", 0, &s.precision, "bf16|f32", "of matmul operands and stored activations"},
      {"kernels", 0, &s.kernels, "PATH", "avx512bf16, avx512, avx2 or portable; without it the best"},
      {"threads", 't', &s.threads, "N", "threads; 0: all", 0, 1024},
      {"text-cache", 0, &s.text_cache, "SIZE", "keys and values of texts to keep, such as 4GiB; 0: none"},
      {"rows", 0, &s.rows, "N", "tokens of one pass, about", 1, 1e6},
      {"micro", 0, &s.micro, "N", "texts of a pass; 0: as memory allows", 0, 1e7},
      {"spacing", 0, &s.spacing, "N",
       "keep the input of every Nth layer, run the others again; 0: as memory allows", 0, 4096},
  };
  std::erase_if(options, [&](const Option& o) {
    return !only.empty() && (" " + only + " ").find(" " + o.name + " ") == only.npos;
  });
  return options;
}

Option memory_option(int64_t& bytes) {
  return {"memory", 0, &bytes, "SIZE",
          "memory of the process, or of the GPU; without it 0.8, or 0.95, of what is available", 1};
}

Option encoding_precision(Settings& s) {
  return {"precision", 0, &s.precision, "bf16|f32|int8",
          "of matmul operands; int8: of those of linear layers, with a scale for each 64"};
}

Settings read_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const Config json(path);
  Settings s;
  read_options(json.root(), job_options(s), path);
  return s;
}

RunFolder run_folder(Settings settings, const std::string& path) {
  JsonWriter config;
  config.object();
  write_options(config, job_options(settings));
  return {settings, path, config.end().text() + "\n"};
}

// The option's value as config.json has it; a text without its quotes.
static std::string value_of(const Option& o) {
  if (const auto text = std::get_if<std::string*>(&o.target)) return **text;
  return std::visit([](const auto* value) { return JsonWriter().value(*value).text(); }, o.target);
}

void require_same_job(const std::string& folder, Settings given, bool same_source) {
  Settings settings = read_config(folder);
  const std::vector<Option> was = job_options(settings), is = job_options(given);
  std::string free = " device kernels threads text-cache rows micro spacing ";
  if (!same_source) free += "data model ";
  for (size_t i = 0; i < was.size(); ++i)
    if (value_of(was[i]) != value_of(is[i]) && free.find(" " + was[i].name + " ") == free.npos)
      fail(Exit::usage, "--%s: expected '%s' as in %s/config.json, found '%s'; give the same, or start anew",
           was[i].name.c_str(), value_of(was[i]).c_str(), folder.c_str(), value_of(is[i]).c_str());
}

namespace {

struct TrainOptions {
  Settings settings;
  std::string name, resume;
  int64_t memory = 0;
  bool full = false, json = false;
};

std::string new_run_folder() {
  const time_t now = time(nullptr);
  char stamp[32];
  strftime(stamp, sizeof stamp, "runs/%Y%m%d-%H%M%S", localtime(&now));
  std::string folder = stamp;
  for (int i = 2; exists(folder); ++i) folder = format("%s-%d", stamp, i);
  return folder;
}

int train(TrainOptions& o) {
  const bool resumed = !o.resume.empty();
  if (resumed && !o.name.empty())
    fail(Exit::usage, "--name with --resume: the run has its name already; leave one of them out");
  const std::string folder = resumed ? o.resume : o.name.empty() ? new_run_folder() : "runs/" + o.name;
  if (resumed) require_same_job(folder, o.settings);
  if (!resumed && exists(folder + "/config.json"))
    fail(Exit::usage, "%s: exists already; choose another --name, or go on with --resume %s", folder.c_str(),
         folder.c_str());
  if (!resumed && o.settings.data.empty() && !o.full) {  // the default job, of a fixed size
    o.settings.job = "debian-titles";
    if (o.settings.min_positives == 0) o.settings.min_positives = default_min_positives;
    if (o.settings.test_queries == 0) o.settings.test_queries = default_test_queries;
  }
  fprintf(stderr, "run: %s\n", folder.c_str());
  if (o.settings.preset != "default")
    fprintf(stderr,
            "preset %s: batch %ld, %ld epochs, temperature %g and the start at the vocabulary's first rows "
            "follow the authors' code; the paper does not name them\n",
            o.settings.preset.c_str(), o.settings.batch, o.settings.epochs, o.settings.temperature);
  if (!run_jobs({run_folder(o.settings, folder)}, o.memory)) {
    fprintf(stderr, "stopped; go on with: quest train --resume %s\n", folder.c_str());
    return 130;
  }
  printf("%s", read_file(folder + (o.json ? "/result.json" : "/summary.txt")).c_str());
  fprintf(stderr, "all results: %s/result.json; try: quest predict \"a text\"\n", folder.c_str());
  return 0;
}

}  // namespace

std::vector<Command> train_commands() {
  const auto o = std::make_shared<TrainOptions>();
  std::vector<Option> options = job_options(o->settings);
  options.push_back({"name", 'n', &o->name, "NAME", "run folder runs/NAME; without it the date and time"});
  options.push_back({"resume", 0, &o->resume, "RUN", "go on with this run folder, as its config.json says"});
  options.push_back(memory_option(o->memory));
  options.push_back({"full", 0, &o->full, "", "the default dataset with all labels and test queries"});
  options.push_back({"json", 0, &o->json, "", "print result.json"});
  return {{.name = "train",
           .summary = "the main job: sample, train a prompt, index the labels, evaluate",
           .examples = "  quest train                                  default model and dataset\n"
                       "  quest train --data mine --name first\n"
                       "  quest train --resume runs/first\n",
           .options = std::move(options),
           .prepare =
               [o] {  // where the values start from, over which those that are given are then set again
                 const Settings& s = o->settings;
                 o->settings = o->resume.empty() ? preset_settings(s.preset) : read_config(o->resume);
               },
           .run = [o](const std::vector<std::string>&) { return train(*o); }}};
}

}  // namespace quest
