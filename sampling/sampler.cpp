#include "sampling/sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <mutex>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/words.h"

namespace quest {
namespace {

constexpr uint64_t hash_stream = 1, order_stream = 3;

// Work is cut into a fixed number of ranges, so that sums by range do not depend on the number of threads.
constexpr int64_t chunks = 1024;

constexpr auto add_one = [](auto& count) { std::atomic_ref(count).fetch_add(1, std::memory_order_relaxed); };

struct Scratch {  // one a thread: nothing is allocated per pair
  std::string word;
  std::vector<uint64_t> tokens;

  // Hashes of the words and of each two neighbours.
  void tokenize_words(std::string_view text) {
    tokens.clear();
    uint64_t previous = 0;
    each_word(text, word, [&](std::string_view w) {
      const uint64_t hash = hash_bytes(w.data(), w.size());
      tokens.push_back(hash);
      if (previous != 0) tokens.push_back(hash_bytes(w.data(), w.size(), previous));
      previous = hash;
    });
  }

  // Hashes of what stands between ASCII white space.
  void tokenize_spaces(std::initializer_list<std::string_view> texts) {
    constexpr std::string_view white = " \t\n\v\f\r";
    tokens.clear();
    for (const auto text : texts)
      for (size_t at = 0, end; (at = text.find_first_not_of(white, at)) != text.npos; at = end) {
        end = std::min(text.find_first_of(white, at), text.size());
        tokens.push_back(hash_bytes(text.data() + at, end - at));
      }
  }
};

struct Spread {
  double sum = 0, squares = 0, least = INFINITY, most = 0;
  void add(const Spread& other) {
    sum += other.sum, squares += other.squares;
    least = std::min(least, other.least), most = std::max(most, other.most);
  }
};

constexpr uint64_t sketch_rows = 4, sketch_bits = 18;

// Which queries and labels stand in some pairs.
struct Coverage {
  std::vector<bool> queries, labels;
  PairCounts counts = {};

  explicit Coverage(const Dataset& data) : queries(data.train.texts.size()), labels(data.labels.size()) {}
  void see(int64_t query, int64_t label) {
    ++counts.pairs;
    counts.queries += !queries[query], queries[query] = true;
    counts.labels += !labels[label], labels[label] = true;
  }
};

// Algorithm 1: complete(), count(), draw().
struct Sampler {
  const Dataset& data;
  const PairFilter& filter;
  Threads& threads;
  SamplerOptions options;                  // R and B as used
  int64_t pairs = 0, counted_labels = 0;   // n; labels that count
  std::vector<uint64_t> counts = {};       // C [R][B]
  std::vector<uint32_t> frequencies = {};  // [sketch_rows][2^sketch_bits]
  std::vector<Scratch> scratch = std::vector<Scratch>(threads.count());

  // Calls f(query, label, chunk, thread) for every training pair that takes part.
  template <class F>
  void each_pair(Threads& pool, F&& f) const {
    const int64_t queries = data.train.texts.size();
    pool.each(chunks, [&](int64_t chunk, int thread) {
      for (int64_t query = queries * chunk / chunks; query < queries * (chunk + 1) / chunks; ++query) {
        if (filter.keep && !filter.keep(query)) continue;
        for (const int32_t label : data.train.labels.row(query))
          if (label != data.train.own(query) && filter.counts(label)) f(query, label, chunk, thread);
      }
    });
  }

  // Counts the pairs, checks the options and fills in R and B.
  PairCounts complete() {
    Coverage all(data);
    Threads one(1);
    each_pair(one, [&](int64_t query, int64_t label, int64_t, int) { all.see(query, label); });
    pairs = all.counts.pairs;
    int64_t &k = options.k, &R = options.rows, &B = options.range;
    const bool paper = options.kind == SamplerKind::paper;
    if (R == 0) R = paper ? 4 : 16;
    if (B == 0) B = paper ? int64_t(std::max(1.0, std::ceil(std::log(double(pairs))))) : 65536;
    if (k < 0 || R < 1 || B < 1 || R > 1 << 16 || B > (1 << 26) / R)
      fail(Exit::usage,
           "sampler: expected k >= 0, R, B >= 1 and R*B <= 2^26, found k %ld, R %ld, B %ld; give others", k,
           R, B);
    if (options.kind == SamplerKind::uniform) R = B = 0;
    k = std::min(k, pairs);
    return all.counts;
  }

  // Algorithm 1 up to the draw: counts C[r, h_r(s)] over all pairs s, for weight() to look up.
  void count() {
    if (options.kind == SamplerKind::uniform) return;
    if (options.kind == SamplerKind::minhash) count_labels();
    counts.resize(options.rows * options.range);
    each_pair(threads, [&](int64_t query, int32_t label, int64_t, int thread) {
      each_cell(query, label, thread, [&](int64_t cell) { add_one(counts[cell]); });
    });
  }

  double weight(int64_t query, int64_t label, int thread) {
    if (options.kind == SamplerKind::uniform) return 1;
    uint64_t sum = 0;
    each_cell(query, label, thread, [&](int64_t cell) { sum += counts[cell]; });
    return double(pairs) * double(options.rows) / double(sum);
  }

  // Calls f(where C[r, h_r(s)] stands) for every r. h_r is the least of the tokens' hashes; that has few high
  // bits, so it is mixed again before it becomes 0..B-1.
  template <class F>
  void each_cell(int64_t query, int64_t label, int thread, F&& f) {
    tokenize(query, label, scratch[thread]);
    for (int64_t r = 0; r < options.rows; ++r) {
      const uint64_t key = random_bits(options.seed, hash_stream, r);
      uint64_t least = UINT64_MAX;
      for (const uint64_t token : scratch[thread].tokens) least = std::min(least, mix64(token ^ key));
      f(r * options.range + int64_t(mix64(least) % uint64_t(options.range)));
    }
  }

  void tokenize(int64_t query, int64_t label, Scratch& mine) const {
    const Texts& texts = data.train.texts;
    const std::string_view title = data.labels.title(label);
    if (options.kind == SamplerKind::paper)
      return mine.tokenize_spaces({texts.title(query), texts.content(query), title});
    mine.tokenize_words(title);
    const auto is_rare = [&](uint64_t token) { return 100 * frequency(token) <= counted_labels; };
    if (std::ranges::any_of(mine.tokens, is_rare)) std::erase_if(mine.tokens, std::not_fn(is_rare));
  }

  // Document frequencies over the labels that count, each of them once, in a count-min sketch (Cormode and
  // Muthukrishnan 2005): never too low, too high by more than e·(all tokens) / 2^18 with probability e^-4.
  void count_labels() {
    frequencies.resize(sketch_rows << sketch_bits);
    threads.each(data.labels.size(), [&](int64_t label, int thread) {
      if (!filter.counts(label)) return;
      auto& tokens = scratch[thread].tokens;
      scratch[thread].tokenize_words(data.labels.title(label));
      std::ranges::sort(tokens);
      tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
      for (const uint64_t token : tokens)
        for (uint64_t row = 0; row < sketch_rows; ++row) add_one(frequencies[slot(row, token)]);
      add_one(counted_labels);
    });
  }

  int64_t frequency(uint64_t token) const {
    uint32_t least = UINT32_MAX;
    for (uint64_t row = 0; row < sketch_rows; ++row) least = std::min(least, frequencies[slot(row, token)]);
    return least;
  }

  static uint64_t slot(uint64_t row, uint64_t token) {
    return (row << sketch_bits) + (mix64(token + row) >> (64 - sketch_bits));
  }

  // One pass: leaves in `drawn` the k pairs of smallest key, as a heap with the largest on top, and returns
  // the spread of all weights.
  Spread draw(std::vector<DrawnPair>& drawn) {
    std::vector<Spread> spreads(chunks);
    std::mutex mutex;
    std::atomic<double> bound = INFINITY;  // a larger key is not drawn
    drawn.reserve(options.k + 1);
    each_pair(threads, [&](int64_t query, int32_t label, int64_t chunk, int thread) {
      const double w = weight(query, label, thread);
      spreads[chunk].add({w, w * w, w, w});
      DrawnPair pair{int32_t(query), label, 0};
      pair.key = -std::log(random_uniform(options.seed, draw_stream, pair.id())) / w;
      if (pair.key > bound.load(std::memory_order_relaxed)) return;
      std::lock_guard lock(mutex);
      drawn.push_back(pair);
      std::push_heap(drawn.begin(), drawn.end());
      if (int64_t(drawn.size()) <= options.k) return;
      std::pop_heap(drawn.begin(), drawn.end());
      drawn.pop_back();
      bound.store(drawn.front().key, std::memory_order_relaxed);
    });
    Spread all;
    for (const Spread& s : spreads) all.add(s);
    return all;
  }
};

std::vector<std::pair<const char*, PairCounts>> counts_of(const SampleReport& report) {
  return {{"all", report.all}, {"drawn", report.drawn}, {"uniform", report.uniform}};
}

}  // namespace

std::vector<DrawnPair> sample_pairs(const Dataset& data, const PairFilter& filter,
                                    const SamplerOptions& options, Threads& threads, SampleReport* report) {
  const bool uniform = options.kind == SamplerKind::uniform;
  SampleReport r;
  if (report && !uniform)
    sample_pairs(data, filter, {SamplerKind::uniform, options.seed, options.k}, threads, &r);
  Sampler sampler{data, filter, threads, options};
  r.all = sampler.complete();
  r.options = sampler.options;
  std::vector<DrawnPair> drawn;
  if (r.options.k > 0) {
    sampler.count();
    const Spread spread = sampler.draw(drawn);
    const double n = double(r.all.pairs), mean = spread.sum / n;
    r.ratio = spread.most / spread.least;
    r.variation = std::sqrt(std::max(0.0, spread.squares / n - mean * mean)) / mean;
  }
  Coverage seen(data);
  for (const DrawnPair& pair : drawn) seen.see(pair.query, pair.label);
  r.drawn = seen.counts;
  if (uniform) r.uniform = r.drawn;
  if (report) *report = r;
  std::ranges::sort(drawn, {},
                    [&](auto& pair) { return random_bits(options.seed, order_stream, pair.id()); });
  return drawn;
}

std::string describe(const SampleReport& report) {
  const SamplerOptions& o = report.options;
  const PairCounts& all = report.all;
  auto text = format("sampler %s, R %ld, B %ld, seed %lu: weights max/min %.3g, deviation/mean %.3g\n",
                     sampler_names[int(o.kind)], o.rows, o.range, o.seed, report.ratio, report.variation);
  text += format("%-8s %10s %21s %21s\n", "", "pairs", "queries", "labels");
  const auto share = [](int64_t part, int64_t whole) { return whole > 0 ? 100.0 * part / whole : 0.0; };
  for (const auto& [name, c] : counts_of(report))
    text += format("%-8s %10ld %10ld (%6.2f %%) %10ld (%6.2f %%)\n", name, c.pairs, c.queries,
                   share(c.queries, all.queries), c.labels, share(c.labels, all.labels));
  return text;
}

void write_report(JsonWriter& json, const SampleReport& report) {
  const SamplerOptions& o = report.options;
  json.object().field("sampler", sampler_names[int(o.kind)]).field("R", o.rows).field("B", o.range);
  json.field("seed", o.seed).field("weight_ratio", report.ratio);
  json.field("weight_variation", report.variation);
  for (const auto& [name, c] : counts_of(report)) {
    json.key(name).object().field("pairs", c.pairs).field("queries", c.queries);
    json.field("labels", c.labels).end();
  }
  json.end();
}

}  // namespace quest
