// A model as a Hugging Face folder in bitsandbytes' NF4: read back by `--model`, and by transformers.
#pragma once
#include <string>

#include "model/llama.h"

namespace quest {

// Writes config.json and model.safetensors into `folder`, which exists. The linear layers become NF4
// with double quantisation, rows of q and k in Hugging Face's order; embedding and norms stay as they are,
// those of GGUF's block types as fp32. Throws Error(input) when config.json cannot say what the model's rope
// does.
void save_nf4(const Model& model, const std::string& folder);

}  // namespace quest
