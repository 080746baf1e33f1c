#include "index/tfidf.h"

#include <numeric>
#include <utility>

#include "kernels/base/progress.h"
#include "kernels/base/threads.h"
#include "kernels/base/words.h"

namespace quest {

static constexpr int64_t nearest_queries = 50;

// The transpose: row c of the result lists the rows that hold column c, ascending.
static SparseMatrix transpose(const SparseMatrix& m, int64_t columns) {
  SparseMatrix out;
  out.offsets.assign(columns + 1, 0);
  for (const int32_t c : m.columns) ++out.offsets[c + 1];
  std::partial_sum(out.offsets.begin(), out.offsets.end(), out.offsets.begin());
  out.columns.resize(m.columns.size());
  out.values.resize(m.columns.size());
  std::vector<int64_t> next = out.offsets;
  for (int64_t row = 0; row < m.rows(); ++row) {
    m.each(row, [&](int32_t c, float value) {
      out.columns[next[c]] = static_cast<int32_t>(row);
      out.values[next[c]++] = value;
    });
  }
  return out;
}

Tfidf::Tfidf(const TextOf& queries, SparseRows training, const TextOf& label_texts, int64_t labels)
    : centroid_lengths_(labels), training_(training) {
  SparseMatrix query_rows = count_words(queries, 0, training.rows(), true);
  SparseMatrix label_rows = count_words(label_texts, 0, labels, true);
  std::vector<int64_t> texts(words_.size());
  for (const auto* columns : {&query_rows.columns, &label_rows.columns})
    for (const int32_t word : *columns) ++texts[word];
  const auto all = static_cast<double>(training.rows() + labels);
  for (const int64_t n : texts) idf_.push_back(n < 2 ? 0 : std::log((1 + all) / (1.0 + n)) + 1);
  weigh(query_rows);
  weigh(label_rows);
  queries_by_word_ = transpose(query_rows, idf_.size());
  labels_by_word_ = transpose(label_rows, idf_.size());
  measure_centroids();
}

// How often each word stands in each of the texts [first, end). Unknown words are learnt or left out.
SparseMatrix Tfidf::count_words(const TextOf& text, int64_t first, int64_t end, bool learn) {
  SparseMatrix counts;
  std::string scratch;
  std::vector<int32_t> ids;
  for (int64_t row = first; row < end; ++row) {
    ids.clear();
    each_word(text(row), scratch, [&](std::string_view word) {
      auto found = words_.find(word);
      if (found == words_.end() && learn) found = words_.emplace(word, int32_t(words_.size())).first;
      if (found != words_.end()) ids.push_back(found->second);
    });
    std::sort(ids.begin(), ids.end());
    for (size_t i = 0, next; i < ids.size(); i = next) {
      for (next = i; next < ids.size() && ids[next] == ids[i];) ++next;
      counts.columns.push_back(ids[i]);
      counts.values.push_back(static_cast<float>(next - i));
    }
    counts.offsets.push_back(static_cast<int64_t>(counts.values.size()));
  }
  return counts;
}

void Tfidf::weigh(SparseMatrix& m) const {
  for (int64_t row = 0; row < m.rows(); ++row) {
    double squares = 0;
    for (int64_t i = m.offsets[row]; i < m.offsets[row + 1]; ++i) {
      const double weight = (1 + std::log(m.values[i])) * idf_[m.columns[i]];
      m.values[i] = static_cast<float>(weight);
      squares += weight * weight;
    }
    const float length = squares > 0 ? static_cast<float>(std::sqrt(squares)) : 1;
    for (int64_t i = m.offsets[row]; i < m.offsets[row + 1]; ++i) m.values[i] /= length;
  }
}

// Lengths of the sums of each label's training queries, word by word.
void Tfidf::measure_centroids() {
  std::vector<double> sum(centroid_lengths_.size()), squares(sum.size());
  for (int64_t word = 0; word < queries_by_word_.rows(); ++word) {
    queries_by_word_.each(word, [&](int32_t query, float value) {
      for (const int32_t label : training_.row(query)) sum[label] += value;
    });
    queries_by_word_.each(word, [&](int32_t query, float) {
      for (const int32_t label : training_.row(query)) {
        const double whole = std::exchange(sum[label], 0);  // 0 when the label is met again
        squares[label] += whole * whole;
      }
    });
  }
  for (size_t l = 0; l < sum.size(); ++l) centroid_lengths_[l] = static_cast<float>(std::sqrt(squares[l]));
}

// What one thread scores a query with; allocated before the threads start.
struct Tfidf::Work {
  std::vector<float> similarity;            // [training queries]
  std::array<std::vector<float>, 3> score;  // [labels] by each of the first three methods
  TopK nearest, best;
  std::vector<int32_t> listed;              // union of the three lists
  std::vector<double> z;                    // [listed]
};

void Tfidf::score(const SparseMatrix& queries, int64_t query, Work& work) const {
  auto& [by_text, by_centroid, by_neighbours] = work.score;
  std::fill(work.similarity.begin(), work.similarity.end(), 0.0f);
  for (auto& s : work.score) std::fill(s.begin(), s.end(), 0.0f);
  queries.each(query, [&](int32_t word, float weight) {
    queries_by_word_.each(word, [&](int32_t row, float value) { work.similarity[row] += weight * value; });
    labels_by_word_.each(word, [&](int32_t label, float value) { by_text[label] += weight * value; });
  });
  for (int64_t row = 0; row < training_.rows(); ++row) {
    const float cosine = work.similarity[row];
    if (cosine == 0) continue;
    work.nearest.offer(cosine, static_cast<int32_t>(row));
    for (const int32_t label : training_.row(row)) by_centroid[label] += cosine / centroid_lengths_[label];
  }
  for (const auto& [cosine, row] : work.nearest.sorted())
    for (const int32_t label : training_.row(row)) by_neighbours[label] += cosine * cosine * cosine * cosine;
  work.nearest.clear();
}

// A method that scores all of the labels alike adds nothing.
static void add_standard_scores(const std::vector<float>& score, const std::vector<int32_t>& labels,
                                std::vector<double>& z) {
  const auto n = static_cast<double>(labels.size());
  double mean = 0, variance = 0;
  for (const int32_t l : labels) mean += score[l] / n;
  for (const int32_t l : labels) variance += (score[l] - mean) * (score[l] - mean) / n;
  if (!(variance > 0)) return;
  for (size_t i = 0; i < labels.size(); ++i) z[i] += (score[labels[i]] - mean) / std::sqrt(variance);
}

std::array<Ranked, 4> Tfidf::rank(const TextOf& text, int64_t queries, std::span<const int32_t> own,
                                  std::span<const uint8_t> allowed, int64_t k, Threads& threads,
                                  Progress* progress) {
  constexpr int64_t queries_a_report = 1024;
  const size_t labels = centroid_lengths_.size();
  std::array<Ranked, 4> lists;
  for (Ranked& l : lists) l = Ranked(queries, k);
  std::vector<Work> work;
  for (int t = 0; t < threads.count(); ++t) {
    const std::vector<float> scores(labels);
    const std::vector<float> similarity(training_.rows());
    work.push_back({similarity, {scores, scores, scores}, TopK(nearest_queries), TopK(k), {}, {}});
    work.back().listed.reserve(3 * k);
    work.back().z.reserve(3 * k);
  }
  const auto rank_one = [&](int64_t query, Work& w) {
    w.listed.clear();
    for (const Method method : {label_text, centroid, neighbours}) {
      for (size_t label = 0; label < labels; ++label) {
        const auto id = static_cast<int32_t>(label);
        const bool dropped = (!allowed.empty() && !allowed[label]) || (!own.empty() && own[query] == id);
        if (w.score[method][label] > 0 && !dropped) w.best.offer(w.score[method][label], id);
      }
      for (const auto& entry : w.best.sorted()) w.listed.push_back(entry.id);
      w.best.take_into(lists[method], query);
    }
    std::sort(w.listed.begin(), w.listed.end());
    w.listed.erase(std::unique(w.listed.begin(), w.listed.end()), w.listed.end());
    w.z.assign(w.listed.size(), 0);
    for (const auto& score : w.score) add_standard_scores(score, w.listed, w.z);
    for (size_t i = 0; i < w.listed.size(); ++i) w.best.offer(static_cast<float>(w.z[i]), w.listed[i]);
    w.best.take_into(lists[z_sum], query);
  };
  for (int64_t first = 0; first < queries; first += queries_a_report) {
    const int64_t end = std::min(first + queries_a_report, queries);
    SparseMatrix vectors = count_words(text, first, end, false);
    weigh(vectors);
    threads.each(end - first, [&](int64_t i, int thread) {
      score(vectors, i, work[thread]);
      rank_one(first + i, work[thread]);
    });
    if (progress) progress->add(static_cast<double>(end - first));
  }
  return lists;
}

}  // namespace quest
