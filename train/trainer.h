// The training loop: batches of sampled pairs, AdamW on the prompt, early stopping on held-out queries,
// checkpoints.
#pragma once
#include <utility>
#include <variant>

#include "index/metrics.h"
#include "model/tensors.h"
#include "train/step.h"
#include "train/task.h"

namespace quest {

// What a checkpoint holds, beside the identity of what it belongs to.
struct TrainState {
  int64_t step = 0, best_step = 0;  // steps done; step of the best prompt
  int64_t stale = 0, finished = 0;  // validations since the best one; 1: stopped early
  double best_score = 0, start_score = 0, flops = 0, seconds = 0;  // flops, seconds: of start and all steps
  std::vector<float> start, prompt, m, v, best;                    // [K,d]
  std::vector<float> mean;  // [d], subtracted from embeddings; or empty

  using Number = std::variant<int64_t*, double*>;
  std::vector<std::pair<const char*, Number>> numbers();
  std::vector<std::pair<const char*, std::vector<float>*>> matrices();
  TensorFile file(int64_t width);  // points to the vectors
};
// A state of K prompt rows out of its file; mean_rows: 1 when embeddings are centred, or 0. Throws
// Error(input).
TrainState read_state(const TensorFile&, int64_t K, int64_t width, int64_t mean_rows);

// Model, dataset, kernel path and precision of a run: what a file of the run must be of.
std::map<std::string, std::string> identity(const Engine&, const Task&);
// Throws Error(input) unless the file is of this identity; `what` names the entries, parted by spaces.
void require_identity(const TensorFile&, const Engine&, const Task&,
                      const std::string& what = "kernels precision model data");

constexpr const char* checkpoint_name = "/checkpoint.safetensors";

// Lists of `depth` of a side's queries, without (drop) or with their own labels, and their metrics.
constexpr int64_t depth = 100;
Metrics measure(const Task&, const Side&, const Ranked& lists, bool drop);
double objective(const Metrics&);  // R@10: decides between variants, on validation

class Trainer {
 public:
  // cached: the corpus' texts with keys and values (suffix placement).
  Trainer(Engine& engine, const Task& task, const std::vector<Text>& cached, const std::string& folder)
      : engine_(engine), task_(task), settings_(task.settings), cached_(cached), folder_(folder) {}

  void start();   // start prompt, its mean, its validation score
  bool resume();  // from the checkpoint; false when there is none yet. Throws Error(input)
  void run();     // to the end; throws Stopped when interrupted (a checkpoint was written)

  // Unit embeddings of texts of the corpus with a prompt.
  std::vector<float> embed(const std::vector<float>& prompt, const std::vector<int32_t>& texts,
                           const char* label);
  double validate();  // R@10 of the validation queries with the current prompt, in percent
  std::vector<float> start_prompt() const;
  std::vector<int32_t> validation_texts() const;  // of the labels that validation ranks

  TrainState state;

 private:
  Policy policy() const;
  std::pair<float, float> step(double rate);        // returns the loss and the gradient's length
  bool positive(int32_t pair, int32_t text) const;  // hidden from the pair's denominator, unless its target

  Engine& engine_;
  const Task& task_;
  const Settings& settings_;
  const std::vector<Text>& cached_;
  std::string folder_;
  Policy policy_;
  std::vector<float> gradient_;  // [K,d]
  std::vector<int32_t> order_;   // pairs of the current epoch
  int64_t order_epoch_ = -1;
};

}  // namespace quest
