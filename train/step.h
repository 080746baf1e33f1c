// One training step's loss and prompt gradient: embeddings of the batch's texts, contrastive loss, and back.
#pragma once
#include <span>

#include "model/encode.h"

namespace quest {

// A batch of pairs over distinct texts. A text may be a query and a label; it is encoded once.
struct StepBatch {
  std::span<const Text> texts;               // [T]
  std::span<const int32_t> queries, labels;  // [U], [L] text of each query row, of each label row
  std::span<const Pair> pairs;               // [B]
  const uint8_t* hidden = nullptr;           // [B,L] 1: not in this pair's denominator
  const uint8_t* hidden_queries = nullptr;   // [B,U]; nullptr: one way
  double temperature = 0.05;
  View mean = {};  // [1,d] acc, subtracted before normalisation, or absent
};

// loss [1,1] acc, dprompt [K,d] acc, both =. Passes hold at most `micro` texts (several passes: embeddings
// first, then each pass again with its backward, as GradCache does); the bits do not depend on micro or keep.
void loss_and_gradient(const Encoder&, const StepBatch&, int64_t micro, Keep keep, View loss, View dprompt);

}  // namespace quest
