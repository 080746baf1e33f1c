// The baseline beside every result: TF-IDF, in four ways. Words are \w+ in lower case; a word that stands in
// n of N texts weighs (1 + ln count)(ln((1 + N) / (1 + n)) + 1), nothing where n is 1; vectors have length 1.
#pragma once
#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "index/exact.h"
#include "kernels/base/words.h"

namespace quest {

using TextOf = std::function<std::string(int64_t)>;  // the text of row i; called by any thread

class Tfidf {
 public:
  // A label's score; q is the vector of the query, t of a training query, l of the label's text.
  enum Method {
    label_text,  // q . l
    centroid,    // q . c, c the sum of the t that have the label, made a unit vector
    neighbours,  // sum of (q . t)^4 over those of the 50 nearest t (ties: lower row) that have the label
    z_sum        // sum of the three's (score - mean) / deviation, both taken over the union of their lists
  };
  static constexpr std::array<const char*, 4> names = {"label_text", "centroid", "neighbours", "z_sum"};

  // Fits the words on training queries and labels together. training: the labels of each training query,
  // columns in [0, labels); must outlive the object. room: bytes that it and its lists may take; throws
  // Error(machine) when they need more.
  Tfidf(const TextOf& queries, SparseRows training, const TextOf& label_texts, int64_t labels,
        size_t room = SIZE_MAX)
      : room_(room), training_(training) {
    const int64_t rows = training.rows();
    const auto each_text = [&](bool learn, auto&& f) {
      for (int64_t i = 0; i < rows + labels; ++i)
        f(i, count_words(i < rows ? queries(i) : label_texts(i - rows), learn));
    };
    each_text(true, [&](int64_t, const SparseVector& counts) {
      ends_.resize(words_.size());
      for (const auto& [word, count] : counts) ++ends_[word];
    });
    const double all = rows + labels;
    int64_t total = 0;
    for (int64_t& end : ends_) {
      idf_.push_back(end < 2 ? 0 : std::log((1 + all) / (1.0 + end)) + 1);
      end = std::exchange(total, total + end);  // where the word's texts begin, until they are in
    }
    take(total * sizeof texts_[0] + labels * (sizeof(double) + sizeof(float) + 48));  // 48: of a word's sums
    texts_.resize(total);
    each_text(false, [&](int64_t i, SparseVector vector) {
      weigh(vector);
      for (const auto& [word, weight] : vector) texts_[ends_[word]++] = {i, weight};
    });
    std::vector<double> squares(labels);  // of the sums of each label's training queries
    for (size_t word = 0; word < ends_.size(); ++word) {
      std::map<int32_t, double> sums;  // this word's part, by label
      for (const auto& [row, value] : texts_with(word))
        if (row < rows)
          for (const int32_t label : training.row(row)) sums[label] += value;
      for (const auto& [label, sum] : sums) squares[label] += sum * sum;
    }
    for (const double square : squares) centroid_lengths_.push_back(std::sqrt(square));
  }

  // The lists of each method, without labels of score 0 (z_sum: without those outside the union) and those
  // that are dropped for the query. Same bits for any number of threads.
  std::array<Ranked, 4> rank(const TextOf& text, int64_t queries, SparseRows dropped, int64_t k,
                             Threads& threads) {
    const int64_t rows = training_.rows(), labels = std::ssize(centroid_lengths_);
    const size_t work = (rows + 3 * labels) * sizeof(float) * threads.count();
    take(work + queries * k * 4 * 8);
    std::array<Ranked, 4> lists;
    for (Ranked& list : lists) list = Ranked(queries, k);
    // Of each thread: cosines of the training queries, then each label's scores by the first three methods.
    std::vector<std::vector<float>> works(threads.count());
    for (auto& own : works) own.resize(rows + 3 * labels);
    threads.each(queries, [&](int64_t query, int thread) {
      std::ranges::fill(works[thread], 0.0f);
      float* const cosines = works[thread].data();
      float* const scores[] = {cosines + rows, cosines + rows + labels, cosines + rows + 2 * labels};
      SparseVector vector = count_words(text(query), false);
      weigh(vector);
      for (const auto& [word, weight] : vector)
        for (const auto& [row, value] : texts_with(word)) cosines[row] += weight * value;
      Ranked nearest(1, 50);  // training queries
      for (int32_t row = 0; row < rows; ++row) {
        if (cosines[row] == 0) continue;
        nearest.offer(0, cosines[row], row);
        for (const int32_t l : training_.row(row)) scores[centroid][l] += cosines[row] / centroid_lengths_[l];
      }
      for (int64_t i = 0; i < nearest.k && nearest.ids[i] >= 0; ++i) {
        const float cosine = nearest.scores[i];
        for (const int32_t l : training_.row(nearest.ids[i]))
          scores[neighbours][l] += cosine * cosine * cosine * cosine;
      }
      std::map<int32_t, double> z;  // of the union of the three lists
      for (const Method method : {label_text, centroid, neighbours}) {
        for (int32_t l = 0; l < labels; ++l)
          if (scores[method][l] > 0 && !dropped.holds(query, l))
            lists[method].offer(query, scores[method][l], l);
        for (const int32_t l : lists[method].row(query))
          if (l >= 0) z[l] = 0;
      }
      for (const float* score : scores) {
        double mean = 0, variance = 0;
        for (const auto& [l, sum] : z) mean += score[l] / double(z.size());
        for (const auto& [l, sum] : z) variance += (score[l] - mean) * (score[l] - mean) / z.size();
        for (auto& [l, sum] : z)  // a method that scores all of them alike adds nothing
          if (variance > 0) sum += (score[l] - mean) / std::sqrt(variance);
      }
      for (const auto& [l, sum] : z) lists[z_sum].offer(query, sum, l);
    });
    room_ += work;
    return lists;
  }

 private:
  using SparseVector = std::vector<std::pair<int32_t, float>>;  // column and value, columns ascending

  // How often each word stands in the text. Unknown words are learnt or left out.
  SparseVector count_words(const std::string& text, bool learn) {
    std::map<int32_t, float> counts;
    std::string scratch;
    each_word(text, scratch, [&](std::string_view word) {
      auto found = words_.find(word);
      if (found == words_.end() && learn) {
        take(112 + (word.size() > 15 ? word.size() + 17 : 0));  // the map's node, weight, end
        found = words_.emplace(word, words_.size()).first;
      }
      if (found != words_.end()) ++counts[found->second];
    });
    return {counts.begin(), counts.end()};
  }

  std::span<const std::pair<int32_t, float>> texts_with(size_t word) const {
    const int64_t begin = word ? ends_[word - 1] : 0;
    return {texts_.data() + begin, texts_.data() + ends_[word]};
  }

  void take(size_t bytes) {
    if (bytes > room_)
      fail(Exit::machine,
           "memory: TF-IDF needs at least %zu bytes more than are left; give a larger --memory",
           bytes - room_);
    room_ -= bytes;
  }

  void weigh(SparseVector& counts) const {
    double squares = 0;
    for (auto& [word, value] : counts) {
      const double weight = (1 + std::log(value)) * idf_[word];
      value = weight;
      squares += weight * weight;
    }
    const float length = squares > 0 ? std::sqrt(squares) : 1;
    for (auto& [word, value] : counts) value /= length;
  }

  std::map<std::string, int32_t, std::less<>> words_;  // ids
  std::vector<double> idf_;                            // [words]; 0 for a word of one text
  SparseVector texts_;                                 // a column: training queries, then labels, by word
  std::vector<int64_t> ends_;                          // [words] of its texts
  size_t room_;                                        // bytes
  std::vector<float> centroid_lengths_;                // [labels], before they are made unit vectors
  SparseRows training_;
};

}  // namespace quest
