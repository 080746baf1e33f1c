// One training step's loss and prompt gradient: embeddings of the batch's texts, contrastive loss, and back.
#pragma once
#include "model/encode.h"

namespace quest {

// A batch of pairs over distinct texts. A text may be a query and a label; it is encoded once.
struct StepBatch {
  const Text* texts = nullptr;
  int64_t count = 0;                 // T texts
  const int32_t* queries = nullptr;  // [U] text of each query row
  int64_t query_count = 0;
  const int32_t* labels = nullptr;  // [L] text of each label row
  int64_t label_count = 0;
  const Pair* pairs = nullptr;  // [B]
  int64_t pair_count = 0;
  const uint8_t* hidden = nullptr;          // [B,L] 1: not in this pair's denominator
  const uint8_t* hidden_queries = nullptr;  // [B,U]; nullptr: one way
  double temperature = 0.05;
  View mean;  // [1,d] acc, subtracted before normalisation, or absent
};

// loss [1,1] acc, dprompt [K,d] acc, both =. Passes hold at most `micro` texts (several passes: embeddings
// first, then each pass again with its backward, as GradCache does); the bits do not depend on micro or keep.
void loss_and_gradient(const Encoder&, const StepBatch&, int64_t micro, Keep keep, View loss, View dprompt);

}  // namespace quest
