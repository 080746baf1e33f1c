// Diversity-aware sampling of training pairs (QUEST, Algorithm 1): every (query, label) pair is weighted by
// the inverse of its estimated Jaccard kernel density, then k pairs are drawn without replacement.
//
// Memory: R·B counts of 8 bytes, 4 MiB of document frequencies, half a MiB a thread, one bit a query and a label
// while they are counted, and 16 bytes a drawn pair. The result depends on data, options and seed, not on how
// many threads.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "kernels/base/json.h"
#include "kernels/base/threads.h"
#include "sampling/dataset.h"

namespace quest {

enum class SamplerKind {
  minhash,  // label title: word unigrams and bigrams, lower-cased, without those of over 1 % of the labels
  paper,    // the paper to the letter: tokens between white space of title, content and label title together
  uniform,  // every pair weighs 1
  first_m   // the same, of each query's labels of lowest number alone
};
constexpr const char* sampler_names[] = {"minhash", "paper", "uniform", "first-m"};
SamplerKind sampler_kind(const std::string& name);  // throws Error(usage) for another name

// Which training pairs take part; a query's own label never does with it.
struct PairFilter {
  std::function<bool(int64_t query)> keep;  // false: held out; on any thread; empty: keep all
  std::span<const uint8_t> label_ok;        // [labels] 0: does not count; empty: all count

  bool counts(int64_t label) const { return label_ok.empty() || label_ok[label] != 0; }
};

struct SamplerOptions {
  SamplerKind kind = SamplerKind::minhash;
  uint64_t seed = 1;
  int64_t k = 0;      // pairs to draw
  int64_t rows = 0;   // R, MinHash functions; 0: 16 (minhash) or 4 (paper)
  int64_t range = 0;  // B, values of each; 0: 65,536 (minhash) or ceil(ln n) (paper), n pairs taking part
  int64_t first = 4;  // labels of a query that take part (first_m)
};

// The k smallest keys are drawn: key = -ln(u) / weight with u = random_uniform(seed, draw_stream, id()).
// weight = n·R / Sum; over seeds E[Sum] = R·(J + (n - J)/B), J the pair's Jaccard density among the n. Texts
// without any token are alike (Jaccard 1).
struct DrawnPair {
  int32_t query, label;
  double key;
  uint64_t id() const { return uint64_t(query) << 32 | uint32_t(label); }
  bool operator<(const DrawnPair& b) const { return std::pair(key, id()) < std::pair(b.key, b.id()); }
};
static_assert(sizeof(DrawnPair) == 16);
constexpr uint64_t draw_stream = 2;

struct PairCounts {
  int64_t pairs = 0, queries = 0, labels = 0;  // queries and labels: distinct ones in these pairs
};

struct SampleReport {
  SamplerOptions options;           // R and B as used; 0 for uniform
  PairCounts all, drawn, uniform;   // pairs taking part; drawn; a uniform sample of that size and seed
  double ratio = 1, variation = 0;  // weights of all pairs: max / min, standard deviation / mean
};

// Draws min(k, n) distinct pairs, with probabilities that follow the weights (Efraimidis and Spirakis 2006),
// and returns them in a random order that does not depend on the weights. Throws Error(usage) on bad options.
// A filter or dataset without any pair gives an empty result.
std::vector<DrawnPair> sample_pairs(const Dataset& data, const PairFilter& filter,
                                    const SamplerOptions& options, Threads& threads,
                                    SampleReport* report = nullptr);

std::string describe(const SampleReport& report);                 // a table of five lines
void write_report(JsonWriter& json, const SampleReport& report);  // the same as an object

}  // namespace quest
