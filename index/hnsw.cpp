#include "index/hnsw.h"

// hnswlib's prefetches read up to four bytes behind a list of links; this switch leaves them out.
#define NO_MANUAL_VECTORIZATION
#include <hnswlib/hnswlib.h>  // defines functions that are not inline: no other file may include it

#include <atomic>
#include <cstring>
#include <exception>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"
#include "kernels/base/progress.h"
#include "kernels/base/threads.h"

namespace quest {

// Smaller is nearer. A NaN would break the order of hnswlib's queues.
static float distance(const void* a, const void* b, const void* width) {
  const float score =
      dot(static_cast<const float*>(a), static_cast<const float*>(b), *static_cast<const int64_t*>(width));
  return std::isnan(score) ? std::numeric_limits<float>::infinity() : -score;
}

struct InnerProduct final : hnswlib::SpaceInterface<float> {
  int64_t width = 0;
  size_t get_data_size() override { return width * sizeof(float); }
  hnswlib::DISTFUNC<float> get_dist_func() override { return distance; }
  void* get_dist_func_param() override { return &width; }
};

using Graph = hnswlib::HierarchicalNSW<float>;

struct Hnsw::State {
  InnerProduct space;
  int64_t labels;  // all of them, also those that stayed out
  int64_t ef;
  std::unique_ptr<Graph> graph;
};

// The head of hnswlib's file, field by field. An element is [links of level 0 | vector | label].
struct Head {
  uint64_t links_at, capacity, count, element_bytes, label_at, vector_at;
  int32_t top_level;
  uint32_t entry;
  uint64_t upper_links, level0_links, links;
  double level_scale;
  uint64_t ef_construction;
};
static_assert(sizeof(Head) == 96);

struct Sidecar {
  char magic[8] = {'Q', 'U', 'E', 'S', 'T', 'N', 'S', 'W'};
  uint32_t version = 1;
  char space[4] = {'d', 'o', 't', ' '};
  uint64_t width, labels, count, links, ef_construction, ef;
  char sha256[64];  // of the graph file, hexadecimal
};
static_assert(sizeof(Sidecar) == 128);

[[noreturn]] static void fail_machine(const char* what, const std::exception& why) {
  fail(Exit::machine, "HNSW index: %s failed: %s; free memory or use the exact scan", what, why.what());
}

Hnsw::Hnsw(Vectors labels, std::span<const uint8_t> allowed, HnswOptions options, Progress* progress)
    : state_(new State{{}, labels.count, options.ef, nullptr}) {
  state_->space.width = labels.width;
  const auto stays_out = allowed.empty() ? 0 : std::count(allowed.begin(), allowed.end(), 0);
  try {
    auto& graph = state_->graph;
    graph.reset(new Graph(&state_->space, labels.count - stays_out, options.links, options.ef_construction));
    for (int64_t l = 0; l < labels.count; ++l) {
      if (allowed.empty() || allowed[l]) graph->addPoint(labels.row(l), l);
      if (progress) progress->add(1);
    }
  } catch (const std::exception& e) {
    fail_machine("building", e);
  }
}

Hnsw::~Hnsw() = default;

// hnswlib's own saveIndex overlooks a full disk.
void Hnsw::save(const std::string& path) const {
  const Graph& g = *state_->graph;
  OutFile file(path);
  Sha sha;
  const auto write = [&](const void* bytes, size_t count) {
    file.write(bytes, count);
    sha.update(bytes, count);
  };
  const Head head{g.offsetLevel0_, g.max_elements_, g.cur_element_count, g.size_data_per_element_,
                  g.label_offset_, g.offsetData_,   g.maxlevel_,         g.enterpoint_node_,
                  g.maxM_,         g.maxM0_,        g.M_,                g.mult_,
                  g.ef_construction_};
  write(&head, sizeof head);
  write(g.data_level0_memory_, head.count * head.element_bytes);
  for (size_t i = 0; i < head.count; ++i) {
    const auto bytes = static_cast<uint32_t>(g.element_levels_[i] * g.size_links_per_element_);
    write(&bytes, sizeof bytes);
    if (bytes > 0) write(g.linkLists_[i], bytes);
  }
  file.commit();
  Sidecar s{.width = static_cast<uint64_t>(state_->space.width), .labels = static_cast<uint64_t>(state_->labels),
            .count = head.count, .links = head.links, .ef_construction = head.ef_construction,
            .ef = static_cast<uint64_t>(state_->ef), .sha256 = {}};
  memcpy(s.sha256, sha.hex().data(), sizeof s.sha256);
  write_file(path + ".meta", {reinterpret_cast<const char*>(&s), sizeof s});
}

static void expect(bool good, const std::string& path, const char* what) {
  if (!good) fail(Exit::input, "%s: expected %s, found something else; build the index again", path.c_str(), what);
}

static Sidecar read_sidecar(const std::string& path, uint64_t labels, uint64_t width) {
  const MappedFile file(path);
  const Sidecar own{};
  Sidecar s;
  expect(file.size() == sizeof s, path, "a sidecar of 128 bytes");
  memcpy(&s, file.data(), sizeof s);
  expect(memcmp(&s, &own, offsetof(Sidecar, width)) == 0, path, "magic QUESTNSW, version 1, space dot");
  if (s.width != width || s.labels != labels)
    fail(Exit::input, "%s: expected %llu labels of width %llu, found %llu of %llu; build the index again",
         path.c_str(), 0ull + labels, 0ull + width, 0ull + s.labels, 0ull + s.width);
  expect(s.count <= labels && s.links >= 2 && s.links <= 1000 && s.ef <= 1 << 20, path, "count, M and ef in range");
  return s;
}

// What hnswlib believes of a file without looking: with these fields right, its own walk over the lists finds any
// size that does not fit the file.
static void check_file(const MappedFile& file, const Sidecar& s) {
  expect(sha256_hex(file.text()) == std::string_view(s.sha256, sizeof s.sha256), file.path(), "the sidecar's SHA-256");
  Head h;
  expect(file.size() >= sizeof h, file.path(), "a head of 96 bytes");
  memcpy(&h, file.data(), sizeof h);
  const uint64_t links0_bytes = 4 + 2 * s.links * 4, vector_bytes = s.width * sizeof(float);
  expect(h.capacity == s.count && h.count == s.count, file.path(), "the sidecar's count");
  expect(h.links_at == 0 && h.vector_at == links0_bytes && h.label_at == links0_bytes + vector_bytes &&
             h.element_bytes == h.label_at + 8, file.path(), "the sidecar's width");
  expect(h.links == s.links && h.upper_links == s.links && h.level0_links == 2 * s.links &&
             h.ef_construction == s.ef_construction, file.path(), "the sidecar's M and ef_construction");
  expect(h.count <= (file.size() - sizeof h) / h.element_bytes, file.path(), "as many vectors as its count says");
}

// Every link leads to an element that has the link's level; labels ascend, as they were added.
static void check_links(const Graph& g, const Sidecar& s, const std::string& path) {
  const auto& levels = g.element_levels_;
  expect(s.count == 0 || (g.enterpoint_node_ < s.count && levels[g.enterpoint_node_] == g.maxlevel_), path,
         "an entry point on the top level");
  for (uint64_t i = 0, next = 0; i < s.count; ++i) {
    const uint64_t label = g.getExternalLabel(i);
    expect(label >= next && label < s.labels, path, "ascending labels of the data set");
    next = label + 1;
    for (int level = 0; level <= levels[i]; ++level) {
      const uint32_t* list = g.get_linklist_at_level(i, level);
      expect(list[0] <= (level == 0 ? g.maxM0_ : g.maxM_), path, "lists of links within their room");
      for (uint32_t j = 1; j <= list[0]; ++j)
        expect(list[j] < s.count && levels[list[j]] >= level, path, "links to elements of the link's level");
    }
  }
}

Hnsw::Hnsw(const std::string& path, int64_t labels, int64_t width) {
  const Sidecar s = read_sidecar(path + ".meta", labels, width);
  check_file(MappedFile(path), s);
  state_.reset(new State{{}, labels, static_cast<int64_t>(s.ef), nullptr});
  state_->space.width = width;
  try {
    state_->graph.reset(new Graph(&state_->space, path));
  } catch (const std::bad_alloc& e) {
    fail_machine("loading", e);
  } catch (const std::exception& e) {
    fail(Exit::input, "%s: expected a whole graph, found: %s; build the index again", path.c_str(), e.what());
  }
  state_->graph->num_deleted_ = 0;  // hnswlib 0.6.2 leaves it unset
  check_links(*state_->graph, s, path);
}

Ranked Hnsw::search(Vectors queries, int64_t k, Threads& threads) const {
  if (queries.width != state_->space.width)
    fail(Exit::input, "query vectors: expected width %d as the index has, found %d; encode both with one model",
         static_cast<int>(state_->space.width), static_cast<int>(queries.width));
  Ranked lists(queries.count, k);
  std::atomic<bool> failed = false;  // an exception must not leave a worker
  const int64_t asked = std::max(k, state_->ef);
  threads.each(queries.count, [&](int64_t q, int) {
    try {
      TopK best(k);
      for (auto found = state_->graph->searchKnn(queries.row(q), asked); !found.empty(); found.pop())
        if (std::isfinite(found.top().first)) best.offer(-found.top().first, found.top().second);
      best.take_into(lists, q);
    } catch (const std::exception&) {
      failed = true;
    }
  });
  if (failed) fail(Exit::machine, "HNSW index: searching failed; free memory or use the exact scan");
  return lists;
}

}  // namespace quest
