#include <vector>

#include "tools/commands.h"

int main(int argc, char** argv) {
  const std::vector<quest::Command> commands = {
      quest::train_command(),       quest::plan_command(),   quest::predict_command(),
      quest::eval_command(),        quest::info_command(),   quest::data_import_command(),
      quest::data_debian_command(), quest::sample_command(), quest::quantize_command(),
      quest::embed_command(),       quest::export_command(), quest::reproduce_command()};
  return quest::run_commands(commands, argc, argv);
}
