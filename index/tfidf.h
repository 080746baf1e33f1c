// The baseline beside every result: TF-IDF, in four ways. Words are \w+ in lower case; a word that stands in
// n of N texts weighs (1 + ln count)(ln((1 + N) / (1 + n)) + 1), nothing where n is 1; vectors have length 1.
#pragma once
#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "index/ranked.h"

namespace quest {

class Threads;
class Progress;

using TextOf = std::function<std::string(int64_t)>;  // the text of row i; called by the calling thread

// Sparse rows with values.
struct SparseMatrix {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> columns;
  std::vector<float> values;

  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  template <class F>
  void each(int64_t row, F&& f) const {  // f(column, value)
    for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) f(columns[i], values[i]);
  }
};

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
  // bits for any number of threads. progress counts queries.
  std::array<Ranked, 4> rank(const TextOf& text, int64_t queries, std::span<const int32_t> own,
                             std::span<const uint8_t> allowed, int64_t k, Threads&, Progress* = nullptr);

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  struct Work;

  SparseMatrix count_words(const TextOf& text, int64_t first, int64_t end, bool learn);
  void weigh(SparseMatrix& counts) const;
  void measure_centroids();
  void score(const SparseMatrix& queries, int64_t query, Work&) const;

  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> words_;  // ids
  std::vector<double> idf_;                        // [words]; 0 for a word of one text
  SparseMatrix queries_by_word_, labels_by_word_;  // rows are word ids
  std::vector<float> centroid_lengths_;            // [labels], before they are made unit vectors
  SparseRows training_;
};

}  // namespace quest
