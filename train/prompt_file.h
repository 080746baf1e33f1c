// Prompts on disk: our prompt.safetensors, and the folder of PEFT's prompt tuning (adapter_config.json with
// adapter_model.safetensors), which knows prompts before the text, and before its BOS, alone.
#pragma once
#include <string>
#include <vector>

#include "model/llama.h"
#include "train/settings.h"

namespace quest {

struct PromptFile {
  std::vector<float> rows;         // [K,d]
  std::vector<float> mean;         // [d], subtracted from embeddings; or empty
  std::string placement, pooling;  // pooling: empty where the file does not say
};

// Of our file, or of a PEFT folder. Throws Error(input) when it is damaged, of another width, or holds what
// is not one prompt for the whole model.
PromptFile read_prompt(const std::string& path, int64_t width);

// The rows of --prompt; throws Error(usage) unless they fit the settings.
std::vector<float> prompt_from_file(const Settings& settings, int64_t width);

// Throws Error(usage) where PEFT cannot express the prompt. The folder exists.
void write_peft(const PromptFile& prompt, const Model& model, const std::string& folder);

}  // namespace quest
