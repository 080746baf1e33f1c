// The approximate index: repeatable, close to the exact scan, and unwilling to load what it did not write.
#include "index/hnsw.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "kernels/tile_math.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"
#include "kernels/base/random.h"
#include "kernels/base/threads.h"

namespace quest {
namespace {

// Unit vectors around 40 centres.
std::vector<float> clustered(int64_t count, int64_t width, uint64_t seed) {
  std::vector<float> v(count * width);
  for (int64_t i = 0; i < count; ++i) {
    float* row = v.data() + i * width;
    for (int64_t j = 0; j < width; ++j)
      row[j] = float(random_uniform(1, i % 40, j) + 0.5 * random_uniform(seed, i, j) - 0.75);
    const float length = std::sqrt(dot(row, row, width));
    for (int64_t j = 0; j < width; ++j) row[j] /= length;
  }
  return v;
}

class HnswTest : public testing::Test {
 protected:
  static constexpr int64_t count = 700, width = 17, queries = 60;
  void SetUp() override {
    char name[] = "/tmp/quest-hnsw-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  static Vectors vectors(const std::vector<float>& v) {
    return {v.data(), static_cast<int64_t>(v.size()) / width, width};
  }

  // Changes bytes of a saved graph and sidecar (the hash is made right again), and loads them.
  using Change = std::function<void(std::string& graph, std::string& sidecar)>;
  Exit load_changed(const Change& change, bool rehash = true) {
    const std::string file = path("changed");
    if (graph_.empty()) {
      Hnsw(vectors(labels_)).save(file);
      graph_ = read_file(file);
      sidecar_ = read_file(file + ".meta");
    }
    std::string graph = graph_, sidecar = sidecar_;
    change(graph, sidecar);
    if (rehash && sidecar.size() == sidecar_size) sidecar.replace(sha_at, 64, sha256_hex(graph));
    write_file(file, graph);
    write_file(file + ".meta", sidecar);
    try {
      Hnsw loaded(file, count, width);
      loaded.search(vectors(queries_), 10, threads_);
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(file), std::string::npos) << e.what();
      return e.code;
    }
    return Exit::usage;  // it loaded
  }

  static constexpr size_t sidecar_size = 136, sha_at = 72, count_at = 56, top_level_at = 64, entry_at = 68;
  static constexpr size_t element_bytes = 4 + 32 * 4 + width * 4 + 8;
  const std::vector<float> labels_ = clustered(count, width, 2), queries_ = clustered(queries, width, 3);
  Threads threads_{2};
  std::string folder_, graph_, sidecar_;
};

template <class T>
void put(std::string& bytes, size_t at, T value) {
  memcpy(bytes.data() + at, &value, sizeof value);
}

TEST_F(HnswTest, FindsWhatTheExactScanFinds) {
  const Hnsw index(vectors(labels_));
  const Ranked exact = exact_top_k(vectors(queries_), vectors(labels_), 10, threads_);
  const Ranked found = index.search(vectors(queries_), 10, threads_);
  const double recall = list_recall(found, exact);
  EXPECT_TRUE(recall >= 95) << recall;
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t j = 0; j < 10; ++j) {
      const int64_t at = q * 10 + j;
      ASSERT_GE(found.ids[at], 0);
      const float* label = labels_.data() + found.ids[at] * width;
      EXPECT_EQ(found.scores[at], dot(queries_.data() + q * width, label, width));
      if (j > 0) {
        EXPECT_TRUE(found.scores[at - 1] >= found.scores[at]);
      }
    }
  }
  Threads seven(7);
  const Ranked again = index.search(vectors(queries_), 10, seven);
  EXPECT_EQ(found.ids, again.ids);
  EXPECT_EQ(found.scores, again.scores);
  EXPECT_EQ(list_recall(index.search(vectors(queries_), 200, threads_),  // more than ef
                        exact_top_k(vectors(queries_), vectors(labels_), 200, threads_)) >= 95, true);
}

TEST_F(HnswTest, TwoBuildsAreIdenticalAndLoadAsSaved) {
  const Hnsw built(vectors(labels_));
  built.save(path("a"));
  Hnsw(vectors(labels_)).save(path("b"));
  EXPECT_EQ(read_file(path("a")), read_file(path("b")));
  EXPECT_EQ(read_file(path("a.meta")), read_file(path("b.meta")));
  const Hnsw loaded(path("a"), count, width);
  const Ranked x = built.search(vectors(queries_), 7, threads_);
  const Ranked y = loaded.search(vectors(queries_), 7, threads_);
  EXPECT_EQ(x.ids, y.ids);
  EXPECT_EQ(x.scores, y.scores);
  loaded.save(path("c"));
  EXPECT_EQ(read_file(path("a")), read_file(path("c")));
  EXPECT_EQ(read_file(path("a.meta")), read_file(path("c.meta")));
}

TEST_F(HnswTest, NoneAndFewLabelsAndNan) {
  Hnsw(Vectors{nullptr, 0, width}).save(path("none"));
  const Ranked none = Hnsw(path("none"), 0, width).search(vectors(queries_), 3, threads_);
  for (const int32_t id : none.ids) EXPECT_EQ(id, -1);
  std::vector<float> few(labels_.begin(), labels_.begin() + 3 * width);
  few[width] = std::numeric_limits<float>::quiet_NaN();
  const Ranked found = Hnsw(vectors(few)).search(vectors(queries_), 3, threads_);
  for (int64_t q = 0; q < queries; ++q) {
    const std::vector<int32_t> ids(found.row(q).begin(), found.row(q).end());
    EXPECT_TRUE(ids == (std::vector<int32_t>{0, 2, -1}) || ids == (std::vector<int32_t>{2, 0, -1}));
  }
}

TEST_F(HnswTest, RefusesOtherWidthsAndLabels) {
  const Hnsw index(vectors(labels_));
  index.save(path("index"));
  EXPECT_THROW(Hnsw(path("index"), count, width + 1), Error);
  EXPECT_THROW(Hnsw(path("index"), count + 1, width), Error);
  EXPECT_THROW(index.search({queries_.data(), 1, width - 1}, 3, threads_), Error);
  EXPECT_THROW(Hnsw(path("missing"), count, width), Error);
}

TEST_F(HnswTest, RefusesEveryDamage) {
  const auto unchanged = [](std::string&, std::string&) {};
  EXPECT_EQ(load_changed(unchanged), Exit::usage) << "an unchanged index must load";
  const size_t graph_size = graph_.size();
  for (const size_t at : {size_t{0}, size_t{200}, graph_size / 2, graph_size - 1})
    EXPECT_EQ(load_changed([&](std::string& g, std::string&) { g[at] ^= 1; }, false), Exit::input) << at;
  for (size_t at = 0; at < 24 + 40; ++at)  // all of the sidecar before the levels
    EXPECT_EQ(load_changed([&](std::string&, std::string& sidecar) { sidecar[at] ^= 1; }), Exit::input) << at;
  const std::pair<const char*, Change> damages[] = {
      {"truncated graph", [](std::string& g, std::string&) { g.resize(g.size() - 1); }},
      {"graph of a byte", [](std::string& g, std::string&) { g.resize(1); }},
      {"empty graph", [](std::string& g, std::string&) { g.clear(); }},
      {"longer graph", [](std::string& g, std::string&) { g += '\0'; }},
      {"truncated sidecar", [](std::string&, std::string& s) { s.resize(s.size() - 1); }},
      {"longer sidecar", [](std::string&, std::string& s) { s += '\0'; }},
      {"empty sidecar", [](std::string&, std::string& s) { s.clear(); }},
      {"count one less", [](std::string&, std::string& s) { put<int64_t>(s, count_at, count - 1); }},
      {"negative count", [](std::string&, std::string& s) { put<int64_t>(s, count_at, -1); }},
      {"no vectors, yet a graph", [](std::string&, std::string& s) { put<int64_t>(s, count_at, 0); }},
      {"top level too high", [](std::string&, std::string& s) { put<int32_t>(s, top_level_at, 50); }},
      {"top level too low", [](std::string&, std::string& s) { put<int32_t>(s, top_level_at, 0); }},
      {"entry beyond the last", [](std::string&, std::string& s) { put<uint32_t>(s, entry_at, count); }},
      {"entry of level 0", [](std::string& g, std::string& s) {
         const size_t levels_at = count * element_bytes;  // the first element's level, changed with the entry
         int32_t level;
         memcpy(&level, g.data() + levels_at, sizeof level);
         ASSERT_EQ(level, 0);
         put<uint32_t>(s, entry_at, 0);
       }},
      {"link to nothing", [](auto& g, auto&) { put<uint32_t>(g, 5 * element_bytes + 4, count); }},
      {"too many links", [](std::string& g, std::string&) { put<uint32_t>(g, 5 * element_bytes, 33); }},
      {"delete mark", [](std::string& g, std::string&) { g[5 * element_bytes + 2] = 1; }},
      {"label twice", [](std::string& g, std::string&) { put<uint64_t>(g, 6 * element_bytes - 8, 4); }},
      {"label out of range", [](auto& g, auto&) { put<uint64_t>(g, count * element_bytes - 8, count); }},
      {"negative label", [](std::string& g, std::string&) { put<int64_t>(g, element_bytes - 8, -1); }},
      {"negative level", [](std::string& g, std::string&) { put<int32_t>(g, count * element_bytes, -1); }},
      {"huge level", [](std::string& g, std::string&) { put<int32_t>(g, count * element_bytes, 1 << 30); }}};
  for (const auto& [what, damage] : damages) EXPECT_EQ(load_changed(damage), Exit::input) << what;
}

// Every link of an upper level is checked too: point the first one at an element of level 0.
TEST_F(HnswTest, RefusesALinkAboveItsElementsLevel) {
  const auto change = [](std::string& g, std::string&) {
    for (size_t at = count * element_bytes; at < g.size();) {
      int32_t level;
      memcpy(&level, g.data() + at, sizeof level);
      at += sizeof level;
      if (level > 0) return put<uint32_t>(g, at + 4, 0);  // element 0 is of level 0, see above
      at += level * 17 * 4;
    }
    FAIL() << "no element above level 0";
  };
  EXPECT_EQ(load_changed(change), Exit::input);
}

TEST_F(HnswTest, ReportsWhatItCannotWrite) {
  const Hnsw index(vectors(labels_));
  try {
    index.save(path("no/such/folder"));
    FAIL() << "saved";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::machine);
  }
}

// What is reserved for hnswlib is what it takes, to 3 %.
TEST_F(HnswTest, BytesAreWhatItTakes) {
  const auto in_use = [] { return int64_t(mallinfo2().uordblks + mallinfo2().hblkhd); };
  if (in_use() == 0) GTEST_SKIP() << "a sanitizer's heap is not counted";
  for (const auto& [n, d] : {std::pair<int64_t, int64_t>{6000, 32}, {1500, 576}}) {
    std::vector<float> labels(static_cast<size_t>(n * d));
    for (size_t i = 0; i < labels.size(); ++i)
      labels[i] = static_cast<float>(random_uniform(3, 1, i)) - 0.5f;
    const int64_t before = in_use();
    const Hnsw index(Vectors{labels.data(), n, d});
    Threads two(2);
    index.search({labels.data(), 200, d}, 10, two);
    const double taken = static_cast<double>(in_use() - before);
    const double said = static_cast<double>(Hnsw::bytes(n, d, 2));
    EXPECT_TRUE(std::abs(said / taken - 1) <= 0.03) << n << ": said " << said << ", taken " << taken;
  }
}

}  // namespace
}  // namespace quest
