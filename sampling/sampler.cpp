#include "sampling/sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/words.h"

namespace quest {
namespace {

constexpr uint64_t hash_stream = 1, order_stream = 3;

// Work is cut into a fixed number of ranges, so that sums by range do not depend on the number of threads.
constexpr int64_t chunks = 1024;
constexpr uint64_t sketch_rows = 4, sketch_bits = 18;

constexpr auto add_one = [](auto& count) { std::atomic_ref(count).fetch_add(1, std::memory_order_relaxed); };

using Tokens = std::vector<uint64_t>;  // hashes

struct Spread {
  double sum = 0, squares = 0, least = INFINITY, most = 0;
  void add(const Spread& other) {
    sum += other.sum, squares += other.squares;
    least = std::min(least, other.least), most = std::max(most, other.most);
  }
};

// Counts the pairs that each(see) calls see(query, label, ...) for, and what stands in them.
PairCounts coverage(const Dataset& data, auto&& each) {
  std::vector<bool> queries(data.train.texts.size()), labels(data.labels.size());
  PairCounts counts;
  each([&](int64_t query, int64_t label, auto...) {
    ++counts.pairs;
    counts.queries += !queries[query], queries[query] = true;
    counts.labels += !labels[label], labels[label] = true;
  });
  return counts;
}

// The training pairs that take part, and where Algorithm 1 counts each of them.
struct Pairing {
  const Dataset& data;
  const PairFilter& filter;
  SamplerOptions options;                  // R and B as used
  int64_t counted_labels = 0;              // those that count
  std::vector<uint32_t> frequencies = {};  // [sketch_rows][2^sketch_bits]
  struct Known {
    std::vector<int32_t> label;
    std::vector<uint32_t> cells;  // [labels][R]
  };
  std::vector<Known> known = {};  // of each thread: some labels' cells

  // Calls f(query, label, chunk, thread).
  void each_pair(Threads& threads, auto&& f) const {
    const int64_t queries = data.train.texts.size();
    threads.each(chunks, [&](int64_t chunk, int thread) {
      for (int64_t query = queries * chunk / chunks; query < queries * (chunk + 1) / chunks; ++query) {
        if (filter.keep && !filter.keep(query)) continue;
        int64_t left = options.kind == SamplerKind::first_m ? options.first : INT64_MAX;
        for (const int32_t label : data.train.labels.row(query))
          if (label != data.train.own(query) && filter.counts(label) && left-- > 0)
            f(query, label, chunk, thread);
      }
    });
  }

  // Where C[r, h_r(s)] stands, R of them, until the thread asks again. h_r is the least of the tokens'
  // hashes; that has few high bits, so it is mixed again before it becomes 0..B-1. With minhash they are the
  // label's, and most pairs have a label that the thread has met.
  std::span<const uint32_t> cells(int64_t query, int32_t label, int thread) {
    const int64_t R = options.rows;
    if (R == 0) return {};
    Known& k = known[thread];
    if (k.label.empty())
      k.label.assign(std::max<int64_t>(1, 65536 / R), -1), k.cells.resize(k.label.size() * R);
    const int64_t place = label % std::ssize(k.label);
    const std::span<uint32_t> cells(k.cells.data() + place * R, R);
    const bool paper = options.kind == SamplerKind::paper;
    if (!paper && k.label[place] == label) return cells;
    k.label[place] = label;
    const Tokens tokens = paper ? all_tokens(query, label) : rare_words(label);
    for (int64_t r = 0; r < R; ++r) {
      const uint64_t key = random_bits(options.seed, hash_stream, r);
      uint64_t least = UINT64_MAX;
      for (const uint64_t token : tokens) least = std::min(least, mix64(token ^ key));
      cells[r] = r * options.range + mix64(least) % options.range;
    }
    return cells;
  }

  // What stands between ASCII white space.
  Tokens all_tokens(int64_t query, int64_t label) const {
    constexpr std::string_view white = " \t\n\v\f\r";
    const Texts& texts = data.train.texts;
    Tokens tokens;
    for (const auto text : {texts.title(query), texts.content(query), data.labels.title(label)})
      for (size_t at = 0, end; (at = text.find_first_not_of(white, at)) != text.npos; at = end) {
        end = std::min(text.find_first_of(white, at), text.size());
        tokens.push_back(hash_bytes(text.data() + at, end - at));
      }
    return tokens;
  }

  // The words of a label and each two neighbours.
  Tokens words(int64_t label) const {
    Tokens tokens;
    std::string scratch;
    uint64_t previous = 0;
    each_word(data.labels.title(label), scratch, [&](std::string_view word) {
      const uint64_t hash = hash_bytes(word.data(), word.size());
      tokens.push_back(hash);
      if (previous != 0) tokens.push_back(hash_bytes(word.data(), word.size(), previous));
      previous = hash;
    });
    return tokens;
  }

  Tokens rare_words(int64_t label) const {
    Tokens tokens = words(label);
    const auto is_rare = [&](uint64_t token) { return 100 * frequency(token) <= counted_labels; };
    if (std::ranges::any_of(tokens, is_rare)) std::erase_if(tokens, std::not_fn(is_rare));
    return tokens;
  }

  // Document frequencies over the labels that count, each of them once, in a count-min sketch (Cormode and
  // Muthukrishnan 2005): never too low, too high by more than e·(all tokens) / 2^18 with probability e^-4.
  void count_labels(Threads& threads) {
    frequencies.resize(sketch_rows << sketch_bits);
    threads.each(data.labels.size(), [&](int64_t label, int) {
      if (!filter.counts(label)) return;
      add_one(counted_labels);
      const Tokens tokens = words(label);
      for (const uint64_t token : std::set(tokens.begin(), tokens.end()))
        for (uint64_t row = 0; row < sketch_rows; ++row) add_one(frequencies[slot(row, token)]);
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
};

}  // namespace

SamplerKind sampler_kind(const std::string& name) {
  const auto at = std::ranges::find(sampler_names, name);
  if (at == std::end(sampler_names))
    fail(Exit::usage, "sampler: expected minhash, paper, uniform or first-m, found %s; give one of them",
         name.c_str());
  return SamplerKind(at - sampler_names);
}

std::vector<DrawnPair> sample_pairs(const Dataset& data, const PairFilter& filter,
                                    const SamplerOptions& options, Threads& threads, SampleReport* report) {
  const bool uniform = options.kind >= SamplerKind::uniform, paper = options.kind == SamplerKind::paper;
  SampleReport done;
  if (report && options.kind != SamplerKind::uniform)
    sample_pairs(data, filter, {SamplerKind::uniform, options.seed, options.k}, threads, &done);
  Pairing pairing{data, filter, options};
  Threads one(1);
  done.all = coverage(data, [&](auto&& see) { pairing.each_pair(one, see); });
  const double n = done.all.pairs;

  int64_t &k = pairing.options.k, &R = pairing.options.rows, &B = pairing.options.range;
  if (R == 0) R = paper ? 4 : 16;
  if (B == 0) B = paper ? int64_t(std::max(1.0, std::ceil(std::log(n)))) : 65536;
  if (k < 0 || R < 1 || B < 1 || R > 1 << 16 || B > (1 << 26) / R)
    fail(Exit::usage,
         "sampler: expected k >= 0, R, B >= 1 and R*B <= 2^26, found k %ld, R %ld, B %ld; give others", k, R,
         B);
  if (uniform) R = B = 0;
  k = std::min(k, done.all.pairs);

  // The first pass counts C[r, h_r(s)] over all pairs s.
  std::vector<uint64_t> counts(R * B);
  if (options.kind == SamplerKind::minhash) pairing.count_labels(threads);
  pairing.known.resize(threads.count());
  pairing.each_pair(threads, [&](int64_t query, int32_t label, int64_t, int thread) {
    for (const uint32_t cell : pairing.cells(query, label, thread)) add_one(counts[cell]);
  });

  // The second one leaves in `drawn` the k pairs of smallest key, as a heap with the largest on top.
  std::vector<DrawnPair> drawn;
  drawn.reserve(k + 1);
  std::vector<Spread> spreads(chunks);
  std::mutex mutex;
  std::atomic<double> bound = INFINITY;  // a larger key is not drawn
  pairing.each_pair(threads, [&](int64_t query, int32_t label, int64_t chunk, int thread) {
    uint64_t sum = 0;
    for (const uint32_t cell : pairing.cells(query, label, thread)) sum += counts[cell];
    const double weight = uniform ? 1 : n * R / sum;
    spreads[chunk].add({weight, weight * weight, weight, weight});
    DrawnPair pair{int32_t(query), label, 0};
    pair.key = -std::log(random_uniform(options.seed, draw_stream, pair.id())) / weight;
    if (k == 0 || pair.key > bound) return;
    std::lock_guard lock(mutex);
    drawn.push_back(pair);
    std::push_heap(drawn.begin(), drawn.end());
    if (std::ssize(drawn) <= k) return;
    std::pop_heap(drawn.begin(), drawn.end());
    drawn.pop_back();
    bound = drawn.front().key;
  });

  if (n > 0) {
    Spread all_weights;
    for (const Spread& spread : spreads) all_weights.add(spread);
    const double mean = all_weights.sum / n;
    done.ratio = all_weights.most / all_weights.least;
    done.variation = std::sqrt(std::max(0.0, all_weights.squares / n - mean * mean)) / mean;
  }
  done.options = pairing.options;
  done.drawn = coverage(data, [&](auto&& see) {
    for (const DrawnPair& pair : drawn) see(pair.query, pair.label);
  });
  if (options.kind == SamplerKind::uniform) done.uniform = done.drawn;
  if (report) *report = done;
  const auto place = [&](auto& pair) { return random_bits(options.seed, order_stream, pair.id()); };
  std::ranges::sort(drawn, {}, place);
  return drawn;
}

static std::vector<std::pair<const char*, PairCounts>> counts_of(const SampleReport& report) {
  return {{"all", report.all}, {"drawn", report.drawn}, {"uniform", report.uniform}};
}

std::string describe(const SampleReport& report) {
  const SamplerOptions& o = report.options;
  auto text = format("sampler %s, R %ld, B %ld, seed %lu: weights max/min %.3g, deviation/mean %.3g\n",
                     sampler_names[int(o.kind)], o.rows, o.range, o.seed, report.ratio, report.variation);
  text += format("%-8s %10s %21s %21s\n", "", "pairs", "queries", "labels");
  const auto share = [](int64_t part, int64_t whole) { return whole > 0 ? 100.0 * part / whole : 0.0; };
  for (const auto& [name, c] : counts_of(report))
    text += format("%-8s %10ld %10ld (%6.2f %%) %10ld (%6.2f %%)\n", name, c.pairs, c.queries,
                   share(c.queries, report.all.queries), c.labels, share(c.labels, report.all.labels));
  return text;
}

void write_report(JsonWriter& json, const SampleReport& report) {
  const SamplerOptions& o = report.options;
  json.object().field("sampler", sampler_names[int(o.kind)]).field("R", o.rows).field("B", o.range);
  json.field("seed", o.seed).field("weight_ratio", report.ratio).field("weight_variation", report.variation);
  for (const auto& [name, c] : counts_of(report)) {
    json.key(name).object().field("pairs", c.pairs).field("queries", c.queries);
    json.field("labels", c.labels).end();
  }
  json.end();
}

}  // namespace quest
