#include "index/metrics.h"

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"

namespace quest {

static constexpr int64_t cutoffs[] = {1, 3, 5, 10, 100};  // P and PSP: the first three
static constexpr int64_t deepest = 100, coverage_cutoff = 5;

std::vector<double> inverse_propensities(std::span<const int64_t> counts, int64_t training_queries,
                                         Propensity p) {
  const double C = (std::log(training_queries) - 1) * std::pow(p.B + 1, p.A);
  std::vector<double> w;
  for (const int64_t n : counts) w.push_back(1 + C * std::pow(static_cast<double>(n) + p.B, -p.A));
  return w;
}

// Sums along one list: [r] is over its first r places.
using Running = std::array<double, deepest + 1>;

Metrics evaluate(const Ranked& lists, SparseRows truth, std::span<const int64_t> label_counts,
                 int64_t training_queries, Propensity propensity) {
  if (truth.rows() != lists.queries)
    fail(Exit::usage, "metrics: expected the truth of %d lists, found that of %d; rank the same queries",
         static_cast<int>(lists.queries), static_cast<int>(truth.rows()));
  Metrics m;
  m.propensity = propensity;
  const std::vector<double> w = inverse_propensities(label_counts, training_queries, propensity);
  double precision[3] = {}, recall[5] = {}, gained[3] = {}, attainable[3] = {}, ndcg = 0;
  std::vector<uint8_t> present(w.size()), covered(w.size());
  std::vector<double> best_first;  // inverse propensities of the true labels
  Running hits{}, gain{}, best{}, dcg{}, ideal{};
  for (int64_t q = 0; q < lists.queries; ++q) {
    const auto labels = truth.row(q);
    if (labels.empty()) continue;
    best_first.clear();
    for (const int32_t label : labels) present[label] = 1, best_first.push_back(w[label]);
    std::sort(best_first.begin(), best_first.end(), std::greater<>());
    for (size_t r = 0; r < deepest; ++r) {
      const int32_t label = r < lists.row(q).size() ? lists.row(q)[r] : -1;
      const bool hit = std::binary_search(labels.begin(), labels.end(), label), more = r < labels.size();
      const double discount = 1 / std::log2(r + 2);  // ranks count from 1
      hits[r + 1] = hits[r] + hit;
      gain[r + 1] = gain[r] + (hit ? w[label] : 0);
      best[r + 1] = best[r] + (more ? best_first[r] : 0);
      dcg[r + 1] = dcg[r] + (hit ? discount : 0);
      ideal[r + 1] = ideal[r] + (more ? discount : 0);
      if (hit && r < coverage_cutoff) covered[label] = 1;
    }
    const auto relevant = static_cast<double>(labels.size());
    for (int c = 0; c < 5; ++c) recall[c] += hits[cutoffs[c]] / relevant;
    for (int c = 0; c < 3; ++c) {
      const int64_t k = cutoffs[c];
      precision[c] += hits[k] / static_cast<double>(k);
      gained[c] += gain[k];
      attainable[c] += best[k];
    }
    ndcg += dcg[5] / ideal[5];
    m.p1.push_back(100 * hits[1]);
    m.r10.push_back(100 * hits[10] / relevant);
  }
  double* out = m.percent.data();
  const auto put = [&](double part, double whole) { *out++ = whole > 0 ? 100 * part / whole : 0; };
  const auto n = static_cast<double>(m.p1.size());
  for (const double p : precision) put(p, n);
  for (const double r : recall) put(r, n);
  put(ndcg, n);
  for (int c = 0; c < 3; ++c) put(gained[c], attainable[c]);
  put(std::count(covered.begin(), covered.end(), 1), std::count(present.begin(), present.end(), 1));
  return m;
}

void write_json(JsonWriter& json, const Metrics& m) {
  json.object();
  for (size_t i = 0; i < metric_names.size(); ++i) json.field(metric_names[i], m.percent[i]);
  json.field("PSP_A", m.propensity.A).field("PSP_B", m.propensity.B);
  json.field("queries", uint64_t{m.p1.size()}).end();
}

std::string metrics_table(std::span<const std::pair<std::string, Metrics>> methods) {
  int width = 0;
  for (const auto& [name, m] : methods) width = std::max(width, static_cast<int>(name.size()));
  std::string table(width, ' ');
  for (const auto name : metric_names) table += format(" %8s", name.data());  // literals: they end in a zero
  table += '\n';
  for (const auto& [name, m] : methods) {
    table += format("%-*s", width, name.c_str());
    for (const double value : m.percent) table += format(" %8.2f", value);
    table += '\n';
  }
  for (const auto& [name, m] : methods.first(methods.empty() ? 0 : 1))
    table += format("percent; %zu queries; PSP with A %g, B %g; coverage at %d\n", m.p1.size(),
                    m.propensity.A, m.propensity.B, static_cast<int>(coverage_cutoff));
  return table;
}

Interval paired_bootstrap(std::span<const double> a, std::span<const double> b, uint64_t seed,
                          Threads& threads, int64_t resamples) {
  const size_t n = a.size();
  if (b.size() != n || n == 0)
    fail(Exit::usage, "bootstrap: expected two lists of as many queries, found %zu and %zu; evaluate both on "
         "the same queries", n, b.size());
  const auto count = static_cast<double>(n);
  std::vector<double> difference(n), means(resamples);
  double total = 0;
  for (size_t i = 0; i < n; ++i) total += difference[i] = b[i] - a[i];
  threads.each(resamples, [&](int64_t r, int) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += difference[(random_bits(seed, r, i) >> 32) * n >> 32];  // in [0, n)
    means[r] = sum / count;
  });
  std::sort(means.begin(), means.end());
  const int64_t outside = resamples / 40;  // 2.5 % on each side
  return {total / count, means[outside], means[resamples - 1 - outside]};
}

}  // namespace quest
