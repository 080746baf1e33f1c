#include "train/prompt_file.h"

#include "kernels/base/json.h"
#include "model/config.h"

namespace quest {

static const char* const peft_config = "/adapter_config.json";
static const char* const peft_tensors = "/adapter_model.safetensors";
static const char* const peft_name = "prompt_embeddings";

PromptFile read_prompt(const std::string& path, int64_t width) {
  if (!is_folder(path)) {
    const TensorFile file = read_tensors(path);
    PromptFile p{file.numbers("prompt", -1, width), file.numbers("mean", -1, width), file.text("placement"),
                 file.text("pooling")};
    if (p.rows.empty() || (p.placement != "prefix" && p.placement != "suffix") ||
        (p.pooling != "last" && p.pooling != "mean"))
      fail(Exit::input,
           "%s: expected a prompt of at least one row, placement prefix or suffix, pooling last or mean, "
           "found %zu numbers, '%.20s', '%.20s'; make the file again",
           path.c_str(), p.rows.size(), p.placement.c_str(), p.pooling.c_str());
    return p;
  }
  const Config config(path + peft_config);
  const auto require = [&](bool good, const std::string& key, const std::string& expected,
                           const std::string& found) {
    if (!good)
      config.refuse("key " + key, expected, found, "only PEFT's prompt tuning of a whole model can be read");
  };
  const std::string type = config.text("peft_type");
  require(type == "PROMPT_TUNING", "peft_type", "PROMPT_TUNING", type);
  const int64_t parts = config.integer("num_transformer_submodules", 1), dim = config.integer("token_dim"),
                rows = config.integer("num_virtual_tokens");
  require(parts == 1, "num_transformer_submodules", "1", std::to_string(parts));
  require(dim == width, "token_dim", format("the model's width %ld", width), std::to_string(dim));
  require(rows > 0, "num_virtual_tokens", "at least 1", "0");
  return {read_tensors(path + peft_tensors).numbers(peft_name, rows, width), {}, "prefix", ""};
}

std::vector<float> prompt_from_file(const Settings& s, int64_t width) {
  const PromptFile file = read_prompt(s.prompt, width);
  const int64_t rows = std::ssize(file.rows) / width;
  if (file.placement != s.placement || rows != s.prompt_rows || !file.mean.empty() ||
      (!file.pooling.empty() && file.pooling != s.pooling))
    fail(Exit::usage,
         "--prompt %s: expected %ld rows for placement %s and pooling %s, not centred, found %ld for %s "
         "and %s; give --prompt-rows, --placement and --pooling as the file has them",
         s.prompt.c_str(), s.prompt_rows, s.placement.c_str(), s.pooling.c_str(), rows,
         file.placement.c_str(), file.pooling.empty() ? "any" : file.pooling.c_str());
  return file.rows;
}

void write_peft(const PromptFile& prompt, const Model& m, const std::string& folder) {
  const int64_t rows = std::ssize(prompt.rows) / m.width;
  if (prompt.placement != "prefix" || !prompt.mean.empty())
    fail(Exit::usage,
         "PEFT: expected a prompt before the text and embeddings that are not centred, found placement %s%s; "
         "such a prompt stays in prompt.safetensors, or train with --placement prefix",
         prompt.placement.c_str(), prompt.mean.empty() ? "" : ", centred");
  JsonWriter j;
  j.object().field("peft_type", "PROMPT_TUNING").field("task_type", "FEATURE_EXTRACTION");
  j.field("base_model_name_or_path", m.name).field("inference_mode", true).field("num_virtual_tokens", rows);
  j.field("token_dim", m.width).field("num_layers", m.layers).field("num_attention_heads", m.heads.heads);
  j.field("num_transformer_submodules", 1).field("prompt_tuning_init", "RANDOM");
  const View view{const_cast<float*>(prompt.rows.data()), Type::f32, rows, m.width, m.width};
  write_tensors(folder + peft_tensors, {{{peft_name, view}}, {{"format", "pt"}}, {}});
  write_file(folder + peft_config, j.end().text() + "\n");
}

}  // namespace quest
