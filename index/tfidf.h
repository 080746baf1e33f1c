// The baseline beside every result: TF-IDF, in four ways. Words are \w+ in lower case; a word that stands in
// n of N texts weighs (1 + ln count)(ln((1 + N) / (1 + n)) + 1), nothing where n is 1; vectors have length 1.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "index/ranked.h"

namespace quest {

class Threads;

using TextOf = std::function<std::string(int64_t)>;  // the text of row i; called by the calling thread

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
  // columns in [0, labels); must outlive the object.
  Tfidf(const TextOf& queries, SparseRows training, const TextOf& label_texts, int64_t labels);

  // The lists of each method, without labels of score 0 (z_sum: without those outside the union). Dropped
  // before ranking: own[query] (-1 or empty: none) and labels with allowed[label] == 0 (empty: none). Same
  // bits for any number of threads.
  std::array<Ranked, 4> rank(const TextOf& text, int64_t queries, std::span<const int32_t> own,
                             std::span<const uint8_t> allowed, int64_t k, Threads&);

 private:
  using SparseVector = std::vector<std::pair<int32_t, float>>;  // column and value, columns ascending
  struct Work;

  SparseVector count_words(const std::string& text, bool learn);
  void weigh(SparseVector& counts) const;
  void measure_centroids();
  void score(const SparseVector& query, Work&) const;

  std::map<std::string, int32_t, std::less<>> words_;  // ids
  std::vector<double> idf_;                            // [words]; 0 for a word of one text
  std::vector<SparseVector> texts_by_word_;            // [words] training queries, then labels: their columns
  std::vector<float> centroid_lengths_;                // [labels], before they are made unit vectors
  SparseRows training_;
};

}  // namespace quest
