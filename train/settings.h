// All that repeats a run. The options of `quest train` fill it and config.json keeps it.
#pragma once
#include <cstdint>
#include <string>

namespace quest {

struct Settings {
  // The job.
  std::string job = "own";     // its name, for the record; the default job has a fixed one
  std::string data, model;     // dataset folder; GGUF or Hugging Face folder; empty: the default ones
  std::string quant = "none";  // nf4: the linear layers are quantised when the model is loaded
  int64_t min_positives = 0;   // a label counts from so many training positives on
  int64_t test_queries = 0;    // those with the smallest hash of their uid; 0: all
  double ratio = 0;            // share of the pairs that the sampler draws; 0: a quarter, but at least 2,000
  int64_t pairs = 0;           // at most so many; 0: no limit
  double validation = 0.02;    // share of the training queries held out, by hash of their uid
  int64_t length = 64;         // tokens of a text; the rest is cut

  // The prompt.
  std::string placement = "suffix", pooling = "last";
  int64_t prompt_rows = 4;  // K
  std::string init = "In one word, this is about the following related topic in short:";
  bool centre = false;  // subtract the start prompt's mean embedding before normalising

  // Training.
  int64_t epochs = 0, steps = 0;  // epochs 0: so many that there are 100 steps; steps > 0 overrides epochs
  int64_t batch = 64;             // pairs a step
  double rate = 2e-2, warmup = 0.1, temperature = 0.05, clip = 1, decay = 0;
  bool symmetric = false;
  int64_t validate_every = 40, patience = 3;
  std::string sampler = "minhash";
  int64_t seed = 1;

  // The machine: no influence on the bits of a result, but for precision and kernels.
  std::string precision = "bf16", kernels;
  int64_t threads = 0, text_cache = int64_t{4} << 30, rows = 1024;  // rows: tokens of one pass
  bool recompute = false;
};

}  // namespace quest
