// What a job works on: the labels and queries of a dataset that take part, the pairs drawn for training, and
// where all their texts stand in a corpus. Labels have the job's own numbers, 0 .. labels - 1, ascending in
// the dataset's.
#pragma once
#include <vector>

#include "index/exact.h"
#include "sampling/sampler.h"
#include "train/engine.h"

namespace quest {

// Queries and what is true of them.
struct Side {
  const Split* split = nullptr;
  std::vector<int32_t> queries;     // rows of the split
  std::vector<int64_t> offsets{0};  // CSR of the true labels
  std::vector<int32_t> truth;
  // CSR of what is dropped before ranking: the label that is the query itself, and what the dataset's filter
  // names.
  std::vector<int64_t> dropped_offsets{0};
  std::vector<int32_t> dropped_labels;
  std::vector<int32_t> texts;  // [queries] in the corpus, once they are collected
  SparseRows labels() const { return {offsets, truth}; }
  SparseRows dropped() const { return {dropped_offsets, dropped_labels}; }
  int64_t most_dropped = 0;  // labels of one query
};

struct Task {
  Task(const Settings&, Dataset);  // throws Error(input) when too little takes part
  Task(Task&&) = delete;           // the sides point into the dataset

  const Settings& settings;
  Dataset data;
  std::vector<int32_t> labels;  // of the dataset; those with a text and enough training positives
  std::vector<int32_t> number;  // [dataset labels] its place in `labels`, or -1
  std::vector<int64_t> counts;  // [labels] training queries that have it
  Side test;        // test queries that keep a label; of many, those of smallest hash of their uid
  Side validation;  // training queries held out, by hash of their uid
  Side training;    // the other training queries that keep a label
  std::vector<int32_t> validation_labels;  // ranked against during training: those of validation, and more

  std::vector<DrawnPair> pairs;
  SampleReport report;
  void draw_pairs(Threads&);  // throws Error(input) when there is none

  std::vector<int32_t> label_texts;  // [labels] texts of the corpus
  std::vector<int32_t> pair_texts;   // [pairs] of their queries
  // What every step reads is collected first, what is read once last: the text cache keeps the first ones.
  void collect_pairs(const Tokenizer&, Corpus&);
  void collect_others(const Tokenizer&, Corpus&);

  Side side(const Split&, std::vector<int32_t> queries) const;
  int64_t steps() const;  // of training
};

}  // namespace quest
