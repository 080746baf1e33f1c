// All that repeats a run. The options of `quest train` fill it and config.json keeps it.
#pragma once
#include <cstdint>
#include <string>

#include "model/encode.h"

namespace quest {

// Of the default job, with labels and queries of the default dataset.
constexpr int64_t default_min_positives = 2, default_test_queries = 1000;

struct Settings {
  std::string preset = "default";  // what the values below started from

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
  // How a query and a label read. A sentence whose place is empty is left out, unless keep_empty.
  std::string query_text = "{title}. {content}", label_text = query_text;
  bool keep_empty = false;

  // The prompt.
  std::string placement = "suffix", pooling = "last";
  int64_t prompt_rows = 4;  // K
  std::string prompt;       // file or PEFT folder that it starts from, instead of `init`
  // The text that the prompt starts from; empty: rows 1..K of the vocabulary.
  std::string init = "In one word, this is about the following related topic in short:";
  bool centre = false;  // subtract the start prompt's mean embedding before normalising

  // Training.
  int64_t epochs = 0, steps = 0;  // epochs 0: so many that there are 100 steps; steps > 0 overrides epochs
  int64_t batch = 64;             // pairs a step
  double rate = 2e-2, warmup = 0.1, temperature = 0.05, clip = 1, decay = 0;
  bool symmetric = false;
  bool constant = false;  // the rate, without warm-up and cosine
  // Other positives of a query stay in its denominator, and so does a label drawn twice.
  bool unmasked = false;
  int64_t validate_every = 40, patience = 3;
  std::string sampler = "minhash";
  int64_t first = 4;  // labels of a query that sampler first-m knows
  int64_t seed = 1;

  // The machine: no influence on the bits of a result, but for device, precision and kernels.
  std::string device = "cpu", precision = "bf16", kernels;
  int64_t threads = 0, text_cache = int64_t{4} << 30, rows = 1024;  // rows: tokens of one pass
  // How a step is divided (step.h): texts of a pass, layers from one kept input to the next. 0: as memory
  // allows.
  int64_t micro = 0, spacing = 0;

  Placement where() const { return placement == "prefix" ? Placement::prefix : Placement::suffix; }
  Pooling pooled() const { return pooling == "mean" ? Pooling::mean : Pooling::last; }
  Type activation() const { return precision == "f32" ? Type::f32 : Type::bf16; }
};

// default: what measured best on validation queries. paper: QUEST as published. authors: their released code
// where it differs. What the presets leave open (model, dataset, machine) is as in `default`.
inline Settings preset_settings(const std::string& name) {
  Settings s;
  s.preset = name;
  if (name == "default") return s;
  s.placement = "prefix", s.prompt_rows = 15, s.length = 64, s.quant = "nf4";
  s.ratio = 0.25, s.sampler = "paper", s.rate = 1e-3, s.clip = 0, s.constant = s.unmasked = true;
  s.query_text = "The title of the product is {title}. Its content is about {content}";
  s.label_text = "{title}";
  // The paper is silent: from the authors' code.
  s.batch = 18, s.epochs = 2, s.temperature = 0.05, s.init = "";
  if (name == "paper") return s;
  // Their rate also halves in the second epoch; it stays here.
  s.prompt_rows = 20, s.decay = 0.01, s.ratio = 1, s.sampler = "first-m", s.first = 4;
  s.query_text = "The title is {title}. The content is {content}", s.keep_empty = true;
  return s;
}

}  // namespace quest
