#include "index/tfidf.h"

#include <algorithm>

#include "kernels/base/threads.h"
#include "kernels/base/words.h"

namespace quest {

Tfidf::Tfidf(const TextOf& queries, SparseRows training, const TextOf& label_texts, int64_t labels)
    : centroid_lengths_(labels), training_(training) {
  std::vector<SparseVector> vectors;
  for (int64_t i = 0; i < training.rows(); ++i) vectors.push_back(count_words(queries(i), true));
  for (int64_t l = 0; l < labels; ++l) vectors.push_back(count_words(label_texts(l), true));
  std::vector<int64_t> texts(words_.size());
  for (const auto& vector : vectors)
    for (const auto& [word, count] : vector) ++texts[word];
  const auto all = static_cast<double>(vectors.size());
  for (const int64_t n : texts) idf_.push_back(n < 2 ? 0 : std::log((1 + all) / (1.0 + n)) + 1);
  texts_by_word_.resize(words_.size());
  for (size_t i = 0; i < vectors.size(); ++i) {
    weigh(vectors[i]);
    for (const auto& [word, weight] : vectors[i]) texts_by_word_[word].emplace_back(i, weight);
  }
  measure_centroids();
}

// How often each word stands in the text. Unknown words are learnt or left out.
Tfidf::SparseVector Tfidf::count_words(const std::string& text, bool learn) {
  std::map<int32_t, float> counts;
  std::string scratch;
  each_word(text, scratch, [&](std::string_view word) {
    auto found = words_.find(word);
    if (found == words_.end() && learn) found = words_.emplace(word, int32_t(words_.size())).first;
    if (found != words_.end()) ++counts[found->second];
  });
  return {counts.begin(), counts.end()};
}

void Tfidf::weigh(SparseVector& counts) const {
  double squares = 0;
  for (auto& [word, value] : counts) {
    const double weight = (1 + std::log(value)) * idf_[word];
    value = static_cast<float>(weight);
    squares += weight * weight;
  }
  const float length = squares > 0 ? static_cast<float>(std::sqrt(squares)) : 1;
  for (auto& [word, value] : counts) value /= length;
}

// Lengths of the sums of each label's training queries, word by word.
void Tfidf::measure_centroids() {
  std::vector<double> sum(centroid_lengths_.size()), squares(sum.size());
  for (const auto& texts : texts_by_word_) {
    const auto each_label = [&](auto&& f) {
      for (const auto& [row, value] : texts)
        if (row < training_.rows())
          for (const int32_t label : training_.row(row)) f(label, value);
    };
    each_label([&](int32_t label, float value) { sum[label] += value; });
    each_label([&](int32_t label, float) {
      const double whole = std::exchange(sum[label], 0);  // 0 when the label is met again
      squares[label] += whole * whole;
    });
  }
  for (size_t l = 0; l < sum.size(); ++l) centroid_lengths_[l] = static_cast<float>(std::sqrt(squares[l]));
}

// What one thread scores a query with; allocated before the threads start.
struct Tfidf::Work {
  std::vector<float> cosine;                // [training queries, then labels]
  std::array<std::vector<float>, 3> score;  // [labels] by each of the first three methods
  Ranked nearest;                           // training queries
};

void Tfidf::score(const SparseVector& query, Work& work) const {
  auto& [by_text, by_centroid, by_neighbours] = work.score;
  std::ranges::fill(work.cosine, 0.0f);
  for (const auto& [word, weight] : query)
    for (const auto& [row, value] : texts_by_word_[word]) work.cosine[row] += weight * value;
  std::copy(work.cosine.begin() + training_.rows(), work.cosine.end(), by_text.begin());
  std::ranges::fill(by_centroid, 0.0f);
  std::ranges::fill(by_neighbours, 0.0f);
  std::ranges::fill(work.nearest.ids, -1);
  for (int32_t row = 0; row < training_.rows(); ++row) {
    const float cosine = work.cosine[row];
    if (cosine == 0) continue;
    work.nearest.offer(0, cosine, row);
    for (const int32_t label : training_.row(row)) by_centroid[label] += cosine / centroid_lengths_[label];
  }
  for (const int32_t row : work.nearest.row(0)) {
    if (row < 0) break;
    const float cosine = work.cosine[row];
    for (const int32_t label : training_.row(row)) by_neighbours[label] += cosine * cosine * cosine * cosine;
  }
}

// A method that scores all of the labels alike adds nothing.
static void add_standard_scores(const std::vector<float>& score, std::span<const int32_t> labels,
                                std::vector<double>& z) {
  const auto n = static_cast<double>(labels.size());
  double mean = 0, variance = 0;
  for (const int32_t l : labels) mean += score[l] / n;
  for (const int32_t l : labels) variance += (score[l] - mean) * (score[l] - mean) / n;
  if (!(variance > 0)) return;
  for (size_t i = 0; i < labels.size(); ++i) z[i] += (score[labels[i]] - mean) / std::sqrt(variance);
}

std::array<Ranked, 4> Tfidf::rank(const TextOf& text, int64_t queries, std::span<const int32_t> own,
                                  std::span<const uint8_t> allowed, int64_t k, Threads& threads) {
  const auto labels = static_cast<int32_t>(centroid_lengths_.size());
  std::vector<SparseVector> vectors;
  for (int64_t q = 0; q < queries; ++q) weigh(vectors.emplace_back(count_words(text(q), false)));
  std::array<Ranked, 4> lists;
  lists.fill(Ranked(queries, k));
  const std::vector<float> zeros(labels);
  std::vector<Work> works(
      threads.count(), {std::vector<float>(training_.rows() + labels), {zeros, zeros, zeros}, Ranked(1, 50)});
  threads.each(queries, [&](int64_t query, int thread) {
    Work& work = works[thread];
    score(vectors[query], work);
    std::vector<int32_t> listed;  // union of the three lists
    for (const Method method : {label_text, centroid, neighbours}) {
      for (int32_t label = 0; label < labels; ++label) {
        const bool dropped = (!allowed.empty() && !allowed[label]) || (!own.empty() && own[query] == label);
        if (work.score[method][label] > 0 && !dropped)
          lists[method].offer(query, work.score[method][label], label);
      }
      const auto list = lists[method].row(query);
      listed.insert(listed.end(), list.begin(), std::ranges::find(list, -1));
    }
    std::ranges::sort(listed);
    listed.erase(std::unique(listed.begin(), listed.end()), listed.end());
    std::vector<double> z(listed.size());
    for (const auto& by_method : work.score) add_standard_scores(by_method, listed, z);
    for (size_t i = 0; i < z.size(); ++i) lists[z_sum].offer(query, static_cast<float>(z[i]), listed[i]);
  });
  return lists;
}

}  // namespace quest
