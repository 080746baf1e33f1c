// The main job: baselines, sample, text pass, training, evaluation, index, run folder.
#pragma once
#include <string>

#include "train/trainer.h"

namespace quest {

// The dataset of a job: settings.data, or the default one, converted once to the user's cache folder.
Dataset open_job_data(const Settings&);

// Runs the job into `folder`, writing config.json (the text given), metrics.jsonl, checkpoint, prompt, index,
// summary.txt and result.json; a run that was interrupted goes on where it stood. Returns result.json's text,
// or "" when Ctrl-C stopped it. summary: the same for people.
std::string run_job(const Settings&, const std::string& folder, const std::string& config, Interrupt&,
                    std::string& summary);

}  // namespace quest
