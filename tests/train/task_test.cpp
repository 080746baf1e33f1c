#include "train/task.h"

#include "sampling/import.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

// What is dropped before ranking: the query itself as a label and the filter's pairs, in the job's own
// numbers.
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
  EXPECT_EQ(task.test.most_dropped, 2);
  EXPECT_EQ(task.training.most_dropped, 0);
}

TEST(Task, TextsByTheirPattern) {
  EXPECT_EQ(join_text("t", "c"), "t. c");
  EXPECT_EQ(join_text("t", ""), "t");
  EXPECT_EQ(join_text("", "c"), "c");
  EXPECT_EQ(join_text("", ""), "");
  EXPECT_EQ(join_text("a. b", "{title}"), "a. b. {title}");  // what is filled in is not looked at again
  const Settings paper = preset_settings("paper"), authors = preset_settings("authors");
  EXPECT_EQ(join_text("A", "b", paper.query_text), "The title of the product is A. Its content is about b");
  EXPECT_EQ(join_text("A", "", paper.query_text), "The title of the product is A");
  EXPECT_EQ(join_text("A", "b", paper.label_text), "A");
  EXPECT_EQ(join_text("A", "", authors.query_text, true), "The title is A. The content is ");
  EXPECT_EQ(join_text("A", "b", "no place. {title}{content}!"), "no place. Ab!");
  EXPECT_EQ(join_text("A", "", "{title}: {content}"), "A: ");  // one of its places is filled
}

// The table of the README and of the paper, section 4.1.
TEST(Task, Presets) {
  const Settings d = preset_settings("default"), p = preset_settings("paper"), a = preset_settings("authors");
  EXPECT_EQ(d.rate, Settings().rate);
  EXPECT_EQ(p.placement, "prefix");
  EXPECT_EQ(p.pooling, "last");
  EXPECT_EQ(p.prompt_rows, 15);
  EXPECT_EQ(p.length, 64);
  EXPECT_EQ(p.quant, "nf4");
  EXPECT_EQ(p.ratio, 0.25);
  EXPECT_EQ(p.sampler, "paper");
  EXPECT_EQ(p.rate, 1e-3);
  EXPECT_EQ(p.decay, 0);
  EXPECT_EQ(p.clip, 0);
  EXPECT_TRUE(p.constant && p.unmasked && !p.symmetric && !p.centre && !p.keep_empty);
  EXPECT_EQ(p.batch, 18);
  EXPECT_EQ(p.epochs, 2);
  EXPECT_EQ(p.temperature, 0.05);
  EXPECT_EQ(a.prompt_rows, 20);
  EXPECT_EQ(a.decay, 0.01);
  EXPECT_EQ(a.sampler, "first-m");
  EXPECT_EQ(a.first, 4);
  EXPECT_TRUE(a.keep_empty);
}

}  // namespace
}  // namespace quest
