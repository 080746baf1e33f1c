// quest quantize: a model in fewer bits, as a Hugging Face folder.
#include <cstdio>
#include <memory>

#include "model/fetch.h"
#include "model/save.h"
#include "model/vocabulary.h"
#include "tools/commands.h"

namespace quest {

namespace {

struct QuantizeOptions {
  std::string model, out, to = "nf4";
};

int quantize(const QuantizeOptions& o) {
  if (o.out.empty()) fail(Exit::usage, "--out: expected a folder to write, found none; give --out DIR");
  if (o.to != "nf4") fail(Exit::usage, "--to: expected nf4, found %s; leave it out", o.to.c_str());
  const std::string path = o.model.empty() ? default_model_path() : o.model;
  OutFolder folder(o.out);
  const auto model = load_model(path);
  fprintf(stderr, "quantising %ld layers of %s\n", model->layers, path.c_str());
  save_nf4(*model, folder.file(""));
  copy_tokenizer(path, folder.file(""));
  folder.commit();
  printf("%s: %s in NF4 with double quantisation; try: quest train --model %s\n", o.out.c_str(), path.c_str(),
         o.out.c_str());
  return 0;
}

}  // namespace

std::vector<Command> quantize_commands() {
  const auto o = std::make_shared<QuantizeOptions>();
  return {{.name = "quantize",
           .summary = "write a model in NF4, as a Hugging Face folder that bitsandbytes reads",
           .examples = "  quest quantize --to nf4 --out smollm2-nf4\n",
           .options = {{"model", 'm', &o->model, "PATH",
                        "GGUF or Hugging Face folder; without it SmolLM2-135M-Instruct"},
                       {"to", 0, &o->to, "nf4", "format"},
                       {"out", 'o', &o->out, "DIR", "folder to make"}},
           .run = [o](const std::vector<std::string>&) { return quantize(*o); }}};
}

}  // namespace quest
