// What of a dataset takes part in a job: labels, test queries, validation queries; and truth in the job's own
// label numbers (0 .. labels - 1, ascending in the dataset's).
#pragma once
#include <string>
#include <vector>

#include "index/ranked.h"
#include "sampling/dataset.h"
#include "train/settings.h"

namespace quest {

struct Selection {
  std::vector<int32_t> labels;  // [n] label of the dataset; those with a text and enough training positives
  std::vector<int32_t> number;  // [dataset labels] its place in `labels`, or -1
  std::vector<int64_t> counts;  // [n] training queries that have it
  std::vector<int32_t> test;    // test queries that keep a label, by smallest hash of their uid
  std::vector<int32_t> validation;  // training queries held out by hash of their uid
  std::vector<int32_t> training;    // the other training queries that keep a label
};

Selection select_job(const Dataset&, const Settings&);

bool held_out(std::string_view uid, double share);  // whether a training query belongs to validation

// Labels of some queries as job numbers.
struct Truth {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> columns;
  SparseRows view() const { return {offsets, columns}; }
};
Truth truth_of(const Split&, const std::vector<int32_t>& queries, const Selection&);
std::vector<int32_t> own_labels(const Split&, const std::vector<int32_t>& queries, const Selection&);

}  // namespace quest
