#include "sampling/dataset.h"

#include <cstring>
#include <vector>

#include "sampling/import.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

// Three labels, two train rows and a test row, with characters of several bytes.
class DatasetFolder : public testing::Test {
 protected:
  void SetUp() override {
    put_file(t / "raw/lbl.json", "{\"uid\":\"a\",\"title\":\"Älpha\"}\n{\"uid\":\"b\",\"title\":\"Beta\",\"content\":\"ß\"}\n"
                                 "{\"uid\":\"c\",\"title\":\"日本\"}\n");
    put_file(t / "raw/trn.json", "{\"uid\":\"b\",\"title\":\"été\",\"target_ind\":[0,2]}\n"
                                 "{\"uid\":\"y\",\"title\":\"two\",\"target_ind\":[1]}\n");
    put_file(t / "raw/tst.json", "{\"uid\":\"z\",\"title\":\"three\",\"content\":\"more\",\"target_ind\":[0,1,2]}\n");
    import_dataset(t / "raw", folder, {false, "", false});
  }

  // Replaces a file of the folder, and expects a sentence that names it and `part`; then puts it back.
  void expect_refused(const std::string& name, const std::string& bytes, const std::string& part) {
    SCOPED_TRACE(name);
    const std::string good = read_file(folder + "/" + name);
    ASSERT_NE(bytes, good);
    put_file(folder + "/" + name, bytes);
    const std::string sentence = sentence_of(Exit::input, [&] { open_dataset(folder); });
    expect_contains(sentence, part);
    EXPECT_NE(sentence.find("again"), sentence.npos) << sentence;
    put_file(folder + "/" + name, good);
  }

  template <class T>
  std::string edited(const std::string& name, size_t place, T value) {
    std::string bytes = read_file(folder + "/" + name);
    memcpy(bytes.data() + place * sizeof value, &value, sizeof value);
    return bytes;
  }

  TemporaryFolder t;
  const std::string folder = t / "set";
};

const char* const files[] = {"labels.text", "labels.ends", "train.text",  "train.ends", "train.offsets", "train.labels",
                             "train.own",   "test.text",   "test.ends",   "test.offsets", "test.labels", "test.own"};

TEST_F(DatasetFolder, OpensAndMoves) {
  Dataset set = open_dataset(folder);
  const Dataset moved = std::move(set);
  EXPECT_EQ(moved.name, "set");
  EXPECT_EQ(moved.path, folder);
  EXPECT_EQ(moved.sha256.size(), 64u);
  EXPECT_EQ(moved.labels.content(1), "ß");
  EXPECT_EQ(moved.train.texts.title(0), "été");
  EXPECT_EQ(moved.train.own(0), 1);
  EXPECT_EQ(moved.train.own(1), -1);
  EXPECT_EQ(moved.train.labels.rows(), 2);
  EXPECT_EQ(moved.train.labels.count(), 3);
  EXPECT_EQ(moved.train.labels.begin(1), 2);
  EXPECT_EQ(moved.test.labels.row(0)[2], 2);
}

TEST_F(DatasetFolder, EveryFileTruncatedLengthenedOrMissing) {
  for (const std::string name : files) {
    const std::string good = read_file(folder + "/" + name), path = folder + "/" + name;
    for (size_t size = 0; size < good.size(); ++size) {
      SCOPED_TRACE(size);
      put_file(path, good.substr(0, size));
      // A shorter list of ends or of own labels is told by the counts of another file or of meta.json.
      sentence_of(Exit::input, [&] { open_dataset(folder); });
    }
    expect_refused(name, good + good, "expected");
    expect_refused(name, good + "x", "again");
    std::filesystem::remove(path);
    expect_contains(sentence_of(Exit::input, [&] { open_dataset(folder); }), path);
    put_file(path, good);
  }
  EXPECT_EQ(open_dataset(folder).labels.size(), 3);
}

TEST_F(DatasetFolder, WrongTexts) {
  for (const std::string side : {"labels", "train", "test"}) {
    const std::string text = side + ".text", ends = side + ".ends", path = folder + "/" + ends;
    expect_refused(text, edited<unsigned char>(text, 0, 0xff), text + ": the dataset is damaged: not UTF-8");
    expect_refused(ends, edited<int64_t>(ends, 0, -1), ends);
    expect_refused(ends, edited<int64_t>(ends, 1, 0), "expected 1 to");
    expect_refused(ends, edited<int64_t>(ends, 1, int64_t{1} << 62), "found 4611686018427387904");
  }
  expect_refused("labels.ends", edited<int64_t>("labels.ends", 0, 2), "the end 2 cuts a character in two");
}

TEST_F(DatasetFolder, WrongPairs) {
  expect_refused("train.offsets", edited<int64_t>("train.offsets", 0, 1), "first offset: expected 0 to 0, found 1");
  expect_refused("train.offsets", edited<int64_t>("train.offsets", 1, -2), "offset: expected 0 to 3, found -2");
  expect_refused("train.offsets", edited<int64_t>("train.offsets", 1, 4), "offset: expected 0 to 3, found 4");
  expect_refused("train.offsets", edited<int64_t>("train.offsets", 2, 2), "pairs: expected 2 to 2, found 3");
  expect_refused("train.labels", edited<int32_t>("train.labels", 0, -1), "label: expected 0 to 2, found -1");
  expect_refused("train.labels", edited<int32_t>("train.labels", 1, 3), "label: expected 1 to 2, found 3");
  expect_refused("train.labels", edited<int32_t>("train.labels", 1, 0), "label: expected 1 to 2, found 0");  // twice
  expect_refused("test.labels", edited<int32_t>("test.labels", 0, 2), "label: expected 3 to 2, found 1");
  expect_refused("train.own", edited<int32_t>("train.own", 0, 3), "own label: expected -1 to 2, found 3");
  expect_refused("test.own", edited<int32_t>("test.own", 0, -2), "own label: expected -1 to 2, found -2");
}

TEST_F(DatasetFolder, WrongMeta) {
  const std::string meta = read_file(folder + "/meta.json");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = meta;
    const size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    return text.replace(at, from.size(), to);
  };
  expect_refused("meta.json", "", "not valid JSON");
  expect_refused("meta.json", meta.substr(0, meta.size() / 2), "not valid JSON");
  expect_refused("meta.json", "[]", "the field \"format\" is missing or of a wrong type");
  expect_refused("meta.json", with("quest dataset 1", "quest dataset 2"), "expected quest dataset 1");
  expect_refused("meta.json", with("\"name\": \"set\"", "\"name\": 3"), "the field \"name\"");
  expect_refused("meta.json", with("sha256", "sha1"), "the field \"sha256\"");
  expect_refused("meta.json", with("\"labels\": 3", "\"labels\": 3.0"), "the field \"labels\"");
  expect_refused("meta.json", with("\"labels\": 3", "\"labels\": 4"), "labels: expected 3 to 3, found 4");
  expect_refused("meta.json", with("\"train\": 2", "\"train\": 1"), "train: expected 2 to 2, found 1");
  expect_refused("meta.json", with("\"test\": 1", "\"test\": 0"), "test: expected 1 to 1, found 0");
  expect_refused("meta.json", with("\"train_pairs\": 3", "\"train_pairs\": 5"), "train_pairs: expected 3 to 3");
  expect_refused("meta.json", with("\"test_pairs\": 3", "\"test_pairs\": -3"), "test_pairs: expected 3 to 3");
  std::filesystem::remove(folder + "/meta.json");
  expect_contains(sentence_of(Exit::input, [&] { open_dataset(folder); }), "found no meta.json");
  expect_contains(sentence_of(Exit::input, [&] { open_dataset(t / "absent"); }), "found no meta.json");
}

// A test side without rows is a dataset too: a small TSV file may have no row that hashes to it.
TEST(Dataset, EmptySide) {
  TemporaryFolder t;
  ASSERT_FALSE(goes_to_test("a"));
  put_file(t / "in.tsv", "a\tl\n");
  import_dataset(t / "in.tsv", t / "set", {false, "", false});
  const Dataset set = open_dataset(t / "set");
  EXPECT_EQ(set.train.texts.size(), 1);
  EXPECT_EQ(set.test.texts.size(), 0);
  EXPECT_EQ(set.test.labels.rows(), 0);
  EXPECT_EQ(set.test.labels.count(), 0);
}

}  // namespace
}  // namespace quest
