#include "train/task.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace quest {

constexpr uint64_t label_stream = 3;  // random.h

static uint64_t uid_hash(std::string_view uid) { return hash_bytes(uid.data(), uid.size()); }

static bool held_out(std::string_view uid, double share) { return (uid_hash(uid) >> 11) * 0x1p-53 < share; }

Task::Task(const Settings& s, Dataset d) : settings(s), data(std::move(d)) {
  std::vector<int64_t> positives(data.labels.size());
  for (int64_t q = 0; q < data.train.texts.size(); ++q)
    for (const int32_t l : data.train.labels.row(q)) ++positives[l];
  for (int32_t l = 0; l < data.labels.size(); ++l) {
    const bool text = !data.labels.title(l).empty() || !data.labels.content(l).empty();
    const bool counts_here = text && positives[l] >= s.min_positives;
    number.push_back(counts_here ? static_cast<int32_t>(labels.size()) : -1);
    if (counts_here) labels.push_back(l), counts.push_back(positives[l]);
  }
  const auto keep = [&](const Split& split, auto&& wanted) {  // queries with a label, of those wanted
    std::vector<int32_t> queries;
    for (int32_t q = 0; q < split.texts.size(); ++q) {
      const bool label = std::ranges::any_of(split.labels.row(q), [&](int32_t l) { return number[l] >= 0; });
      if (label && wanted(split.texts.uid(q))) queries.push_back(q);
    }
    return queries;
  };
  validation = side(data.train, keep(data.train, [&](auto uid) { return held_out(uid, s.validation); }));
  training = side(data.train, keep(data.train, [&](auto uid) { return !held_out(uid, s.validation); }));
  auto queries = keep(data.test, [](auto) { return true; });
  if (s.test_queries > 0 && std::ssize(queries) > s.test_queries) {
    std::ranges::sort(queries, {}, [&](int32_t q) { return std::pair(uid_hash(data.test.texts.uid(q)), q); });
    queries.resize(s.test_queries);
  }
  test = side(data.test, queries);
  if (labels.empty() || test.queries.empty() || training.queries.empty())
    fail(Exit::input,
         "%s: expected labels with %ld training positives, training and test queries that have one, found "
         "%zu, %zu and %zu; lower --min-positives or give more lines (about a fifth of a file's become test "
         "queries)",
         data.path.c_str(), s.min_positives, labels.size(), training.queries.size(), test.queries.size());
  if (validation.queries.empty() && s.validation > 0)
    fail(Exit::input,
         "%s: expected validation queries, found none of %zu training queries at --validation %g; give a "
         "larger share, or 0 to train to the end without",
         data.path.c_str(), training.queries.size(), s.validation);

  constexpr size_t limit = 1500;
  std::vector<bool> wanted(labels.size());
  for (const int32_t l : validation.truth) wanted[l] = true;
  const size_t needed = std::count(wanted.begin(), wanted.end(), true);
  validation_labels.resize(labels.size());
  std::iota(validation_labels.begin(), validation_labels.end(), 0);
  std::ranges::sort(validation_labels, {},
                    [&](int32_t l) { return std::pair(!wanted[l], random_bits(0, label_stream, l)); });
  validation_labels.resize(std::min(labels.size(), std::max(limit, needed)));
  std::ranges::sort(validation_labels);
}

Side Task::side(const Split& split, std::vector<int32_t> queries) const {
  Side s;
  s.split = &split, s.queries = std::move(queries);
  for (const int32_t q : s.queries) {
    for (const int32_t l : split.labels.row(q))
      if (number[l] >= 0) s.truth.push_back(number[l]);
    s.offsets.push_back(std::ssize(s.truth));
    std::set<int32_t> dropped;
    if (split.own(q) >= 0) dropped.insert(number[split.own(q)]);
    for (const int32_t l : split.filtered(q)) dropped.insert(number[l]);
    dropped.erase(-1);
    s.most_dropped = std::max<int64_t>(s.most_dropped, dropped.size());
    s.dropped_labels.insert(s.dropped_labels.end(), dropped.begin(), dropped.end());
    s.dropped_offsets.push_back(std::ssize(s.dropped_labels));
  }
  return s;
}

void Task::draw_pairs(Threads& threads) {
  std::vector<uint8_t> label_counts(data.labels.size());
  for (const int32_t l : labels) label_counts[l] = 1;
  int64_t total = 0;
  for (const int32_t q : training.queries)
    for (const int32_t l : data.train.labels.row(q)) total += label_counts[l] && l != data.train.own(q);
  SamplerOptions options{
      .kind = sampler_kind(settings.sampler), .seed = uint64_t(settings.seed), .first = settings.first};
  options.k = static_cast<int64_t>((settings.ratio > 0 ? settings.ratio : 0.25) * total);
  if (settings.ratio == 0) options.k = std::max(options.k, std::min<int64_t>(total, 2000));
  if (settings.pairs > 0) options.k = std::min(options.k, settings.pairs);
  if (options.k == 0)
    fail(Exit::input, "%s: expected at least one training pair, found %ld at --ratio %g; give a larger share",
         data.path.c_str(), total, settings.ratio);
  const auto keep = [&](int64_t q) { return !held_out(data.train.texts.uid(q), settings.validation); };
  pairs = sample_pairs(data, {keep, label_counts}, options, threads, &report);
}

void Task::collect_pairs(const Tokenizer& t, Corpus& c) {
  const Texts& queries = data.train.texts;
  for (const auto& [q, l, key] : pairs) {
    pair_texts.push_back(c.add(t, settings, queries.title(q), queries.content(q), settings.query_text));
    c.add(t, settings, data.labels.title(l), data.labels.content(l), settings.label_text);
  }
}

void Task::collect_others(const Tokenizer& t, Corpus& c) {
  const auto collect = [&](const Texts& texts, const std::vector<int32_t>& rows, const std::string& pattern) {
    std::vector<int32_t> numbers;
    for (const int32_t i : rows)
      numbers.push_back(c.add(t, settings, texts.title(i), texts.content(i), pattern));
    return numbers;
  };
  validation.texts = collect(data.train.texts, validation.queries, settings.query_text);
  label_texts = collect(data.labels, labels, settings.label_text);
  test.texts = collect(data.test.texts, test.queries, settings.query_text);
}

int64_t Task::steps() const {
  const int64_t n = std::ssize(pairs), per_epoch = std::max<int64_t>(1, n / settings.batch);
  const int64_t epochs = settings.epochs > 0 ? settings.epochs : (99 + per_epoch) / per_epoch;
  return n == 0 ? 0 : settings.steps > 0 ? settings.steps : epochs * per_epoch;
}

}  // namespace quest
