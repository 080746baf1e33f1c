// The training loop: batches of sampled pairs, AdamW on the prompt, early stopping on held-out queries,
// checkpoints.
#pragma once
#include <string>
#include <vector>

#include "sampling/sampler.h"
#include "train/engine.h"
#include "train/select.h"
#include "train/step.h"
#include "train/tensors.h"

namespace quest {

// The distinct texts of a job and who reads them.
struct JobTexts {
  Corpus corpus;
  std::vector<int32_t> of_label;                // [labels of the job]
  std::vector<int32_t> of_test, of_validation;  // as Selection::test and ::validation
  std::vector<int32_t> of_pair_query;           // [pairs]
};

// What a checkpoint holds, beside the hashes of what it belongs to.
struct TrainState {
  int64_t step = 0;                       // steps done
  std::vector<float> prompt, m, v, best;  // [K,d]
  std::vector<float> mean;                // [d], or empty
  double best_score = 0, flops = 0;
  int64_t best_step = 0, stale = 0;  // validations since the best one
  bool finished = false;
};

// Steps of a job that drew so many pairs.
int64_t planned_steps(const Settings&, int64_t pairs);

class Trainer {
 public:
  // cache: nullptr with a prefix prompt.
  Trainer(Engine&, const Settings&, const Dataset&, const Selection&, const JobTexts&, const TextCache* cache,
          const std::vector<DrawnPair>& pairs, std::string folder);

  int64_t steps() const { return steps_; }
  void start();   // start prompt, its mean, its validation score
  bool resume();  // from the checkpoint; false when there is none yet
  // The checkpoint of a run folder. Throws Error(input): damaged, or of another model, dataset, kernel path
  // or precision.
  static TensorFile open_checkpoint(const std::string& folder, const Engine&, const Settings&,
                                    const Dataset&);
  bool run(Interrupt&);  // to the end, or false when interrupted (a checkpoint was written)

  // Unit embeddings of some texts with a prompt.
  std::vector<float> embed(const std::vector<float>& prompt, const std::vector<int32_t>& texts,
                           const char* label);
  double validate(const std::vector<float>& prompt);  // R@10 of the validation queries, in percent
  std::vector<float> start_prompt() const;

  TrainState state;
  double start_score = 0;

 private:
  double step(std::vector<float>& gradient);  // returns the loss
  void checkpoint() const;
  Encoder encoder(const std::vector<float>& prompt) const;
  std::vector<Text> texts(const std::vector<int32_t>& numbers) const;
  bool positive(int64_t pair,
                int32_t text) const;  // of the pair's query, and so hidden unless it is the target
  View mean() const;

  Engine& engine_;
  const Settings& settings_;
  const Dataset& data_;
  const Selection& selection_;
  const JobTexts& job_;
  const TextCache* cache_;
  const std::vector<DrawnPair>& pairs_;
  std::string folder_;
  int64_t steps_, per_epoch_;
  std::vector<int32_t> order_;  // pairs of the current epoch
  int64_t order_epoch_ = -1;
  std::vector<int32_t> validation_labels_;  // job numbers ranked against during training
};

}  // namespace quest
