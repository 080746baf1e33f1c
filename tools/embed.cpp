// quest embed: texts to unit vectors in a .npy file. quest export: a run's prompt for PEFT.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "index/npy.h"
#include "model/tensors.h"
#include "tools/commands.h"
#include "tools/run.h"
#include "train/memory.h"
#include "train/prompt_file.h"

namespace quest {

namespace {

struct EmbedOptions {
  Settings settings;
  std::string run, prompt, out;
  int64_t memory = 0;
  bool label = false;
};

constexpr size_t compared = 64;  // texts

// What int8 costs: the first texts again in bf16, all as unit vectors [n,d].
void say_what_int8_costs(Engine& engine, const Encoder& encoder, const Corpus& corpus,
                         const std::vector<int32_t>& numbers, const std::vector<float>& e, View mean) {
  const size_t n = std::min(numbers.size(), compared), d = engine.width();
  const std::vector<int32_t> some(numbers.begin(), numbers.begin() + n);
  engine.ops.int8 = false;
  auto exact = engine.embed(encoder, corpus.texts, some, "bf16, to compare");
  engine.normalize(exact, mean);
  engine.ops.int8 = true;
  const auto centre = engine.mean_of(exact);
  double apart = 0, spread = 0, cosine = 1;
  for (size_t t = 0; t < n; ++t) {
    double product = 0;
    for (size_t i = t * d; i < (t + 1) * d; ++i) {
      apart += std::pow(e[i] - exact[i], 2), spread += std::pow(exact[i] - centre[i % d], 2);
      product += double(e[i]) * exact[i];
    }
    cosine = std::min(cosine, product);
  }
  fprintf(stderr,
          "int8: of %zu texts the vectors are %.2g of their spread from bf16's, the cosine at least %.6f\n",
          n, std::sqrt(apart / spread), cosine);
}

int embed(const EmbedOptions& o, const std::vector<std::string>& arguments) {
  if (o.out.empty()) fail(Exit::usage, "--out: expected a file to write, found none; give --out FILE.npy");
  if (!o.run.empty() && !o.prompt.empty())
    fail(Exit::usage, "--prompt with --run: the run has its prompt already; leave one of them out");
  Settings s = o.settings;  // with --run those of the run, and over them what was given
  Engine engine(s, o.memory);
  const std::string path = o.run.empty() ? o.prompt : o.run + "/prompt.safetensors";
  PromptFile prompt;
  if (!o.run.empty())
    read_tensors(path).expect("model", engine.model->sha256, "give the run's model by --model");
  if (!path.empty()) prompt = read_prompt(path, engine.width()), s.placement = prompt.placement;
  s.prompt_rows = std::ssize(prompt.rows) / engine.width();
  engine.require_fitting(s);
  if (!prompt.pooling.empty()) s.pooling = prompt.pooling;
  Encoder encoder = engine.encoder(s, engine.view(prompt.rows));
  if (path.empty()) encoder.placement = Placement::none, encoder.prompt = {};
  Corpus corpus;
  std::vector<int32_t> numbers;
  for (const std::string& text : read_texts(arguments))
    numbers.push_back(corpus.add(*engine.tokenizer, s, text, "", o.label ? s.label_text : s.query_text));
  reserve_for(engine, encoder, corpus.texts, (numbers.size() + compared) * engine.width() * 4);
  auto e = engine.embed(encoder, corpus.texts, numbers, "texts");
  engine.normalize(e, engine.view(prompt.mean));
  if (engine.ops.int8) say_what_int8_costs(engine, encoder, corpus, numbers, e, engine.view(prompt.mean));
  write_npy(o.out, {e.data(), std::ssize(numbers), engine.width()});
  printf("%s: %zu unit vectors of width %ld\n", o.out.c_str(), numbers.size(), engine.width());
  return 0;
}

int export_prompt(const std::string& run, const std::string& out) {
  const Settings s = read_config(run);
  Settings on_cpu = s;
  on_cpu.device = "cpu";
  const Engine engine(on_cpu);
  read_tensors(run + "/prompt.safetensors")
      .expect("model", engine.model->sha256, "keep the run's model in its place");
  OutFolder folder(out);
  write_peft(read_prompt(run + "/prompt.safetensors", engine.width()), *engine.model, folder.file(""));
  folder.commit();
  printf("%s: the prompt of %s in PEFT's layout\n", out.c_str(), run.c_str());
  return 0;
}

}  // namespace

std::vector<Command> embed_commands() {
  const auto o = std::make_shared<EmbedOptions>();
  std::vector<Option> options = job_options(
      o->settings, "model quant length pooling query-text label-text keep-empty device kernels threads rows");
  options.insert(options.begin(),
                 {encoding_precision(o->settings),
                  {"run", 'r', &o->run, "DIR", "with the model, prompt and settings of a run"},
                  {"prompt", 0, &o->prompt, "PATH",
                   "or with a prompt.safetensors or a PEFT folder; without both, no prompt"},
                  {"label", 0, &o->label, "", "texts are labels: they read as --label-text says"},
                  {"out", 'o', &o->out, "FILE", ".npy file to write: float32 [texts, width]"},
                  memory_option(o->memory)});
  return {{.name = "embed",
           .summary = "unit vectors of texts, from the arguments or one a line from stdin, as .npy",
           .arguments = "[TEXT...]",
           .examples = "  quest embed --run runs/first --out vectors.npy < texts\n",
           .options = std::move(options),
           .prepare =
               [o] {
                 if (!o->run.empty()) o->settings = read_config(o->run), o->settings.device = "cpu";
               },
           .run = [o](const std::vector<std::string>& texts) { return embed(*o, texts); }},
          {.name = "export",
           .summary = "write a run's prompt as a folder that PEFT loads",
           .arguments = "RUN DIR",
           .examples = "  quest export runs/first prompt-for-peft\n",
           .run = [](const std::vector<std::string>& a) { return export_prompt(a[0], a[1]); }}};
}

}  // namespace quest
