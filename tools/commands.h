// The commands of quest, one file each; main.cpp lists them.
#pragma once
#include "tools/options.h"

namespace quest {

Command data_import_command();
Command data_debian_command();
Command sample_command();
Command train_command();
Command plan_command();
Command eval_command();
Command predict_command();
Command info_command();
Command quantize_command();
Command embed_command();
Command export_command();
Command reproduce_command();

}  // namespace quest
