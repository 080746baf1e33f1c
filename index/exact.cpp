#include "index/exact.h"

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "kernels/base/threads.h"

namespace quest {

Ranked drop_own(const Ranked& lists, std::span<const int32_t> own, int64_t k) {
  Ranked out(lists.queries, k);
  for (int64_t q = 0; q < lists.queries; ++q) {
    for (int64_t from = q * lists.k, to = q * k; from < (q + 1) * lists.k && to < (q + 1) * k; ++from) {
      if (!own.empty() && lists.ids[from] == own[q]) continue;
      out.ids[to] = lists.ids[from];
      out.scores[to++] = lists.scores[from];
    }
  }
  return out;
}

double list_recall(const Ranked& lists, const Ranked& exact) {
  double found = 0, wanted = 0;
  for (int64_t q = 0; q < exact.queries; ++q) {
    for (const int32_t id : exact.row(q)) {
      if (id < 0) continue;
      wanted += 1;
      found += std::ranges::count(lists.row(q), id);
    }
  }
  return wanted > 0 ? 100 * found / wanted : 100;
}

Ranked exact_top_k(Vectors queries, Vectors labels, std::span<const uint8_t> allowed, int64_t k,
                   Threads& threads, Progress* progress) {
  // A block of labels stays in the second-level cache while a block of queries passes over it.
  constexpr int64_t query_block = 16, label_block = 64, queries_a_report = 1024;
  if (queries.width != labels.width)
    fail(Exit::input, "query vectors: expected width %d as the labels have, found %d; use one model for both",
         static_cast<int>(labels.width), static_cast<int>(queries.width));
  Ranked lists(queries.count, k);
  std::vector<TopK> best;  // a block for each thread
  for (int64_t i = 0; i < threads.count() * query_block; ++i) best.emplace_back(k);
  const auto scan = [&](int64_t first, int64_t end, TopK* top) {
    for (int64_t block = 0; block < labels.count; block += label_block)
      for (int64_t q = first; q < end; ++q)
        for (int64_t l = block; l < std::min(block + label_block, labels.count); ++l)
          if (allowed.empty() || allowed[l])
            top[q - first].offer(dot(queries.row(q), labels.row(l), labels.width), static_cast<int32_t>(l));
    for (int64_t q = first; q < end; ++q) top[q - first].take_into(lists, q);
  };
  for (int64_t start = 0; start < queries.count; start += queries_a_report) {
    const int64_t stop = std::min(start + queries_a_report, queries.count);
    threads.each((stop - start + query_block - 1) / query_block, [&](int64_t item, int thread) {
      const int64_t first = start + item * query_block;
      scan(first, std::min(first + query_block, stop), best.data() + thread * query_block);
    });
    if (progress) progress->add(static_cast<double>(stop - start));
  }
  return lists;
}

}  // namespace quest
