#include "index/exact.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/threads.h"

namespace quest {

Ranked drop_own(const Ranked& lists, std::span<const int32_t> own, int64_t k) {
  Ranked out(lists.queries, k);
  for (int64_t i = 0; i < lists.queries * lists.k; ++i) {
    const int64_t query = i / lists.k;
    if (lists.ids[i] >= 0 && (own.empty() || lists.ids[i] != own[query]))
      out.offer(query, lists.scores[i], lists.ids[i]);
  }
  return out;
}

double list_recall(const Ranked& lists, const Ranked& exact) {
  double found = 0, wanted = 0;
  for (int64_t q = 0; q < exact.queries; ++q)
    for (const int32_t id : exact.row(q))
      if (id >= 0) wanted += 1, found += std::ranges::count(lists.row(q), id);
  return wanted > 0 ? 100 * found / wanted : 100;
}

void require_width(Vectors queries, int64_t width) {
  if (queries.width != width)
    fail(Exit::input,
         "query vectors: expected width %ld as the labels have, found %ld; use one model for both", width,
         queries.width);
}

Ranked exact_top_k(Vectors queries, Vectors labels, std::span<const uint8_t> allowed, int64_t k,
                   Threads& threads) {
  // A block of labels stays in the second-level cache while a block of queries passes over it.
  constexpr int64_t query_block = 16, label_block = 64;
  require_width(queries, labels.width);
  Ranked lists(queries.count, k);
  threads.each((queries.count + query_block - 1) / query_block, [&](int64_t item, int) {
    const int64_t first = item * query_block, end = std::min(first + query_block, queries.count);
    for (int64_t block = 0; block < labels.count; block += label_block)
      for (int64_t q = first; q < end; ++q)
        for (int64_t l = block; l < std::min(block + label_block, labels.count); ++l)
          if (allowed.empty() || allowed[l])
            lists.offer(q, dot(queries.row(q), labels.row(l), labels.width), static_cast<int32_t>(l));
  });
  return lists;
}

}  // namespace quest
