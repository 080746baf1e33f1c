// Run folders, as the commands read them.
#pragma once
#include <string>
#include <vector>

#include "tools/options.h"
#include "train/settings.h"

namespace quest {

std::vector<Option> job_options(Settings&);       // the table behind `quest train` and config.json
Settings read_config(const std::string& folder);  // throws Error(input)

}  // namespace quest
