#include "train/select.h"

#include <algorithm>

#include "kernels/base/random.h"

namespace quest {

namespace {

uint64_t uid_hash(std::string_view uid) { return hash_bytes(uid.data(), uid.size()); }

bool keeps_label(const Split& split, int64_t query, const Selection& s) {
  const auto row = split.labels.row(query);
  return std::any_of(row.begin(), row.end(),
                     [&](int32_t l) { return s.number[static_cast<size_t>(l)] >= 0; });
}

}  // namespace

bool held_out(std::string_view uid, double share) {
  return static_cast<double>(uid_hash(uid) >> 11) * 0x1p-53 < share;
}

Selection select_job(const Dataset& data, const Settings& settings) {
  Selection s;
  std::vector<int64_t> positives(static_cast<size_t>(data.labels.size()));
  for (int64_t q = 0; q < data.train.texts.size(); ++q)
    for (const int32_t l : data.train.labels.row(q)) ++positives[static_cast<size_t>(l)];
  for (int32_t l = 0; l < data.labels.size(); ++l) {
    const bool text = !data.labels.title(l).empty() || !data.labels.content(l).empty();
    const int64_t count = positives[static_cast<size_t>(l)];
    s.number.push_back(text && count >= settings.min_positives ? static_cast<int32_t>(s.labels.size()) : -1);
    if (s.number.back() < 0) continue;
    s.labels.push_back(l);
    s.counts.push_back(count);
  }
  for (int32_t q = 0; q < data.train.texts.size(); ++q)
    if (keeps_label(data.train, q, s))
      (held_out(data.train.texts.uid(q), settings.validation) ? s.validation : s.training).push_back(q);
  for (int32_t q = 0; q < data.test.texts.size(); ++q)
    if (keeps_label(data.test, q, s)) s.test.push_back(q);
  const auto by_hash = [&](int32_t a, int32_t b) {
    const uint64_t x = uid_hash(data.test.texts.uid(a)), y = uid_hash(data.test.texts.uid(b));
    return x < y || (x == y && a < b);
  };
  if (settings.test_queries > 0 && static_cast<int64_t>(s.test.size()) > settings.test_queries) {
    std::sort(s.test.begin(), s.test.end(), by_hash);
    s.test.resize(static_cast<size_t>(settings.test_queries));
  }
  return s;
}

Truth truth_of(const Split& split, const std::vector<int32_t>& queries, const Selection& s) {
  Truth t;
  for (const int32_t q : queries) {
    for (const int32_t l : split.labels.row(q))
      if (const int32_t n = s.number[static_cast<size_t>(l)]; n >= 0) t.columns.push_back(n);
    t.offsets.push_back(static_cast<int64_t>(t.columns.size()));
  }
  return t;
}

std::vector<int32_t> own_labels(const Split& split, const std::vector<int32_t>& queries, const Selection& s) {
  std::vector<int32_t> own;
  for (const int32_t q : queries) {
    const int32_t l = split.own(q);
    own.push_back(l < 0 ? -1 : s.number[static_cast<size_t>(l)]);
  }
  return own;
}

}  // namespace quest
