#include "train/task.h"

#include "sampling/import.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

// What is dropped before ranking: the query itself as a label and the filter's pairs, in the job's own numbers.
TEST(Task, DroppedLabels) {
  TemporaryFolder t;
  put_file(t / "in/Y.txt", "none\nalpha\nbeta\ngamma\n");
  put_file(t / "in/trn_X.txt", "one\ntwo\nthree\n");
  put_file(t / "in/trn_X_Y.txt", "3 4\n1:1\n2:1 3:1\n3:1\n");
  put_file(t / "in/tst_X.txt", "gamma\nfour\n");
  put_file(t / "in/tst_X_Y.txt", "2 4\n1:1\n2:1\n");
  put_file(t / "in/filter_labels_test.txt", "0 2\n0 0\n0 3\n1 1\n");
  import_dataset(t / "in", t / "out", {false, "", false});
  Settings s;
  s.min_positives = 1, s.validation = 0;  // "none" has no training query: it is no label of the job
  const Task task(s, open_dataset(t / "out"));
  ASSERT_EQ(task.labels, (std::vector<int32_t>{1, 2, 3}));
  ASSERT_EQ(task.test.queries.size(), 2u);
  const SparseRows dropped = task.test.dropped();
  EXPECT_EQ(std::vector<int32_t>(dropped.row(0).begin(), dropped.row(0).end()), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(std::vector<int32_t>(dropped.row(1).begin(), dropped.row(1).end()), std::vector<int32_t>{0});
  EXPECT_EQ(task.test.most_dropped(), 2);
  EXPECT_EQ(task.training.most_dropped(), 0);
}

}  // namespace
}  // namespace quest
