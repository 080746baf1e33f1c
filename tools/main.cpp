#include <malloc.h>

#include <simdjson.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>
#include <vector>

#include "tools/commands.h"

int main(int argc, char** argv) try {
  mallopt(M_MMAP_THRESHOLD, 128 << 10);  // and it stays there: what is large goes back when it is freed
  // When it is first used simdjson chooses its code, in functions that end the program for want of memory.
  const auto usual = std::set_terminate([] {
    fputs("quest: memory: none is left, not even to begin; close other programs\n", stderr);
    _exit(4);
  });
  if (!simdjson::validate_utf8("", 0)) return 4;
  std::set_terminate(usual);
  std::vector<quest::Command> commands;
  for (const auto& of_file : {quest::train_commands(), quest::plan_commands(), quest::answer_commands(),
                              quest::data_commands(), quest::quantize_commands(), quest::embed_commands(),
                              quest::reproduce_commands(), quest::bench_commands()})
    commands.insert(commands.end(), of_file.begin(), of_file.end());
  return quest::run_commands(commands, argc, argv);
} catch (const std::bad_alloc&) {
  fprintf(stderr, "quest: memory: none is left, not even to begin; close other programs\n");
  return 4;
}
