// One training step's loss and prompt gradient: embeddings of the batch's texts, contrastive loss, and back.
#pragma once
#include <span>

#include "model/encode.h"

namespace quest {

// A batch of pairs over distinct texts, on the host. A text may be a query and a label; it is encoded once.
struct StepBatch {
  std::span<const Text> texts;               // [T]
  std::span<const int32_t> queries, labels;  // [U], [L] text of each query row, of each label row
  std::span<const Pair> pairs;               // [B]
  const uint8_t* hidden = nullptr;           // [B,L] 1: not in this pair's denominator
  const uint8_t* hidden_queries = nullptr;   // [B,U]; nullptr: one way
  double temperature = 0.05;
  View mean = {};  // [1,d] acc, as the ops see it: subtracted before normalisation, or absent
};

// Where a batch of B pairs stands, in the arena: as much as its 2 B rows may need.
struct BatchArrays {
  BatchArrays(Arena&, int64_t pairs, bool symmetric);
  StepBatch batch(int64_t texts, int64_t queries, int64_t labels, int64_t pairs) const;

  Text* texts;                       // [2 B]
  int32_t* numbers;                  // [2 B] of the texts, in the corpus
  int32_t *queries, *labels;         // [B] text of each row
  Pair* pairs;                       // [B]
  uint8_t *hidden, *hidden_queries;  // [B,L], [B,U]; nullptr: one way
};

// How a step is divided so that it fits into memory (GradCache): all texts are embedded, pass by pass; then
// the loss; then the passes again, in the same order, backward.
struct Policy {
  int64_t micro = INT64_MAX;  // texts of a pass
  int64_t held = INT64_MAX;   // the first so many passes keep their activations; the others run forward twice
  int64_t spacing = keep_all;  // what a pass keeps (pass.h)
};

// loss [1,1] acc, dprompt [K,d] acc, both =, as the ops see them. The bits do not depend on the policy.
void loss_and_gradient(const Encoder&, const StepBatch&, const Policy&, View loss, View dprompt);

}  // namespace quest
