#include "index/metrics.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"

namespace quest {

static constexpr int64_t cutoffs[] = {1, 3, 5, 10, 100};  // P and PSP: the first three
static constexpr int depth_cutoff = 5;                    // of nDCG and coverage

std::vector<double> inverse_propensities(std::span<const int64_t> counts, int64_t training_queries,
                                         Propensity p) {
  const double C = (std::log(training_queries) - 1) * std::pow(p.B + 1, p.A);
  std::vector<double> w;
  for (const int64_t n : counts) w.push_back(1 + C * std::pow(static_cast<double>(n) + p.B, -p.A));
  return w;
}

Metrics evaluate(const Ranked& lists, SparseRows truth, std::span<const int64_t> label_counts,
                 int64_t training_queries, Propensity propensity) {
  if (truth.rows() != lists.queries)
    fail(Exit::usage, "metrics: expected the truth of %ld lists, found that of %ld; rank the same queries",
         lists.queries, truth.rows());
  Metrics m;
  m.propensity = propensity;
  const std::vector<double> w = inverse_propensities(label_counts, training_queries, propensity);
  double precision[3] = {}, recall[5] = {}, gained[3] = {}, attainable[3] = {}, ndcg = 0;
  std::vector<uint8_t> present(w.size()), covered(w.size());
  std::vector<double> best_first;  // inverse propensities of the true labels
  for (int64_t q = 0; q < lists.queries; ++q) {
    const auto labels = truth.row(q);
    if (labels.empty()) continue;
    best_first.clear();
    for (const int32_t label : labels) present[label] = 1, best_first.push_back(w[label]);
    std::ranges::sort(best_first, std::greater<>());
    double hits = 0, gain = 0, best = 0, dcg = 0, ideal = 0;  // over the first `rank` places
    for (int64_t rank = 1, c = 0; c < 5; ++rank) {
      const int32_t label = rank <= lists.k ? lists.row(q)[rank - 1] : -1;
      const bool hit = std::ranges::binary_search(labels, label), more = rank <= std::ssize(labels);
      const double discount = 1 / std::log2(rank + 1);
      if (hit) hits += 1, gain += w[label], dcg += discount;
      if (more) best += best_first[rank - 1], ideal += discount;
      if (hit && rank <= depth_cutoff) covered[label] = 1;
      if (rank == depth_cutoff) ndcg += dcg / ideal;
      if (rank == 1) m.p1.push_back(100 * hits);
      if (rank == 10) m.r10.push_back(100 * hits / std::ssize(labels));
      if (rank != cutoffs[c]) continue;
      recall[c] += hits / static_cast<double>(labels.size());
      if (c < 3) precision[c] += hits / static_cast<double>(rank), gained[c] += gain, attainable[c] += best;
      ++c;
    }
  }
  double* out = m.percent.data();
  const auto put = [&](double part, double whole) { *out++ = whole > 0 ? 100 * part / whole : 0; };
  const auto n = static_cast<double>(m.p1.size());
  for (const double p : precision) put(p, n);
  for (const double r : recall) put(r, n);
  put(ndcg, n);
  for (int c = 0; c < 3; ++c) put(gained[c], attainable[c]);
  put(std::ranges::count(covered, 1), std::ranges::count(present, 1));
  return m;
}

void write_json(JsonWriter& json, const Metrics& m) {
  json.object();
  for (size_t i = 0; i < metric_names.size(); ++i) json.field(metric_names[i], m.percent[i]);
  json.field("PSP_A", m.propensity.A).field("PSP_B", m.propensity.B);
  json.field("queries", uint64_t{m.p1.size()}).end();
}

std::string metrics_table(std::span<const std::pair<std::string, Metrics>> methods) {
  size_t width = 0;
  for (const auto& [name, m] : methods) width = std::max(width, name.size());
  std::string table(width, ' '), protocol;
  for (const auto name : metric_names) table += format(" %8s", name.data());  // literals: they end in a zero
  for (const auto& [name, m] : methods) {
    table += "\n" + name + std::string(width - name.size(), ' ');
    for (const double value : m.percent) table += format(" %8.2f", value);
    protocol = format("\npercent; %zu queries; PSP with A %g, B %g; coverage at %d", m.p1.size(),
                      m.propensity.A, m.propensity.B, depth_cutoff);
  }
  return table + protocol + "\n";
}

Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, uint64_t seed,
                          Threads& threads, int64_t resamples) {
  const size_t n = a.size();
  if (b.size() != n || n == 0)
    fail(Exit::usage,
         "bootstrap: expected two lists of as many queries, found %zu and %zu; rank the same queries", n,
         b.size());
  const auto count = static_cast<double>(n);
  std::vector<double> difference(n), means(resamples);
  double total = 0;
  for (size_t i = 0; i < n; ++i) total += difference[i] = b[i] - a[i];
  threads.each(resamples, [&](int64_t r, int) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += difference[(random_bits(seed, r, i) >> 32) * n >> 32];  // in [0, n)
    means[r] = sum / count;
  });
  std::ranges::sort(means);
  const int64_t outside = resamples / 40;  // 2.5 % on each side
  return {total / count, means[outside], means[resamples - 1 - outside]};
}

}  // namespace quest
