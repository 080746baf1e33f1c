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

// Length of the sum of each label's training queries.
static std::vector<float> sum_lengths(const SparseMatrix& queries, SparseRows training, int64_t labels,
                                      int64_t words) {
  const SparseMatrix pairs{{training.offsets.begin(), training.offsets.end()},
                           {training.columns.begin(), training.columns.end()},
                           std::vector<float>(training.columns.size(), 1)};
  const SparseMatrix by_label = transpose(pairs, labels);
  std::vector<float> lengths;
  std::vector<double> sum(words);
  for (int64_t label = 0; label < labels; ++label) {
    double squares = 0;
    by_label.each(label, [&](int32_t query, float) {
      queries.each(query, [&](int32_t word, float value) { sum[word] += value; });
    });
    by_label.each(label, [&](int32_t query, float) {
      queries.each(query, [&](int32_t word, float) {
        const double value = std::exchange(sum[word], 0);  // 0 when the word is met again
        squares += value * value;
      });
    });
    lengths.push_back(static_cast<float>(std::sqrt(squares)));
  }
  return lengths;
}

Tfidf::Tfidf(const TextOf& queries, SparseRows training, const TextOf& label_texts, int64_t labels,
             Progress* progress)
    : training_(training) {
  learn_words(queries, training.rows(), 0, progress);
  learn_words(label_texts, labels, training.rows(), progress);
  const auto texts = static_cast<double>(training.rows() + labels);
  idf_.resize(words_.size());
  for (const auto& [name, word] : words_) idf_[word.id] = std::log((1 + texts) / (1 + word.texts)) + 1;
  std::erase_if(words_, [](const auto& entry) { return entry.second.texts < 2; });
  const auto words = static_cast<int64_t>(idf_.size());
  const SparseMatrix vectors = vectorise(queries, 0, training.rows(), progress);
  centroid_lengths_ = sum_lengths(vectors, training, labels, words);
  queries_by_word_ = transpose(vectors, words);
  labels_by_word_ = transpose(vectorise(label_texts, 0, labels, progress), words);
}

void Tfidf::learn_words(const TextOf& text, int64_t rows, int64_t first_text, Progress* progress) {
  std::string scratch;
  for (int64_t row = 0; row < rows; ++row) {
    each_word(text(row), scratch, [&](std::string_view name) {
      auto found = words_.find(name);
      if (found == words_.end())
        found = words_.emplace(name, Word{static_cast<int32_t>(words_.size()), 0, -1}).first;
      Word& word = found->second;
      word.texts += std::exchange(word.last_text, first_text + row) != first_text + row;
    });
    if (progress) progress->add(1);
  }
}

SparseMatrix Tfidf::vectorise(const TextOf& text, int64_t first, int64_t end, Progress* progress) const {
  SparseMatrix m;
  std::string scratch;
  std::vector<int32_t> ids;
  for (int64_t row = first; row < end; ++row) {
    ids.clear();
    each_word(text(row), scratch, [&](std::string_view name) {
      if (const auto found = words_.find(name); found != words_.end()) ids.push_back(found->second.id);
    });
    std::sort(ids.begin(), ids.end());
    double squares = 0;
    for (size_t i = 0, next; i < ids.size(); i = next) {
      for (next = i; next < ids.size() && ids[next] == ids[i];) ++next;
      const double weight = (1 + std::log(next - i)) * idf_[ids[i]];
      m.columns.push_back(ids[i]);
      m.values.push_back(static_cast<float>(weight));
      squares += weight * weight;
    }
    for (size_t i = m.offsets.back(); i < m.values.size(); ++i) m.values[i] /= static_cast<float>(std::sqrt(squares));
    m.offsets.push_back(static_cast<int64_t>(m.values.size()));
    if (progress) progress->add(1);
  }
  return m;
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
                                  Progress* progress) const {
  constexpr int64_t queries_a_report = 1024;
  const size_t labels = centroid_lengths_.size();
  std::array<Ranked, 4> lists;
  for (Ranked& l : lists) l = Ranked(queries, k);
  std::vector<Work> work;
  for (int t = 0; t < threads.count(); ++t) {
    const std::vector<float> scores(labels);
    work.push_back({std::vector<float>(training_.rows()), {scores, scores, scores}, TopK(nearest_queries), TopK(k),
                    {}, {}});
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
    const SparseMatrix vectors = vectorise(text, first, end, nullptr);
    threads.each(end - first, [&](int64_t i, int thread) {
      score(vectors, i, work[thread]);
      rank_one(first + i, work[thread]);
    });
    if (progress) progress->add(static_cast<double>(end - first));
  }
  return lists;
}

}  // namespace quest
