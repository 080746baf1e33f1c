// One training step, timed and weighed: a contrastive batch of texts of 64 tokens behind a prompt of 16 rows.
//   step_bench MODEL PAIRS MEMORY STEPS [THREADS]     MEMORY: bytes that the process may take; 0: no limit
// Prints one line of JSON: the policy, median seconds of a step, pairs a second, and the kernel's count of the
// memory that no file holds (nothing is given back, so at the end it is the most).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "kernels/base/error.h"
#include "kernels/base/json.h"
#include "kernels/base/progress.h"
#include "kernels/base/random.h"
#include "train/engine.h"
#include "train/plan.h"

using namespace quest;

namespace {

int64_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  int64_t kib = 0;
  for (std::string line; std::getline(status, line);)
    if (sscanf(line.c_str(), "RssAnon: %ld kB", &kib) == 1) break;
  return kib * 1024;
}

int run(const std::string& path, int64_t pairs, size_t memory, int64_t steps, int threads_wanted) {
  constexpr int64_t length = 64, rows = 16;
  const auto model = load_model(path);
  const Ops ops = cpu_ops(nullptr, Type::bf16);
  Threads threads(threads_wanted);
  const StepShape shape{Placement::prefix, Pooling::last, rows, pairs, length, 1024, false, false};
  std::vector<int32_t> tokens(static_cast<size_t>(2 * pairs * length));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(random_bits(1, 1, i) % static_cast<uint64_t>(model->vocabulary));
  const size_t beside = program_bytes + heap_in_use();
  const size_t given = memory ? memory : available_memory(), room = given - std::min(given, beside);
  const auto [policy, fits] = choose_policy(*model, ops, threads.count(), shape, room, 0, 0);
  if (!fits) fail(Exit::machine, "%ld pairs do not fit into %zu bytes", pairs, memory);
  const size_t planned = plan_step(*model, ops, threads.count(), shape, policy).peak;
  Arena arena(planned);
  double flops = 0, again = 0;
  const Context c{&ops, &threads, &arena, &flops, &again};
  View prompt = new_acc(c, rows, model->width, "prompt/rows"),
       gradient = new_acc(c, rows, model->width, "prompt/gradient"), loss = new_acc(c, 1, 1, "loss/loss");
  std::vector<int32_t> ids(rows);
  for (int64_t i = 0; i < rows; ++i) ids[static_cast<size_t>(i)] = static_cast<int32_t>(i + 1);
  ops.embed(c, model->embedding, ids.data(), prompt);
  const BatchArrays a(arena, pairs, false);
  for (int64_t t = 0; t < 2 * pairs; ++t) a.texts[t] = {tokens.data() + t * length, length, {}};
  for (int64_t i = 0; i < pairs; ++i) {
    a.queries[i] = static_cast<int32_t>(i), a.labels[i] = static_cast<int32_t>(pairs + i);
    a.pairs[i] = {static_cast<int32_t>(i), static_cast<int32_t>(i)};
  }
  std::fill_n(a.hidden, pairs * pairs, uint8_t{0});
  std::vector<double> seconds;
  for (int64_t i = 0; i < steps; ++i) {
    const double begin = now_seconds();
    loss_and_gradient({*model, c, shape.placement, shape.pooling, prompt, shape.rows},
                      a.batch(2 * pairs, pairs, pairs, pairs), policy, loss, gradient);
    seconds.push_back(now_seconds() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  JsonWriter j(true);
  j.object().field("policy", describe(policy, 2 * pairs, model->layers)).field("loss", *static_cast<float*>(loss.data));
  j.field("seconds", median).field("least", seconds.front()).field("most", seconds.back());
  j.field("pairs_per_second", static_cast<double>(pairs) / median).field("planned", planned + beside);
  j.field("RssAnon", anonymous_memory()).field("tflop", flops / static_cast<double>(steps) / 1e12);
  j.field("again", again / static_cast<double>(steps) / 1e12);
  printf("%s\n", j.end().text().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 5) return fprintf(stderr, "usage: step_bench MODEL PAIRS MEMORY STEPS [THREADS]\n"), 2;
  return run(argv[1], atol(argv[2]), strtoull(argv[3], nullptr, 10), atol(argv[4]), argc > 5 ? atoi(argv[5]) : 0);
} catch (const Error& e) {
  fprintf(stderr, "step_bench: %s\n", e.what());
  return static_cast<int>(e.code);
}
