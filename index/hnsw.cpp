#include "index/hnsw.h"

// hnswlib's prefetches read up to four bytes behind a list of links; this switch leaves them out.
#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>  // defines functions that are not inline: no other file may include it

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"
#include "kernels/base/progress.h"
#include "kernels/base/threads.h"

namespace quest {

// Smaller is nearer. A NaN would break the order of hnswlib's queues.
static float distance(const void* a, const void* b, const void* width) {
  float score;
  kernel_paths()[0].row->dots(static_cast<const float*>(a), static_cast<const float*>(b), 1,
                              *static_cast<const int64_t*>(width), &score);
  return std::isnan(score) ? INFINITY : -score;
}

struct Hnsw::State final : hnswlib::SpaceInterface<float> {
  int64_t width;
  hnswlib::HierarchicalNSW<float> graph;

  State(int64_t w, int64_t labels) try : width(w), graph(this, labels, links, ef_construction) {
  } catch (const std::runtime_error&) {  // its own "not enough memory"
    throw std::bad_alloc();
  }
  size_t get_data_size() override { return width * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override { return distance; }
  void* get_dist_func_param() override { return &width; }
};

// PATH.meta. PATH holds an element [links of level 0 | vector | label] for every label, then for each its
// level (i32) and a list of links for each level above 0; a list is its length and room for all (u32).
struct Sidecar {
  char magic[8] = {'Q', 'U', 'E', 'S', 'T', 'N', 'S', 'W'};
  uint32_t version = 1;
  char space[4] = {'d', 'o', 't', ' '};
  int64_t width, labels, links = Hnsw::links, ef_construction = Hnsw::ef_construction, ef = Hnsw::ef;
  int64_t count = labels;  // of elements
  int32_t top_level = 0;
  uint32_t entry = 0;
  char sha256[64] = {};  // of PATH, hexadecimal
};
static_assert(sizeof(Sidecar) == 136);

Hnsw::Hnsw(Vectors labels, Progress* progress) : state_(new State(labels.width, labels.count)) {
  for (int64_t l = 0; l < labels.count; ++l) {
    state_->graph.addPoint(labels.row(l), l);
    if (progress) progress->add(1);
  }
}

int64_t Hnsw::bytes(int64_t labels, int64_t width, int threads) {
  const int64_t element = (1 + 2 * links) * 4 + width * 4 + 8;  // links of level 0, vector, label
  const int64_t above = ((1 + links) * 4 + 16) / (links - 1);   // levels above, of which a label has 1/15
  const int64_t tables = 8 + 4 + 32 + 12 + sizeof(std::mutex);  // lists, level, label's node and bucket, lock
  const int64_t visited = 2 * (1 + threads);
  return labels * (element + above + tables + visited) + 65536 * sizeof(std::mutex);
}

void Hnsw::save(const std::string& path) const {
  const auto& g = state_->graph;
  OutFile file(path);
  file.write(g.data_level0_memory_, g.cur_element_count * g.size_data_per_element_);
  for (size_t i = 0; i < g.cur_element_count; ++i) {
    const int32_t level = g.element_levels_[i];
    file.put(level);
    if (level > 0) file.write(g.linkLists_[i], level * g.size_links_per_element_);
  }
  file.commit();
  Sidecar s{.width = state_->width, .labels = int64_t(g.cur_element_count)};
  s.top_level = g.maxlevel_, s.entry = g.enterpoint_node_;
  memcpy(s.sha256, sha256_file(path).data(), sizeof s.sha256);
  write_file(path + ".meta", {reinterpret_cast<const char*>(&s), sizeof s});
}

static void expect(bool good, const std::string& path, const char* what) {
  if (!good) fail(Exit::input, "%s: expected %s, found otherwise; build the index again", path.c_str(), what);
}

Hnsw::Hnsw(const std::string& path, int64_t labels, int64_t width) : state_(new State(width, labels)) {
  const MappedFile meta(path + ".meta"), file(path);
  Sidecar s{.width = width, .labels = labels};
  const std::string start =
      format("our magic, version, space, M and ef, %ld labels of width %ld", labels, width);
  expect(meta.size() == sizeof s, meta.path(), "a sidecar of 136 bytes");
  expect(memcmp(meta.data(), &s, offsetof(Sidecar, top_level)) == 0, meta.path(), start.c_str());
  memcpy(&s, meta.data(), sizeof s);
  expect(sha256_hex(file.text()) == std::string(s.sha256, sizeof s.sha256), path, "the sidecar's SHA-256");

  auto& g = state_->graph;
  std::string_view rest = file.text();
  const auto read = [&](void* to, size_t bytes) {
    const size_t had = rest.copy(static_cast<char*>(to), bytes);
    expect(had == bytes, path, "as many bytes as its count and levels say");
    rest.remove_prefix(bytes);
  };
  read(g.data_level0_memory_, labels * g.size_data_per_element_);
  for (int64_t i = 0; i < labels; ++i) {
    int32_t& level = g.element_levels_[i];
    read(&level, sizeof level);
    expect(level >= 0 && level <= s.top_level && level <= 64, path, "levels up to the top level");
    ++g.cur_element_count;  // from here on the graph frees what a level above 0 has
    if (level == 0) continue;
    g.linkLists_[i] = static_cast<char*>(calloc(level, g.size_links_per_element_));
    if (!g.linkLists_[i]) throw std::bad_alloc();
    read(g.linkLists_[i], level * g.size_links_per_element_);
  }
  expect(rest.empty(), path, "nothing behind the last list");

  const auto& levels = g.element_levels_;
  for (int64_t i = 0; i < labels; ++i) {
    expect(int64_t(g.getExternalLabel(i)) == i, path, "the labels in their order");
    for (int level = 0; level <= levels[i]; ++level) {
      const uint32_t* list = g.get_linklist_at_level(i, level);
      expect(list[0] <= (level == 0 ? g.maxM0_ : g.maxM_), path, "lists of links within their room");
      for (uint32_t j = 1; j <= list[0]; ++j)
        expect(list[j] < labels && levels[list[j]] >= level, path, "links to elements of the link's level");
    }
  }
  g.maxlevel_ = s.top_level, g.enterpoint_node_ = s.entry;
  expect(labels == 0 || (s.entry < labels && levels[s.entry] == s.top_level), path, "an entry of top level");
}

Ranked Hnsw::search(Vectors queries, int64_t k, Threads& threads) const {
  require_width(queries, state_->width);
  Ranked lists(queries.count, k);
  threads.each(queries.count, [&](int64_t q, int) {
    for (auto found = state_->graph.searchKnn(queries.row(q), std::max(k, ef)); !found.empty(); found.pop())
      if (std::isfinite(found.top().first)) lists.offer(q, -found.top().first, found.top().second);
  });
  return lists;
}

}  // namespace quest
