// A dataset: a folder of flat arrays that are mapped, not loaded. Queries with their labels (train, test),
// and labels.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/file.h"

namespace quest {

// Texts of one side: unique id, title, content of each row. Content may be empty; a row may be empty
// altogether.
class Texts {
 public:
  Texts() = default;
  Texts(const std::string& folder, const std::string& side);  // throws Error(input)
  int64_t size() const { return std::ssize(ends_.array<int64_t>()) / 3; }
  std::string_view uid(int64_t i) const { return part(3 * i); }
  std::string_view title(int64_t i) const { return part(3 * i + 1); }
  std::string_view content(int64_t i) const { return part(3 * i + 2); }

 private:
  std::string_view part(int64_t k) const;
  MappedFile bytes_, ends_;
};

// The labels of each query, ascending, distinct, in [0, number of labels); as sparse rows (CSR).
class Pairs {
 public:
  Pairs() = default;
  // Throws Error(input).
  Pairs(const std::string& folder, const std::string& side, int64_t rows, int64_t labels);
  int64_t rows() const { return std::ssize(offsets_.array<int64_t>()) - 1; }
  int64_t count() const { return std::ssize(columns_.array<int32_t>()); }
  int64_t begin(int64_t row) const { return offsets_.array<int64_t>()[row]; }
  std::span<const int32_t> row(int64_t i) const {
    return columns_.array<int32_t>().subspan(begin(i), begin(i + 1) - begin(i));
  }

 private:
  MappedFile offsets_, columns_;
};

struct Split {
  Texts texts;
  Pairs labels;
  MappedFile own_file;
  Pairs filter = {};
  // Labels that are never ranked for the query, by the dataset's filter file.
  std::span<const int32_t> filtered(int64_t query) const {
    return filter.rows() < 0 ? std::span<const int32_t>() : filter.row(query);
  }
  // The query as a label, or -1.
  int32_t own(int64_t query) const { return own_file.array<int32_t>()[query]; }
};

struct Dataset {
  std::string path, name, sha256;  // sha256 of what it was made from, as text in its meta.json
  Split train, test;
  Texts labels;
};

// Opens a folder made by import. Every offset and index is checked once; throws Error(input).
Dataset open_dataset(const std::string& folder);

}  // namespace quest
