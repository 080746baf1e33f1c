// libFuzzer's entry (make fuzz). The environment's QUEST_FUZZ names the target; QUEST_SEEDS a folder that its seeds are
// written to before it starts.
#include <cstdint>

#include "tests/fuzz/seeds.h"

using namespace quest;

static std::string target() { return getenv("QUEST_FUZZ") ? getenv("QUEST_FUZZ") : "gguf"; }

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  if (const char* folder = getenv("QUEST_SEEDS")) {
    int number = 0;
    for (const std::string& seed : fuzz::seeds(target()))
      write_file(format("%s/seed-%d", folder, number++), seed);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string name = target();
  fuzz::run(name, {reinterpret_cast<const char*>(data), size});
  return 0;
}
