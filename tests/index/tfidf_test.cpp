// TF-IDF: a case by hand, the formulas in double on random texts, and scikit-learn's figures on foldoc.
#include "index/tfidf.h"

#include <gtest/gtest.h>
#include <simdjson.h>
#include <zlib.h>

#include <map>
#include <set>

#include "index/metrics.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"
#include "kernels/base/words.h"

namespace quest {
namespace {

using Texts = std::vector<std::string>;

TextOf text_of(const Texts& texts) {
  return [&texts](int64_t i) { return texts[i]; };
}

struct Training {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> columns;
  void add(const std::vector<int32_t>& labels) {
    columns.insert(columns.end(), labels.begin(), labels.end());
    offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  SparseRows rows() const { return {offsets, columns}; }
};

TEST(Tfidf, ByHand) {
  const Texts queries = {"Apple apple, PEAR!", "pear plum"}, labels = {"apple", "plum plum pear", "rare"};
  Training training;
  training.add({0, 2});
  training.add({1});
  Tfidf tfidf(text_of(queries), training.rows(), text_of(labels), 3);
  Threads threads(1);
  const Texts test = {"apple unknown plum"};
  const auto lists = tfidf.rank(text_of(test), 1, {}, 3, threads);
  // Five texts: apple in 2, pear in 3, plum in 2; "rare" stands in one and is no word.
  const double two = std::log(6.0 / 3) + 1, three = std::log(6.0 / 4) + 1, twice = 1 + std::log(2.0);
  const double q = 1 / std::sqrt(2.0);  // both words of the query weigh the same
  const double plum = twice * two / std::hypot(twice * two, three);
  EXPECT_EQ(lists[Tfidf::label_text].ids, (std::vector<int32_t>{0, 1, -1}));
  EXPECT_TRUE(std::abs(lists[Tfidf::label_text].scores[0] - q) <= 1e-6);
  EXPECT_TRUE(std::abs(lists[Tfidf::label_text].scores[1] - q * plum) <= 1e-6);
  const double first = q * twice * two / std::hypot(twice * two, three);
  const double second = q * two / std::hypot(two, three);
  EXPECT_EQ(lists[Tfidf::centroid].ids, (std::vector<int32_t>{0, 2, 1}));
  EXPECT_TRUE(std::abs(lists[Tfidf::centroid].scores[0] - first) <= 1e-6);
  EXPECT_TRUE(std::abs(lists[Tfidf::centroid].scores[2] - second) <= 1e-6);
  EXPECT_EQ(lists[Tfidf::neighbours].ids, (std::vector<int32_t>{0, 2, 1}));
  EXPECT_TRUE(std::abs(lists[Tfidf::neighbours].scores[0] - std::pow(first, 4)) <= 1e-6);
  EXPECT_TRUE(std::abs(lists[Tfidf::neighbours].scores[2] - std::pow(second, 4)) <= 1e-6);
  const auto z = [](double x, double a, double b, double c) {
    const double mean = (a + b + c) / 3;
    const double variance = (std::pow(a - mean, 2) + std::pow(b - mean, 2) + std::pow(c - mean, 2)) / 3;
    return (x - mean) / std::sqrt(variance);
  };
  const double f4 = std::pow(first, 4), s4 = std::pow(second, 4);
  EXPECT_EQ(lists[Tfidf::z_sum].ids, (std::vector<int32_t>{0, 2, 1}));
  const double by_queries = z(first, first, first, second) + z(f4, f4, f4, s4);
  EXPECT_TRUE(std::abs(lists[Tfidf::z_sum].scores[0] - (z(q, q, q * plum, 0) + by_queries)) <= 1e-5);
  EXPECT_TRUE(std::abs(lists[Tfidf::z_sum].scores[1] - (z(0, q, q * plum, 0) + by_queries)) <= 1e-5);
}

// The same in maps of double, from the formulas alone.
using Vector = std::map<std::string, double>;

double product(const Vector& a, const Vector& b) {
  double sum = 0;
  for (const auto& [word, x] : a)
    if (b.contains(word)) sum += x * b.at(word);
  return sum;
}

Vector unit(Vector v) {
  const double length = std::sqrt(product(v, v));
  for (auto& [word, x] : v) x /= length;
  return v;
}

struct Naive {
  std::map<std::string, int> texts;
  int all = 0;
  static Vector counts(const std::string& text) {
    Vector v;
    std::string scratch;
    each_word(text, scratch, [&](std::string_view word) { v[std::string(word)] += 1; });
    return v;
  }
  void fit(const Texts& more) {
    for (const auto& text : more) {
      ++all;
      for (const auto& [word, n] : counts(text)) ++texts[word];
    }
  }
  Vector vector(const std::string& text) const {
    Vector v;
    for (const auto& [word, n] : counts(text))
      if (texts.contains(word) && texts.at(word) >= 2)
        v[word] = (1 + std::log(n)) * (std::log((1.0 + all) / (1.0 + texts.at(word))) + 1);
    return unit(v);
  }
};

Texts random_texts(int count, uint64_t seed) {
  Texts texts;
  for (int i = 0; i < count; ++i) {
    texts.emplace_back();
    const int words = 1 + static_cast<int>(random_bits(seed, i, 0) % 9);
    for (int w = 1; w <= words; ++w) {
      const double u = random_uniform(seed, i, w);
      texts.back().append("w").append(std::to_string(static_cast<int>(60 * u * u))) += w % 3 ? " " : ", ";
    }
  }
  return texts;
}

void expect_list(const Ranked& lists, int64_t query, std::vector<std::pair<double, int32_t>> expected,
                 const char* method) {
  std::sort(expected.begin(), expected.end(), [](auto& a, auto& b) { return a.first > b.first; });
  for (int64_t j = 0; j < lists.k; ++j) {
    const int64_t at = query * lists.k + j;
    if (j >= static_cast<int64_t>(expected.size())) {
      EXPECT_EQ(lists.ids[at], -1) << method;
      continue;
    }
    EXPECT_TRUE(std::abs(lists.scores[at] - expected[j].first) <= 2e-5)
        << method << ", query " << query << ", rank " << j << ": " << lists.scores[at] << ", expected "
        << expected[j].first;
    const bool known = std::any_of(expected.begin(), expected.end(), [&](auto& e) {
      return e.second == lists.ids[at] && std::abs(e.first - lists.scores[at]) <= 2e-5;
    });
    EXPECT_TRUE(known) << method << " query " << query << " rank " << j << ": label " << lists.ids[at];
  }
}

TEST(Tfidf, EqualsTheFormulasWithoutOwnLabels) {
  const int labels = 45, k = 12;
  const Texts queries = random_texts(130, 1), tests = random_texts(20, 3);
  const Texts label_texts = random_texts(labels, 2);
  Training training;
  for (size_t i = 0; i < queries.size(); ++i) {
    std::set<int32_t> some;
    for (uint64_t j = 0; j < random_bits(4, i, 0) % 4; ++j)
      some.insert(static_cast<int32_t>(random_bits(4, i, j + 1) % labels));
    training.add({some.begin(), some.end()});
  }
  std::vector<int32_t> own;
  for (size_t i = 0; i < tests.size(); ++i)
    own.push_back(i % 4 ? int32_t(random_bits(5, i, 0) % labels) : -1);
  Tfidf tfidf(text_of(queries), training.rows(), text_of(label_texts), labels);
  Threads threads(2);
  Training dropped;  // as labels of rows
  for (const int32_t l : own) dropped.add(l < 0 ? std::vector<int32_t>{} : std::vector<int32_t>{l});
  const auto lists = tfidf.rank(text_of(tests), static_cast<int64_t>(tests.size()), dropped.rows(), k, threads);

  Naive naive;
  naive.fit(queries);
  naive.fit(label_texts);
  const SparseRows rows = training.rows();
  std::vector<Vector> centroids(labels);
  for (size_t i = 0; i < queries.size(); ++i)
    for (const int32_t l : rows.row(static_cast<int64_t>(i)))
      for (const auto& [word, x] : naive.vector(queries[i])) centroids[l][word] += x;
  for (size_t t = 0; t < tests.size(); ++t) {
    const Vector q = naive.vector(tests[t]);
    std::vector<std::pair<double, size_t>> near;
    for (size_t i = 0; i < queries.size(); ++i)
      if (const double s = product(q, naive.vector(queries[i])); s > 0) near.push_back({-s, i});
    std::sort(near.begin(), near.end());
    if (near.size() > 50) near.resize(50);
    std::vector<double> score[3];
    for (int l = 0; l < labels; ++l) {
      score[0].push_back(product(q, naive.vector(label_texts[l])));
      score[1].push_back(centroids[l].empty() ? 0 : product(q, unit(centroids[l])));
      score[2].push_back(0);
    }
    for (const auto& [s, i] : near)
      for (const int32_t l : rows.row(static_cast<int64_t>(i))) score[2][l] += s * s * s * s;
    std::set<int32_t> listed;
    for (int m = 0; m < 3; ++m) {
      std::vector<std::pair<double, int32_t>> expected;
      for (int l = 0; l < labels; ++l)
        if (score[m][l] > 0 && own[t] != l) expected.push_back({score[m][l], l});
      expect_list(lists[m], static_cast<int64_t>(t), expected, Tfidf::names[m]);
      for (const int32_t id : lists[m].row(static_cast<int64_t>(t)))
        if (id >= 0) listed.insert(id);
    }
    std::vector<std::pair<double, int32_t>> z;
    for (const int32_t l : listed) z.push_back({0, l});
    for (const auto& s : score) {
      double mean = 0, variance = 0;
      for (const int32_t l : listed) mean += s[l] / static_cast<double>(listed.size());
      for (const int32_t l : listed) variance += std::pow(s[l] - mean, 2) / double(listed.size());
      for (auto& [sum, l] : z) sum += variance > 0 ? (s[l] - mean) / std::sqrt(variance) : 0;
    }
    expect_list(lists[3], static_cast<int64_t>(t), z, "z_sum");
  }
}

TEST(Tfidf, ThreadsAndReportsChangeNothing) {
  const Texts queries = random_texts(90, 1), labels = random_texts(30, 2), tests = random_texts(1030, 3);
  Training training;
  for (int32_t i = 0; i < 90; ++i) training.add({i % 30});
  Tfidf tfidf(text_of(queries), training.rows(), text_of(labels), 30);
  Threads one(1), seven(7);
  const auto a = tfidf.rank(text_of(tests), 1030, {}, 5, one);
  const auto b = tfidf.rank(text_of(tests), 1030, {}, 5, seven);
  const auto last = tfidf.rank([&](int64_t) { return tests[1029]; }, 1, {}, 5, one);
  for (int m = 0; m < 4; ++m) {
    EXPECT_EQ(a[m].ids, b[m].ids);
    EXPECT_EQ(a[m].scores, b[m].scores);
    EXPECT_TRUE(std::equal(last[m].ids.begin(), last[m].ids.end(), a[m].row(1029).begin()));
  }
}

// It says before it takes them which bytes it needs: for its words, for the texts by word, for a ranking.
TEST(Tfidf, TakesNoMoreThanItsRoom) {
  const std::vector<std::string> queries(50, "plum tree a very uncommonly long word"), labels(20, "plum");
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> columns;
  for (int32_t i = 0; i < 50; ++i) columns.push_back(i % 20), offsets.push_back(i + 1);
  Threads threads(2);
  const auto enough = [&](size_t room) {
    try {
      Tfidf tfidf(text_of(queries), {offsets, columns}, text_of(labels), 20, room);
      tfidf.rank(text_of(queries), 50, {}, 5, threads);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Exit::machine);
      return false;
    }
  };
  size_t low = 0, high = 1 << 20;
  while (high - low > 1) (enough((low + high) / 2) ? high : low) = (low + high) / 2;
  // 7 words; 7 of each query and 1 of each label; 20 labels; two threads' 50 + 3 * 20 numbers; four lists.
  EXPECT_EQ(high, 7 * 112u + 370 * 8 + 20 * 60 + 2 * 110 * 4 + 4 * 50 * 5 * 8);
}

TEST(Tfidf, EmptyTextsAndNothingToLearn) {
  const Texts queries = {"", "a b"}, labels = {"", "a b", "\xff\xfe"};
  Training training;
  training.add({0});
  training.add({});
  Tfidf tfidf(text_of(queries), training.rows(), text_of(labels), 3);
  Threads threads(1);
  const Texts tests = {"", "a", "zebra"};
  const auto lists = tfidf.rank(text_of(tests), 3, {}, 2, threads);
  EXPECT_EQ(lists[0].ids, (std::vector<int32_t>{-1, -1, 1, -1, -1, -1}));
  EXPECT_EQ(lists[1].ids, std::vector<int32_t>(6, -1));
  for (const auto& l : lists)
    for (const float s : l.scores) EXPECT_TRUE(std::isfinite(s));
}

struct Json {
  Texts uids, texts;
  Training labels;
};

Json read_json(const std::string& path) {
  Json out;
  gzFile file = gzopen(path.c_str(), "rb");
  std::string line(1 << 20, '\0');
  simdjson::dom::parser parser;
  while (file && gzgets(file, line.data(), static_cast<int>(line.size()))) {
    const auto row = parser.parse(line.data(), strlen(line.data()));
    out.uids.emplace_back(std::string_view(row["uid"]));
    out.texts.emplace_back(std::string_view(row["title"]));
    (out.texts.back() += ' ') += std::string_view(row["content"]);
    std::set<int32_t> labels;
    simdjson::dom::array targets;
    if (row["target_ind"].get(targets) == simdjson::SUCCESS)
      for (const auto target : targets) labels.insert(static_cast<int32_t>(int64_t(target)));
    out.labels.add({labels.begin(), labels.end()});
  }
  if (file) gzclose(file);
  return out;
}

// ../shared/README.md: P@1, P@3, P@5, R@10, R@100 by scikit-learn, all test queries, own label removed.
TEST(Tfidf, EqualsScikitLearnOnFoldoc) {
  const std::string folder = "../shared/data/foldoc/";
  const Json train = read_json(folder + "trn.json.gz"), test = read_json(folder + "tst.json.gz");
  const Json labels = read_json(folder + "lbl.json.gz");
  if (test.texts.empty()) GTEST_SKIP() << "needs ../shared/data/foldoc";
  std::map<std::string, int32_t> label_of;
  for (size_t l = 0; l < labels.uids.size(); ++l) label_of[labels.uids[l]] = static_cast<int32_t>(l);
  std::vector<int32_t> own;
  for (const auto& uid : test.uids) own.push_back(label_of.contains(uid) ? label_of[uid] : -1);
  const auto label_count = static_cast<int64_t>(labels.texts.size());
  Tfidf tfidf(text_of(train.texts), train.labels.rows(), text_of(labels.texts), label_count);
  Threads threads(2);
  Training dropped;
  for (const int32_t l : own) dropped.add(l < 0 ? std::vector<int32_t>{} : std::vector<int32_t>{l});
  const auto lists = tfidf.rank(text_of(test.texts), static_cast<int64_t>(own.size()), dropped.rows(), 100, threads);
  const double expected[3][5] = {{43.9, 30.1, 23.9, 46.5, 77.0}, {58.1, 43.0, 34.4, 67.5, 84.1},
                                 {56.3, 36.9, 28.9, 55.7, 79.4}};
  const size_t shown[5] = {0, 1, 2, 6, 7};
  const std::vector<int64_t> counts(label_count, 1);
  double best = 0;
  for (int m = 0; m < 3; ++m) {
    const Metrics metrics = evaluate(lists[m], test.labels.rows(), counts, 1000);
    for (int i = 0; i < 5; ++i)
      EXPECT_TRUE(std::abs(metrics.percent[shown[i]] - expected[m][i]) <= 0.3)
          << Tfidf::names[m] << " " << metric_names[shown[i]] << ": " << metrics.percent[shown[i]]
          << ", expected " << expected[m][i];
    best = std::max(best, metrics.percent[0]);
  }
  EXPECT_TRUE(evaluate(lists[3], test.labels.rows(), counts, 1000).percent[0] > best);
}

}  // namespace
}  // namespace quest
