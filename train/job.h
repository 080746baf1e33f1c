// The main job: baselines, sample, text pass, training, evaluation, index, run folder.
#pragma once
#include <string>
#include <vector>

#include "train/trainer.h"

namespace quest {

// The dataset of a job: settings.data, or the default one, converted once to the user's cache folder.
Dataset open_job_data(const Settings&);

struct RunFolder {
  Settings settings;
  std::string path, config;  // config: the text of config.json
};

// Runs jobs, each into its folder: config.json, metrics.jsonl, checkpoint, prompt, index, summary.txt (for
// people) and result.json, which comes last. A run that was interrupted goes on where it stood. The first
// one's settings of model and machine hold for all, and one text pass serves all; the bits are those of each
// alone. From the call on Ctrl-C and SIGTERM only ask it to stop; then it returns false.
// memory: bytes that the process may take; 0: 0.8 of what is available.
bool run_jobs(const std::vector<RunFolder>& runs, size_t memory = 0);

}  // namespace quest
