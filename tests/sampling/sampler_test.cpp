// The sampler through its public face only. With k = n every pair comes back with its key, and as the uniform
// number behind a key is known, so are the weight and Sum.
#include "sampling/sampler.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/words.h"
#include "sampling/import.h"

namespace quest {
namespace {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    if (!mkdtemp(path_)) abort();
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return std::string(path_) + "/" + name; }

 private:
  char path_[32] = "/tmp/quest-sampler-XXXXXX";
};

struct Query {
  std::string uid, title, content;
  std::vector<int32_t> labels;
};

// Labels have the uids L0, L1, ... Written in the raw format and imported, as a user would.
Dataset make_dataset(const TemporaryFolder& folder, const std::vector<std::string>& labels,
                     const std::vector<Query>& queries, const std::string& name = "made") {
  const auto line = [](const Query& row) {
    JsonWriter json(true);
    json.object().field("uid", row.uid).field("title", row.title).field("content", row.content);
    json.key("target_ind").array();
    for (const int32_t label : row.labels) json.value(label);
    return json.end().end().text() + "\n";
  };
  std::string label_rows, query_rows;
  for (size_t i = 0; i < labels.size(); ++i) label_rows += line({"L" + std::to_string(i), labels[i], "", {}});
  for (const Query& query : queries) query_rows += line(query);
  const std::string raw = folder.file(name + "-raw");
  make_folders(raw);
  write_file(raw + "/lbl.json", label_rows);
  write_file(raw + "/trn.json", query_rows);
  write_file(raw + "/tst.json", line({"t", "test", "", {0}}));
  import_dataset(raw, folder.file(name), {.skip_bad = false, .name = name, .progress = false});
  return open_dataset(folder.file(name));
}

using Id = std::pair<int64_t, int64_t>;  // query, label

uint64_t pair_id(const Id& pair) {
  return static_cast<uint64_t>(pair.first) << 32 | static_cast<uint64_t>(pair.second);
}

double uniform_of(uint64_t seed, const Id& pair) { return random_uniform(seed, 2, pair_id(pair)); }

std::vector<Id> ids(const std::vector<DrawnPair>& drawn) {
  std::vector<Id> result;
  for (const auto& pair : drawn) result.push_back({pair.query, pair.label});
  return result;
}

// The pairs that take part, read off the dataset.
std::vector<Id> all_pairs(const Dataset& data, const PairFilter& filter) {
  std::vector<Id> result;
  for (int64_t q = 0; q < data.train.texts.size(); ++q) {
    if (filter.keep && !filter.keep(q)) continue;
    for (const int32_t label : data.train.labels.row(q)) {
      if (label == data.train.own(q)) continue;
      if (!filter.label_ok.empty() && !filter.label_ok[static_cast<size_t>(label)]) continue;
      result.push_back({q, label});
    }
  }
  return result;
}

// Tokens as strings, by code of its own.
using TokenSet = std::set<std::string>;

TokenSet paper_tokens(const Dataset& data, const Id& pair) {
  std::istringstream text(std::string(data.train.texts.title(pair.first)) + " " +
                          std::string(data.train.texts.content(pair.first)) + " " +
                          std::string(data.labels.title(pair.second)));
  TokenSet tokens;
  for (std::string token; text >> token;) tokens.insert(token);
  return tokens;
}

TokenSet words_and_bigrams(std::string_view text) {
  TokenSet tokens;
  std::string scratch, last;
  each_word(text, scratch, [&](std::string_view word) {
    tokens.insert(std::string(word));
    if (!last.empty()) tokens.insert(last + " " + std::string(word));
    last = word;
  });
  return tokens;
}

// Tokens of every label, those of more than 1 % of the counting labels dropped unless none is left.
std::vector<TokenSet> label_tokens(const Dataset& data, const PairFilter& filter) {
  std::map<std::string, int> frequency;
  int labels = 0;
  std::vector<TokenSet> tokens;
  for (int64_t l = 0; l < data.labels.size(); ++l) {
    tokens.push_back(words_and_bigrams(data.labels.title(l)));
    if (!filter.label_ok.empty() && !filter.label_ok[static_cast<size_t>(l)]) continue;
    ++labels;
    for (const auto& token : tokens.back()) ++frequency[token];
  }
  for (auto& set : tokens) {
    TokenSet rare;
    for (const auto& token : set)
      if (frequency[token] <= 0.01 * labels) rare.insert(token);
    if (!rare.empty()) set = rare;
  }
  return tokens;
}

std::vector<TokenSet> token_sets(const Dataset& data, const PairFilter& filter, SamplerKind kind,
                                 const std::vector<Id>& pairs) {
  const auto of_labels = label_tokens(data, filter);
  std::vector<TokenSet> sets;
  for (const Id& pair : pairs)
    sets.push_back(kind == SamplerKind::paper ? paper_tokens(data, pair)
                                              : of_labels[static_cast<size_t>(pair.second)]);
  return sets;
}

uint64_t token_hash(const std::string& token) {
  const size_t space = token.find(' ');
  if (space == token.npos) return hash_bytes(token.data(), token.size());
  return hash_bytes(token.data() + space + 1, token.size() - space - 1, hash_bytes(token.data(), space));
}

// Algorithm 1 from the definition: C as a map, one pair after another.
std::vector<double> exact_weights(const std::vector<TokenSet>& sets, uint64_t seed, int R, int64_t B) {
  std::map<std::pair<int, uint64_t>, double> C;
  std::vector<std::vector<uint64_t>> h(sets.size());
  for (size_t s = 0; s < sets.size(); ++s)
    for (int r = 0; r < R; ++r) {
      uint64_t least = ~uint64_t{0};
      for (const auto& token : sets[s]) {
        const uint64_t hash = mix64(token_hash(token) ^ random_bits(seed, 1, static_cast<uint64_t>(r)));
        if (hash < least) least = hash;
      }
      h[s].push_back(mix64(least) % static_cast<uint64_t>(B));
      C[{r, h[s].back()}] += 1;
    }
  std::vector<double> weights;
  for (size_t s = 0; s < sets.size(); ++s) {
    double sum = 0;
    for (int r = 0; r < R; ++r) sum += C[{r, h[s][static_cast<size_t>(r)]}];
    weights.push_back(static_cast<double>(sets.size()) * R / sum);
  }
  return weights;
}

double jaccard(const std::vector<int>& a, const std::vector<int>& b) {  // of ascending numbers
  if (a.empty() && b.empty()) return 1;
  double both = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const int x = a[i], y = b[j];
    both += x == y, i += x <= y, j += y <= x;
  }
  return both / (double(a.size() + b.size()) - both);
}

// A dataset with everything that needs care: repeated words, words at and above the 1 % limit, labels of
// frequent words only, labels without words, upper case outside ASCII, own labels, rows without labels,
// titles with odd spaces.
struct Awkward {
  TemporaryFolder folder;
  Dataset data;
  std::vector<uint8_t> label_ok;
  PairFilter filter;

  Awkward() {
    std::vector<std::string> labels = {"",  // the "echo"s stand at the limit: twice in each of two labels
                                       "...",
                                       "echo echo one",
                                       "echo echo two",
                                       "\xc3\x89"
                                       "cole \xc3\xa9"
                                       "cole rare",
                                       "w0 w1 w0",
                                       "W0"};
    uint64_t counter = 0;
    const auto below = [&](int64_t n) {
      return static_cast<int64_t>(random_bits(5, 0, counter++) % uint64_t(n));
    };
    while (labels.size() < 230) {
      std::string text;
      for (int64_t word = 0, words = 1 + below(4); word < words; ++word)
        text += (word ? " w" : "w") + std::to_string(below(3) ? below(40) * below(8) : below(4));
      labels.push_back(text);
    }
    label_ok.assign(labels.size(), 1);
    for (size_t l = 7; l < 230 && std::count(label_ok.begin(), label_ok.end(), 0) < 30; l += 5)
      label_ok[l] = 0;
    std::vector<Query> queries;
    for (int64_t q = 0; q < 157; ++q) {
      Query query{q % 3 ? "q" + std::to_string(q) : "L" + std::to_string(q),
                  " common\tt" + std::to_string(q % 11) + "\n ",
                  q % 4 ? "" : "content  of " + std::to_string(q % 7),
                  {}};
      for (int64_t i = 0, count = below(5); i < count; ++i) query.labels.push_back(int32_t(below(230)));
      if (q % 6 == 0) query.labels.push_back(int32_t(q));  // its own
      if (q < 12) query.labels.push_back(int32_t(q % 6));
      queries.push_back(query);
    }
    data = make_dataset(folder, labels, queries);
    filter.keep = [](int64_t q) { return q % 10 != 3; };
    filter.label_ok = label_ok;
  }
};

std::map<Id, double> keys(const std::vector<DrawnPair>& drawn) {
  std::map<Id, double> result;
  for (const auto& pair : drawn) result[{pair.query, pair.label}] = pair.key;
  return result;
}

bool close(double a, double b, double tolerance = 1e-12) {
  return std::abs(a - b) <= tolerance * std::abs(b);
}

TEST(Sampler, WeightsEqualTheDefinition) {
  const Awkward made;
  Threads threads(2);
  const auto pairs = all_pairs(made.data, made.filter);
  const auto n = static_cast<double>(pairs.size());
  ASSERT_GT(pairs.size(), 150u);
  ASSERT_GT(std::ceil(std::log(n)), std::log(n));
  struct Case {
    SamplerKind kind;
    uint64_t seed;
    int64_t rows, range;
    int R;
    int64_t B;
  };
  const Case cases[] = {{SamplerKind::minhash, 1, 0, 0, 16, 65536},
                        {SamplerKind::minhash, 9, 3, 7, 3, 7},
                        {SamplerKind::minhash, 9, 1, 1, 1, 1},
                        {SamplerKind::minhash, 2, 5, 0, 5, 65536},
                        {SamplerKind::paper, 1, 0, 0, 4, int64_t(std::ceil(std::log(n)))},
                        {SamplerKind::paper, 3, 0, 1000, 4, 1000}};
  for (const Case& c : cases) {
    const auto weights = exact_weights(token_sets(made.data, made.filter, c.kind, pairs), c.seed, c.R, c.B);
    SampleReport report;
    const auto drawn = keys(sample_pairs(
        made.data, made.filter, {c.kind, c.seed, int64_t(pairs.size()), c.rows, c.range}, threads, &report));
    EXPECT_EQ(report.options.rows, c.R);
    EXPECT_EQ(report.options.range, c.B);
    ASSERT_EQ(drawn.size(), pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i) {
      ASSERT_TRUE(drawn.contains(pairs[i])) << pairs[i].first << " " << pairs[i].second;
      EXPECT_TRUE(close(drawn.at(pairs[i]), -std::log(uniform_of(c.seed, pairs[i])) / weights[i]))
          << sampler_names[int(c.kind)] << " " << i;
    }
    // The spread of the weights, by the textbook formulas.
    double mean = 0, variance = 0;
    for (const double w : weights) mean += w / n;
    for (const double w : weights) variance += (w - mean) * (w - mean) / n;
    const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
    EXPECT_TRUE(close(report.ratio, *most / *least));
    EXPECT_TRUE(std::abs(report.variation - std::sqrt(variance) / mean) <= (c.B > 1 ? 1e-12 : 1e-7));
    EXPECT_EQ(report.ratio > 1.05, c.B > 1);
  }
}

// 131,000 tokens in 262,144 counts: one row of the sketch alone would take 4 of 10 tokens for more frequent
// than they are. Labels stand in pairs that share half of their tokens; with the limit at two labels none may
// be dropped, so that the estimated Jaccard similarity is 1/3.
TEST(Sampler, ManyTokensDoNotPassForFrequentOnes) {
  const TemporaryFolder folder;
  std::vector<std::string> labels(200);
  std::vector<Query> queries;
  int64_t next = 0;
  for (size_t l = 0; l < 200; ++l) {
    const int64_t shared = int64_t(l / 2) * 219;
    for (int64_t i = 0; i < 219; ++i) labels[l].append("s").append(std::to_string(shared + i)) += " ";
    for (int64_t i = 0; i < 219; ++i) labels[l].append("u").append(std::to_string(next++)) += " ";
    queries.push_back({std::to_string(l), "", "", {int32_t(l)}});
  }
  const Dataset data = make_dataset(folder, labels, queries);
  Threads threads(2);
  double similarity = 0;
  for (const auto& pair : sample_pairs(data, {}, {SamplerKind::minhash, 1, 200, 64, 1 << 16}, threads)) {
    const double weight = -std::log(uniform_of(1, {pair.query, pair.label})) / pair.key;
    similarity += (200 / weight - 1) / 200;  // Sum / R less the pair itself
  }
  EXPECT_TRUE(std::abs(similarity - 1.0 / 3) <= 0.03) << similarity;
}

// A word of two labels in 250 is rare as long as one row of the sketch says so: words are looked for that
// share its count in the other three.
TEST(Sampler, EveryRowOfTheSketchCounts) {
  const auto hash = [](const std::string& word) { return hash_bytes(word.data(), word.size()); };
  const auto slot = [](uint64_t row, uint64_t token) { return mix64(token + row) >> (64 - 18); };
  std::vector<std::string> same(4);  // [row]
  for (uint64_t row = 0; row < 4; ++row)
    for (int64_t i = 0; same[row].empty(); ++i)
      if (const std::string word = "w" + std::to_string(i); slot(row, hash(word)) == slot(row, hash("rare")))
        same[row] = word;
  Threads threads(2);
  for (size_t spared = 0; spared < 4; ++spared) {
    const TemporaryFolder folder;
    std::vector<std::string> labels{"rare a", "rare b"};
    for (size_t row = 0; row < 4; ++row)
      if (row != spared) labels.push_back(same[row]);
    while (labels.size() < 250) labels.push_back("f" + std::to_string(labels.size()));
    std::vector<Query> queries;
    for (int32_t l = 0; l < 250; ++l) queries.push_back({"q" + std::to_string(l), "", "", {l}});
    const Dataset data = make_dataset(folder, labels, queries);
    const auto pairs = all_pairs(data, {});
    const auto weights = exact_weights(token_sets(data, {}, SamplerKind::minhash, pairs), 1, 40, 65536);
    EXPECT_LT(weights[0], weights[9]);  // it is like another label
    const auto drawn = keys(sample_pairs(data, {}, {SamplerKind::minhash, 1, 250, 40, 0}, threads));
    for (size_t i = 0; i < pairs.size(); ++i)
      EXPECT_TRUE(close(drawn.at(pairs[i]), -std::log(uniform_of(1, pairs[i])) / weights[i])) << i;
  }
}

TEST(Sampler, DrawsTheSmallestKeysWithoutReplacement) {
  const Awkward made;
  Threads threads(3);
  const auto pairs = all_pairs(made.data, made.filter);
  const auto n = int64_t(pairs.size());
  for (const auto kind : {SamplerKind::minhash, SamplerKind::paper, SamplerKind::uniform}) {
    const auto all = sample_pairs(made.data, made.filter, {kind, 4, n, 0, 0}, threads);
    std::vector<std::pair<double, Id>> order;
    for (const auto& pair : all) order.push_back({pair.key, {pair.query, pair.label}});
    std::sort(order.begin(), order.end());
    for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{17}, n - 1, n, n + 1, 10 * n}) {
      const auto drawn = sample_pairs(made.data, made.filter, {kind, 4, k, 0, 0}, threads);
      const auto list = ids(drawn);
      const std::set<Id> set(list.begin(), list.end());
      EXPECT_EQ(list.size(), size_t(std::min(k, n)));
      EXPECT_EQ(set.size(), list.size()) << "a pair was drawn twice";
      EXPECT_TRUE(std::is_sorted(list.begin(), list.end(), [](const Id& a, const Id& b) {
        return random_bits(4, 3, pair_id(a)) < random_bits(4, 3, pair_id(b));
      }));
      for (int64_t i = 0; i < std::min(k, n); ++i) EXPECT_TRUE(set.contains(order[size_t(i)].second)) << i;
    }
  }
  // Nothing but the pairs that take part: no held-out query, no label that does not count, no own label.
  const auto list =
      ids(sample_pairs(made.data, made.filter, {SamplerKind::uniform, 4, n + 9, 0, 0}, threads));
  EXPECT_EQ(std::set<Id>(list.begin(), list.end()), std::set<Id>(pairs.begin(), pairs.end()));
  EXPECT_GT(sample_pairs(made.data, {}, {SamplerKind::uniform, 4, 10 * n, 0, 0}, threads).size(),
            pairs.size());
  for (const Id& pair : list) {
    EXPECT_NE(pair.first % 10, 3);
    EXPECT_EQ(made.label_ok[size_t(pair.second)], 1);
    EXPECT_FALSE(pair.first % 3 == 0 && pair.first == pair.second);
  }
}

TEST(Sampler, FirstLabelsOfEachQueryAlone) {
  const Awkward made;
  Threads threads(3);
  const auto pairs = all_pairs(made.data, made.filter);  // ascending
  for (const int64_t m : {1, 2, 100}) {
    SamplerOptions options{SamplerKind::first_m, 4, int64_t(pairs.size()), 0, 0};
    options.first = m;
    std::set<Id> expected;
    std::map<int64_t, int64_t> of_query;
    for (const Id& pair : pairs)
      if (of_query[pair.first]++ < m) expected.insert(pair);
    SampleReport report;
    const auto list = ids(sample_pairs(made.data, made.filter, options, threads, &report));
    EXPECT_EQ(std::set<Id>(list.begin(), list.end()), expected) << m;
    EXPECT_EQ(list.size(), expected.size());
    EXPECT_EQ(report.ratio, 1);
    EXPECT_EQ(report.all.pairs, int64_t(expected.size()));
    options.k = 5;
    EXPECT_EQ(sample_pairs(made.data, made.filter, options, threads).size(), 5u);
  }
}

TEST(Sampler, UniformKeysAreExponential) {
  const Awkward made;
  Threads threads(1);
  for (const auto& pair : sample_pairs(made.data, made.filter, {SamplerKind::uniform, 8, 50, 0, 0}, threads))
    EXPECT_TRUE(close(pair.key, -std::log(uniform_of(8, {pair.query, pair.label}))));
}

// Eight pairs in clusters of 5, 2 and 1, so with weights 1/5, 1/2 and 1 (times a constant).
Dataset clusters(const TemporaryFolder& folder) {
  std::vector<Query> queries;
  for (int q = 0; q < 8; ++q)
    queries.push_back({"q" + std::to_string(q), "", "", {q < 5 ? 0 : q < 7 ? 1 : 2}});
  return make_dataset(folder, {"five", "two", "one"}, queries);
}

TEST(Sampler, InclusionFollowsTheWeights) {
  const TemporaryFolder folder;
  const Dataset data = clusters(folder);
  Threads threads(1);
  const double w[8] = {0.2, 0.2, 0.2, 0.2, 0.2, 0.5, 0.5, 1}, total = 3;
  constexpr int seeds = 4000;
  std::map<std::pair<int, int>, int> seen;
  int place[8] = {};  // of the heaviest pair, when all are drawn
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const auto two = sample_pairs(data, {}, {SamplerKind::paper, seed, 2, 2, 1 << 14}, threads);
    ASSERT_EQ(two.size(), 2u);
    ++seen[std::minmax(int(two[0].query), int(two[1].query))];
    const auto all = sample_pairs(data, {}, {SamplerKind::paper, seed, 8, 2, 1 << 10}, threads);
    for (int i = 0; i < 8; ++i) place[i] += all[size_t(i)].query == 7;
  }
  double chi2 = 0;
  for (int i = 0; i < 8; ++i)
    for (int j = i + 1; j < 8; ++j) {
      const double p = w[i] / total * w[j] / (total - w[i]) + w[j] / total * w[i] / (total - w[j]);
      const double difference = seen[{i, j}] - seeds * p;
      chi2 += difference * difference / (seeds * p);
    }
  EXPECT_TRUE(chi2 <= 55.5) << chi2;  // 99.9 % point of chi-square with 27 degrees of freedom
  double order = 0;
  for (const int count : place) order += (count - seeds / 8.0) * (count - seeds / 8.0) / (seeds / 8.0);
  EXPECT_TRUE(order <= 24.3) << order;  // 99.9 %, 7 degrees: the order is random whatever the weights are
}

TEST(Sampler, ReportCountsWhatWasDrawn) {
  const Awkward made;
  Threads threads(2);
  const auto count = [](const std::vector<Id>& pairs) {
    std::set<int64_t> queries, labels;
    for (const Id& pair : pairs) queries.insert(pair.first), labels.insert(pair.second);
    return std::vector<int64_t>{int64_t(pairs.size()), int64_t(queries.size()), int64_t(labels.size())};
  };
  const auto list = [](const PairCounts& c) { return std::vector<int64_t>{c.pairs, c.queries, c.labels}; };
  for (const auto kind : {SamplerKind::minhash, SamplerKind::paper, SamplerKind::uniform}) {
    SampleReport report;
    const auto drawn = sample_pairs(made.data, made.filter, {kind, 6, 40, 0, 0}, threads, &report);
    const auto uniform = sample_pairs(made.data, made.filter, {SamplerKind::uniform, 6, 40, 0, 0}, threads);
    EXPECT_EQ(list(report.all), count(all_pairs(made.data, made.filter)));
    EXPECT_EQ(list(report.drawn), count(ids(drawn)));
    EXPECT_EQ(list(report.uniform), count(ids(uniform)));
    EXPECT_EQ(ids(drawn) == ids(uniform), kind == SamplerKind::uniform);
    EXPECT_EQ(report.ratio == 1 && report.variation == 0, kind == SamplerKind::uniform);
    EXPECT_EQ(report.options.rows == 0 && report.options.range == 0, kind == SamplerKind::uniform);
  }
}

TEST(Sampler, ReportIsWritten) {
  SampleReport report;
  report.options = {SamplerKind::paper, 3, 25, 4, 11};
  report.all = {100, 50, 20};
  report.drawn = {25, 20, 15};
  report.uniform = {25, 19, 13};
  report.ratio = 7.5;
  report.variation = 0.25;
  EXPECT_EQ(describe(report),
            "sampler paper, R 4, B 11, seed 3: weights max/min 7.5, deviation/mean 0.25\n"
            "              pairs               queries                labels\n"
            "all             100         50 (100.00 %)         20 (100.00 %)\n"
            "drawn            25         20 ( 40.00 %)         15 ( 75.00 %)\n"
            "uniform          25         19 ( 38.00 %)         13 ( 65.00 %)\n");
  JsonWriter json(true);
  write_report(json, report);
  std::string text = json.text();
  std::erase(text, ' ');
  EXPECT_EQ(text,
            R"({"sampler":"paper","R":4,"B":11,"seed":3,"weight_ratio":7.5,"weight_variation":0.25,)"
            R"("all":{"pairs":100,"queries":50,"labels":20},"drawn":{"pairs":25,"queries":20,"labels":15},)"
            R"("uniform":{"pairs":25,"queries":19,"labels":13}})");
}

TEST(Sampler, RefusesBadOptionsAndAcceptsNothing) {
  const TemporaryFolder folder;
  const Dataset data = clusters(folder);
  Threads threads(1);
  const auto code = [&](SamplerOptions options) {
    try {
      sample_pairs(data, {}, options, threads);
    } catch (const Error& error) {
      return int(error.code);
    }
    return 0;
  };
  EXPECT_EQ(code({SamplerKind::minhash, 1, -1, 0, 0}), 2);
  EXPECT_EQ(code({SamplerKind::minhash, 1, 1, -1, 0}), 2);
  EXPECT_EQ(code({SamplerKind::minhash, 1, 1, 0, -1}), 2);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, 1 << 14, 1 << 13}), 2);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, 2, INT64_MAX}), 2);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, INT64_MAX, 2}), 2);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, 0, 0}), 0);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, 1 << 16, 1}), 0);
  EXPECT_EQ(code({SamplerKind::paper, 1, 1, (1 << 16) + 1, 1}), 2);
  const PairFilter none{.keep = [](int64_t) { return false; }, .label_ok = {}};
  for (const auto kind : {SamplerKind::minhash, SamplerKind::paper, SamplerKind::uniform}) {
    SampleReport report;
    EXPECT_TRUE(sample_pairs(data, none, {kind, 1, 5, 0, 0}, threads, &report).empty());
    EXPECT_EQ(report.all.pairs, 0);
    EXPECT_TRUE(report.ratio == 1 && report.variation == 0);
  }
}

// ---- the default dataset ----

class RealPairs : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    import_dataset("sampling/debian", folder_->file("debian"),
                   {.skip_bad = false, .name = "debian", .progress = false});
    data_ = new Dataset(open_dataset(folder_->file("debian")));
    label_ok_.assign(size_t(data_->labels.size()), 0);
    for (int64_t q = 0; q < data_->train.texts.size(); q += 23)
      for (const int32_t label : data_->train.labels.row(q)) label_ok_[size_t(label)] = 1;
  }
  static void TearDownTestSuite() {
    delete data_;
    delete folder_;
  }
  static const Dataset& data() { return *data_; }

  // Every 23rd query with its labels: about 1,600 pairs.
  static PairFilter few() {
    return {.keep = [](int64_t query) { return query % 23 == 0; }, .label_ok = label_ok_};
  }

  // 400 of n, by hash.
  static std::vector<size_t> four_hundred(size_t n) {
    std::vector<size_t> chosen(n);
    for (size_t i = 0; i < n; ++i) chosen[i] = i;
    std::sort(chosen.begin(), chosen.end(), [](size_t a, size_t b) { return mix64(a + 1) < mix64(b + 1); });
    chosen.resize(std::min<size_t>(n, 400));
    return chosen;
  }

  // The exact Jaccard density of the chosen pairs among all of them.
  static std::vector<double> densities(const std::vector<TokenSet>& sets, const std::vector<size_t>& chosen) {
    std::map<std::string, int> number;
    std::vector<std::vector<int>> tokens(sets.size());
    for (size_t i = 0; i < sets.size(); ++i) {
      for (const auto& token : sets[i])
        tokens[i].push_back(number.try_emplace(token, int(number.size())).first->second);
      std::sort(tokens[i].begin(), tokens[i].end());
    }
    std::vector<double> J;
    for (const size_t i : chosen) {
      J.push_back(0);
      for (const auto& other : tokens) J.back() += jaccard(tokens[i], other);
    }
    return J;
  }

  static void expect_unbiased(SamplerKind kind, int R, int64_t B) {
    const auto pairs = all_pairs(data(), few());
    const auto n = double(pairs.size());
    const auto chosen = four_hundred(pairs.size());
    ASSERT_EQ(chosen.size(), 400u);
    const auto J = densities(token_sets(data(), few(), kind, pairs), chosen);
    std::vector<double> sum(400), squares(400);
    Threads threads(2);
    constexpr int seeds = 200;
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      const auto key = keys(sample_pairs(data(), few(), {kind, seed, int64_t(pairs.size()), R, B}, threads));
      for (size_t i = 0; i < 400; ++i) {
        const Id& pair = pairs[chosen[i]];
        const double weight = -std::log(uniform_of(seed, pair)) / key.at(pair), Sum = n * R / weight;
        sum[i] += Sum;
        squares[i] += Sum * Sum;
      }
    }
    int within = 0;
    double bias = 0;
    for (size_t i = 0; i < 400; ++i) {
      const double mean = sum[i] / seeds, variance = (squares[i] - seeds * mean * mean) / (seeds - 1);
      const double expected = R * (J[i] + (n - J[i]) / double(B)),
                   error = std::sqrt(std::max(0.0, variance) / seeds);
      within += std::abs(mean - expected) <= 3 * error + 1e-6;
      bias += (mean / expected - 1) / 400;
    }
    EXPECT_GE(within, 396) << "of 400";
    EXPECT_TRUE(std::abs(bias) <= 0.02) << bias;
    printf("  %.0f pairs, %s, R %d, B %ld: %d of 400 within 3 standard errors, mean bias %.4f\n", n,
           sampler_names[int(kind)], R, long(B), within, bias);
  }

 private:
  static inline TemporaryFolder* folder_ = nullptr;
  static inline Dataset* data_ = nullptr;
  static inline std::vector<uint8_t> label_ok_;
};

TEST_F(RealPairs, EstimatorIsUnbiasedForThePaper) {
  const auto n = double(all_pairs(data(), few()).size());
  expect_unbiased(SamplerKind::paper, 4, int64_t(std::ceil(std::log(n))));
}

TEST_F(RealPairs, EstimatorIsUnbiasedForTheDefault) { expect_unbiased(SamplerKind::minhash, 16, 1 << 16); }

std::vector<double> ranks(const std::vector<double>& values) {  // ties share their mean rank
  std::vector<double> result;
  for (const double v : values) {
    double below = 0, equal = 0;
    for (const double other : values) below += other < v * (1 - 1e-9), equal += close(other, v, 1e-9);
    result.push_back(below + (equal - 1) / 2);
  }
  return result;
}

TEST_F(RealPairs, WeightsRankAsInverseDensity) {
  const auto pairs = all_pairs(data(), few());
  const auto chosen = four_hundred(pairs.size());
  const auto J = densities(token_sets(data(), few(), SamplerKind::minhash, pairs), chosen);
  Threads threads(2);
  const auto key =
      keys(sample_pairs(data(), few(), {SamplerKind::minhash, 1, int64_t(pairs.size()), 0, 0}, threads));
  std::vector<double> weights, inverse;
  for (size_t i = 0; i < 400; ++i) {
    const Id& pair = pairs[chosen[i]];
    weights.push_back(-std::log(uniform_of(1, pair)) / key.at(pair));
    inverse.push_back(1 / J[i]);
  }
  const auto a = ranks(weights), b = ranks(inverse);
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < 400; ++i) {
    const double x = a[i] - 199.5, y = b[i] - 199.5;
    ab += x * y, aa += x * x, bb += y * y;
  }
  const double spearman = ab / std::sqrt(aa * bb);
  EXPECT_TRUE(spearman >= 0.8) << spearman;
  printf("  Spearman(weight, 1/J) %.3f\n", spearman);
}

TEST_F(RealPairs, AnyNumberOfThreadsGivesTheSame) {
  for (const auto kind : {SamplerKind::minhash, SamplerKind::paper, SamplerKind::uniform}) {
    std::vector<DrawnPair> first;
    SampleReport first_report;
    for (const int count : {1, 2, 7}) {
      Threads threads(count);
      SampleReport report;
      const auto drawn = sample_pairs(data(), {}, {kind, 1, 7000, 0, 0}, threads, &report);
      if (first.empty()) first = drawn, first_report = report;
      EXPECT_EQ(ids(drawn), ids(first)) << count << " threads";
      EXPECT_EQ(keys(drawn), keys(first));
      EXPECT_EQ(describe(report), describe(first_report));
      EXPECT_TRUE(report.ratio == first_report.ratio && report.variation == first_report.variation);
    }
    printf("%s", describe(first_report).c_str());
  }
}

// ---- memory ----

// The most heap in use, in bytes, seen from inside the passes: keep() is called for every query.
int64_t peak_heap(const Dataset& data, int64_t k, SamplerKind kind, bool with_report) {
  int64_t peak = 0, start = 0;
  const auto used = [] {
    const auto info = mallinfo2();
    return int64_t(info.uordblks + info.hblkhd);
  };
  const PairFilter filter{.keep =
                              [&](int64_t query) {
                                if (query % 100 == 0) peak = std::max(peak, used());
                                return true;
                              },
                          .label_ok = {}};
  Threads threads(1);
  SampleReport report;
  start = used();
  sample_pairs(data, filter, {kind, 1, k, 0, 0}, threads, with_report ? &report : nullptr);
  return peak - start;
}

TEST(Sampler, MemoryGrowsBySixteenBytesADrawnPairOnly) {
  const TemporaryFolder folder;
  std::vector<std::string> labels;
  for (int l = 0; l < 1000; ++l)
    labels.push_back("label " + std::to_string(l) + " of " + std::to_string(l % 37));
  const auto make = [&](int queries) {
    std::vector<Query> list;
    for (int q = 0; q < queries; ++q)
      list.push_back({std::to_string(q),
                      "title " + std::to_string(q),
                      "",
                      {q % 1000, (q * 7 + 1) % 1000, (q * 3) % 1000}});
    return make_dataset(folder, labels, list, "n" + std::to_string(queries));
  };
  const Dataset small = make(2000), large = make(20000);
  if (peak_heap(small, 10, SamplerKind::paper, false) <= 0)
    GTEST_SKIP() << "this allocator does not count its bytes";
  for (const auto kind : {SamplerKind::minhash, SamplerKind::paper})
    for (const bool with_report : {false, true}) {
      const int64_t base = peak_heap(small, 500, kind, with_report);
      const int64_t more_pairs = peak_heap(large, 500, kind, with_report) - base;
      EXPECT_LE(more_pairs, 18000 / 8 + 1024)
          << "for 54,000 more pairs";  // a bit a query while they are counted
      const int64_t more_drawn = peak_heap(small, 5500, kind, with_report) - base;
      EXPECT_LE(more_drawn, 16 * 5000 + 1024);
      EXPECT_GE(more_drawn, 16 * 5000 - 8192);
    }
}

}  // namespace
}  // namespace quest
