// Run folders, as the commands read them.
#pragma once
#include <string>
#include <vector>

#include "tools/options.h"
#include "train/job.h"

namespace quest {

// The table behind `quest train` and config.json, or of it the options that are named, parted by spaces.
std::vector<Option> job_options(Settings&, const std::string& only = "");
Option memory_option(int64_t& bytes);             // --memory, of everything that embeds texts
Option encoding_precision(Settings&);             // --precision, where nothing is trained
Settings read_config(const std::string& folder);  // throws Error(input)
RunFolder run_folder(Settings, const std::string& path);
// Throws Error(usage) unless the folder's job is this one. How the machine is used may differ, and unless
// same_source where dataset and model lie (the checkpoint knows them, and its kernels).
void require_same_job(const std::string& folder, Settings, bool same_source = false);
// What is given as arguments, or without them the lines of stdin. Throws Error(input) unless all are UTF-8.
std::vector<std::string> read_texts(std::vector<std::string> arguments);

}  // namespace quest
