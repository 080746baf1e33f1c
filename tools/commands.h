// The commands of quest, one file each; main.cpp lists them.
#pragma once
#include "tools/options.h"

namespace quest {

std::vector<Command> train_commands();
std::vector<Command> plan_commands();
std::vector<Command> answer_commands();  // run.cpp: predict, eval, info
std::vector<Command> data_commands();    // import, debian, sample
std::vector<Command> quantize_commands();
std::vector<Command> embed_commands();  // embed, export
std::vector<Command> reproduce_commands();
std::vector<Command> bench_commands();

}  // namespace quest
