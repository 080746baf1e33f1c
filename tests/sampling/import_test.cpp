#include "sampling/import.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "kernels/base/hash.h"
#include "sampling/dataset.h"
#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

namespace fs = std::filesystem;

const ImportOptions strict{false, "", false}, lenient{true, "", false};

std::vector<int32_t> labels_of(const Split& split, int64_t i) {
  const auto row = split.labels.row(i);
  return {row.begin(), row.end()};
}

using Numbers = std::vector<int32_t>;

const char good_lbl[] = "{\"uid\": \"a\", \"title\": \"Alpha\", \"content\": \"first\"}\n"
                        "{\"uid\": \"b\", \"title\": \"Bêta\\n\\u00e9\\ud83d\\ude00\"}\n"
                        "{\"title\": \"\", \"uid\": \"c\", \"content\": \"\", \"extra\": [1, {}]}\n";
const char good_trn[] = "{\"uid\": \"x\", \"title\": \"nul \\u0000 in\", \"content\": \"tab\\t\", \"target_ind\": "
                        "[2, 0, 2], \"target_rel\": [1.0, 1, 0.5]}\n"
                        "{\"uid\": \"b\", \"title\": \"日本語\", \"content\": \"\", \"target_ind\": []}\n";
const char good_tst[] = "{\"uid\": \"c\", \"title\": \"t\", \"content\": \"u\", \"target_ind\": [1]}";  // no newline

void put_raw(const std::string& folder, const std::string& lbl = good_lbl, const std::string& trn = good_trn,
             const std::string& tst = good_tst) {
  put_file(folder + "/lbl.json", lbl);
  put_file(folder + "/trn.json", trn);
  put_file(folder + "/tst.json", tst);
}

void expect_good(const Dataset& set) {
  ASSERT_EQ(set.labels.size(), 3);
  ASSERT_EQ(set.train.texts.size(), 2);
  ASSERT_EQ(set.test.texts.size(), 1);
  EXPECT_EQ(set.labels.uid(0), "a");
  EXPECT_EQ(set.labels.title(0), "Alpha");
  EXPECT_EQ(set.labels.content(0), "first");
  EXPECT_EQ(set.labels.title(1), "Bêta\né😀");
  EXPECT_EQ(set.labels.content(1), "");
  EXPECT_EQ(set.labels.uid(2), "c");
  EXPECT_EQ(set.labels.title(2), "");
  EXPECT_EQ(set.train.texts.uid(0), "x");
  EXPECT_EQ(set.train.texts.title(0), std::string_view("nul \0 in", 8));
  EXPECT_EQ(set.train.texts.content(0), "tab\t");
  EXPECT_EQ(set.train.texts.title(1), "日本語");
  EXPECT_EQ(set.train.texts.content(1), "");
  EXPECT_EQ(set.test.texts.content(0), "u");
  EXPECT_EQ(labels_of(set.train, 0), (Numbers{0, 2}));
  EXPECT_EQ(labels_of(set.train, 1), Numbers{});
  EXPECT_EQ(labels_of(set.test, 0), Numbers{1});
  EXPECT_EQ(set.train.own(0), -1);
  EXPECT_EQ(set.train.own(1), 1);
  EXPECT_EQ(set.test.own(0), 2);
}

// Nothing stays of a failed import into `folder`.
void expect_nothing_left(const std::string& folder) {
  EXPECT_FALSE(exists(folder));
  EXPECT_FALSE(exists(folder + ".tmp"));
}

TEST(Import, RawRoundTrip) {
  TemporaryFolder t;
  put_raw(t / "raw");
  const ImportSummary done = import_dataset(t / "raw", t / "sets/one/", strict);
  EXPECT_EQ(done.train, 2);
  EXPECT_EQ(done.test, 1);
  EXPECT_EQ(done.labels, 3);
  EXPECT_EQ(done.train_pairs, 2);
  EXPECT_EQ(done.test_pairs, 1);
  EXPECT_EQ(done.bad_lines, 0);
  const Dataset set = open_dataset(t / "sets/one");
  expect_good(set);
  EXPECT_EQ(set.name, "one");
  EXPECT_EQ(set.sha256, sha256_hex(std::string(good_lbl) + good_trn + good_tst));
  EXPECT_EQ(std::distance(fs::directory_iterator(t / "sets/one"), fs::directory_iterator()), 13);
  for (const auto& entry : fs::directory_iterator(t / "sets/one")) EXPECT_NE(entry.path().extension(), ".tmp");
}

TEST(Import, GzipByteOrderMarkAndCarriageReturns) {
  TemporaryFolder t;
  std::string trn = std::string("\xef\xbb\xbf") + good_trn;
  for (size_t at = 0; (at = trn.find('\n', at)) != trn.npos; at += 2) trn.insert(at, 1, '\r');
  put_gzip(t / "raw/lbl.json.gz", good_lbl);
  put_file(t / "raw/trn.json", trn);
  put_gzip(t / "raw/tst.json.gz", good_tst);
  import_dataset(t / "raw", t / "out", {false, "a name", false});
  expect_good(open_dataset(t / "out"));
  EXPECT_EQ(open_dataset(t / "out").name, "a name");
}

TEST(Import, FirstOfEqualUidsIsTheOwnLabel) {
  TemporaryFolder t;
  const std::string row = "{\"uid\": \"s\", \"title\": \"s\", \"content\": \"\"}\n";
  put_raw(t / "raw", "{\"uid\": \"r\", \"title\": \"r\"}\n" + row + row,
          "{\"uid\":\"s\",\"title\":\"\",\"target_ind\":[1]}", "{\"uid\":\"\",\"title\":\"\",\"target_ind\":[2]}");
  import_dataset(t / "raw", t / "out", strict);
  EXPECT_EQ(open_dataset(t / "out").train.own(0), 1);  // although it is a target: the raw format's protocol
  EXPECT_EQ(open_dataset(t / "out").test.own(0), -1);
}

struct BadLine {
  const char *line, *what;
};

const BadLine bad_anywhere[] = {
    {"", "empty line"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": []", "not a valid JSON object"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": []} {}", "not a valid JSON object"},
    {"[\"uid\"]", "not a valid JSON object"},
    {"plain text", "not a valid JSON object"},
    {"{\"uid\": \"q\", \"title\": \"caf\xe9\", \"target_ind\": []}", "not UTF-8"},
    {"{\"uid\": \"q\", \"title\": \"\\ud800\", \"target_ind\": []}", ""},
    {"{\"uid\": \"q\", \"title\": \"\\udc00x\", \"target_ind\": []}", ""},
    {"{\"uid\": \"q\", \"target_ind\": []}", "title is missing"},
    {"{\"title\": \"q\", \"target_ind\": []}", "uid is missing"},
    {"{\"uid\": 7, \"title\": \"t\", \"target_ind\": []}", "uid is not a string"},
    {"{\"uid\": \"q\", \"title\": null, \"target_ind\": []}", "title is not a string"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"content\": [], \"target_ind\": []}", "content is not a string"},
};

const BadLine bad_query[] = {
    {"{\"uid\": \"q\", \"title\": \"t\"}", "target_ind is missing"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": 1}", "target_ind is not a list"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [3]}", "target_ind holds 3, expected 0 to 2"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1, -1]}", "target_ind holds -1, expected 0 to 2"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [4294967296]}", "target_ind holds 4294967296"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1.0]}", "target_ind holds something that is not a line number"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [\"1\"]}", "target_ind holds something that is not a line number"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [18446744073709551615]}", "target_ind holds something that is not a line number"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1], \"target_rel\": 1}", "target_rel is not a list"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1], \"target_rel\": [\"1\"]}", "target_rel holds something that is not a number"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1], \"target_rel\": []}",
     "target_rel has 0 values, target_ind 1"},
    {"{\"uid\": \"q\", \"title\": \"t\", \"target_ind\": [1], \"target_rel\": [1.0, 1.0]}",
     "target_rel has 2 values, target_ind 1"},
};

// The good files with `lines` put after the first line of `side`.
void put_raw_with(const std::string& folder, const std::string& side, const std::vector<BadLine>& lines) {
  std::string files[3] = {good_lbl, good_trn, std::string(good_tst) + "\n"}, bad;
  for (const BadLine& line : lines) (bad += line.line) += "\n";
  std::string& file = files[side == "lbl" ? 0 : side == "trn" ? 1 : 2];
  file.insert(file.find('\n') + 1, bad);
  put_raw(folder, files[0], files[1], files[2]);
}

class MalformedLines : public testing::TestWithParam<const char*> {
 protected:
  MalformedLines() : side(GetParam()), lines(std::begin(bad_anywhere), std::end(bad_anywhere)) {
    if (side != "lbl") lines.insert(lines.end(), std::begin(bad_query), std::end(bad_query));
  }
  const std::string side;
  std::vector<BadLine> lines;
  TemporaryFolder t;
};

TEST_P(MalformedLines, EachIsRefusedByNumber) {
  for (const BadLine& bad : lines) {
    SCOPED_TRACE(bad.line);
    put_raw_with(t / "raw", side, {bad});
    const auto sentence = sentence_of(Exit::input, [&] { import_dataset(t / "raw", t / "out", strict); });
    expect_contains(sentence, "malformed lines, 1 in all: " + t / ("raw/" + side + ".json:2: " + bad.what));
    expect_nothing_left(t / "out");
  }
}

TEST_P(MalformedLines, SkippedOnesKeepTheirNumbers) {
  put_raw_with(t / "raw", side, lines);
  const int64_t bad = static_cast<int64_t>(lines.size());
  const ImportSummary done = import_dataset(t / "raw", t / "out", lenient);
  EXPECT_EQ(done.bad_lines, bad);
  ASSERT_EQ(done.bad.size(), 10u);
  for (size_t i = 0; i < 10; ++i)
    expect_contains(done.bad[i], t / ("raw/" + side + ".json:" + std::to_string(i + 2) + ": " + lines[i].what));

  const Dataset set = open_dataset(t / "out");
  const Texts& texts = side == "lbl" ? set.labels : side == "trn" ? set.train.texts : set.test.texts;
  ASSERT_EQ(texts.size(), bad + (side == "lbl" ? 3 : side == "trn" ? 2 : 1));
  EXPECT_EQ(texts.uid(0), side == "lbl" ? "a" : side == "trn" ? "x" : "c");
  for (int64_t i = 1; i <= bad; ++i) {
    SCOPED_TRACE(lines[static_cast<size_t>(i) - 1].line);
    EXPECT_EQ(texts.uid(i).size() + texts.title(i).size() + texts.content(i).size(), 0u);
    if (side == "lbl") continue;
    const Split& split = side == "trn" ? set.train : set.test;
    EXPECT_EQ(split.own(i), -1);
    EXPECT_EQ(labels_of(split, i), Numbers{});
  }
  if (side != "tst") {
    EXPECT_EQ(texts.uid(bad + 1), "b");
  }
}

INSTANTIATE_TEST_SUITE_P(Import, MalformedLines, testing::Values("lbl", "trn", "tst"));

TEST(Import, SkippedRowsAreNotTheirOwnSkippedLabel) {
  TemporaryFolder t;
  put_raw(t / "raw", std::string("?\n") + good_lbl, std::string("?\n") + good_trn);
  import_dataset(t / "raw", t / "out", lenient);
  EXPECT_EQ(open_dataset(t / "out").train.own(0), -1);
}

TEST(Import, BadLinesAreCountedAndTheFirstNamed) {
  TemporaryFolder t;
  std::string trn;
  for (int i = 1; i <= 30; ++i) trn += i % 2 ? "{\"uid\":\"u\",\"title\":\"t\",\"target_ind\":[0]}\n" : "?\n";
  put_raw(t / "raw", good_lbl, trn, "!\n");
  const auto sentence = sentence_of(Exit::input, [&] { import_dataset(t / "raw", t / "out", strict); });
  expect_contains(sentence, "16 in all");
  expect_contains(sentence, "trn.json:10: ");
  EXPECT_EQ(sentence.find("trn.json:12: "), sentence.npos);
  const ImportSummary done = import_dataset(t / "raw", t / "out", lenient);
  EXPECT_EQ(done.bad_lines, 16);
  EXPECT_EQ(done.bad.size(), 10u);
  EXPECT_EQ(done.train, 30);
  EXPECT_EQ(done.train_pairs, 15);
  expect_contains(read_file(t / "out/meta.json"), "\"bad_lines\": 16");
}

TEST(Import, VeryLongLines) {
  TemporaryFolder t;
  const std::string head = "{\"uid\":\"u\",\"target_ind\":[0],\"title\":\"", tail = "\"}\n";
  const std::string fits(6 << 20, 'x'), too_long(17 << 20, 'y');
  put_raw(t / "raw", good_lbl, head + fits + tail + head + too_long + tail + head + "z" + tail);
  const auto sentence = sentence_of(Exit::input, [&] { import_dataset(t / "raw", t / "out", strict); });
  expect_contains(sentence, "trn.json:2: longer than 16777216 bytes");
  import_dataset(t / "raw", t / "out", lenient);
  const Dataset set = open_dataset(t / "out");
  ASSERT_EQ(set.train.texts.size(), 3);
  EXPECT_TRUE(set.train.texts.title(0) == fits);
  EXPECT_EQ(set.train.texts.title(1), "");
  EXPECT_EQ(set.train.texts.title(2), "z");
  EXPECT_EQ(labels_of(set.train, 1), Numbers{});
}

TEST(Import, DeepNestingIsMalformed) {
  TemporaryFolder t;
  put_raw(t / "raw", good_lbl, std::string(100000, '[') + "\n");
  expect_contains(sentence_of(Exit::input, [&] { import_dataset(t / "raw", t / "out", strict); }), "trn.json:1:");
}

// Damage to a gzipped file is one clear sentence, and nothing stays, whatever skip_bad says.
TEST(Import, DamagedGzip) {
  TemporaryFolder t;
  std::string trn;
  for (int i = 0; i < 5000; ++i)
    trn += "{\"uid\":\"" + sha1_hex(std::to_string(i)) + "\",\"title\":\"t\",\"target_ind\":[0]}\n";
  put_file(t / "raw/lbl.json", good_lbl);
  put_file(t / "raw/tst.json", good_tst);
  put_gzip(t / "raw/trn.json.gz", trn);
  const std::string whole = read_file(t / "raw/trn.json.gz");
  import_dataset(t / "raw", t / "whole", strict);

  std::vector<std::string> damaged;
  for (const size_t lost : {size_t{1}, size_t{4}, size_t{8}, whole.size() / 2, whole.size() - 11, whole.size() - 1})
    damaged.push_back(whole.substr(0, whole.size() - lost));
  damaged.push_back(whole);
  damaged.back()[whole.size() - 6] ^= 1;  // the check sum
  damaged.push_back(whole);
  damaged.back()[whole.size() / 2] ^= 0x40;
  damaged.push_back("{\"uid\":\"u\",\"title\":\"t\",\"target_ind\":[0]}\n");
  for (const auto& bytes : damaged) {
    SCOPED_TRACE(bytes.size());
    put_file(t / "raw/trn.json.gz", bytes);
    const auto sentence = sentence_of(Exit::input, [&] { import_dataset(t / "raw", t / "out", lenient); });
    expect_contains(sentence, "trn.json.gz");
    expect_contains(sentence, "gzip");
    expect_nothing_left(t / "out");
  }
}

TEST(Import, MissingEmptyAndAmbiguousFiles) {
  TemporaryFolder t;
  const auto refused = [&](const std::string& source, const std::string& part) {
    expect_contains(sentence_of(Exit::input, [&] { import_dataset(source, t / "out", lenient); }), part);
    expect_nothing_left(t / "out");
  };
  refused(t / "absent", "absent: expected a readable file");
  for (const char* side : {"lbl", "trn", "tst"}) {
    put_raw(t / "raw");
    fs::remove(t / (std::string("raw/") + side + ".json"));
    refused(t / "raw", std::string(side) + ".json: expected one such file");
    put_file(t / (std::string("raw/") + side + ".json"), "");
    refused(t / "raw", std::string(side) + ".json: expected a row a line, found an empty file");
  }
  put_raw(t / "raw");
  put_gzip(t / "raw/trn.json.gz", good_trn);
  refused(t / "raw", "trn.json.gz too");
  fs::remove(t / "raw/trn.json.gz");
  fs::create_directory(t / "out");
  expect_contains(sentence_of(Exit::usage, [&] { import_dataset(t / "raw", t / "out", strict); }), "exists already");
}

TEST(Import, Tsv) {
  TemporaryFolder t;
  // goes_to_test: SHA-1("a") begins 86f7e437 = 2264392759, 4 mod 5; the others by the same rule, checked below.
  std::string text = "\xef\xbb\xbf" "first text\tred\tblue\r\n"
                     "green\tred\t\tred\t\r\n"         // named like the label `green` that line 3 brings
                     "blue\tblue\tgreen\n"             // named like its own label: a target, so not dropped
                     "日本\tgreen";
  for (const bool gzipped : {false, true}) {
    const std::string out = t / (gzipped ? "z" : "p"), source = out + ".tsv" + (gzipped ? ".gz" : "");
    gzipped ? put_gzip(source, text) : put_file(source, text);
    const ImportSummary done = import_dataset(source, out, strict);
    EXPECT_EQ(done.labels, 3);
    EXPECT_EQ(done.train + done.test, 4);
    EXPECT_EQ(done.train_pairs + done.test_pairs, 6);
    const Dataset set = open_dataset(out);
    EXPECT_EQ(set.labels.uid(0), "red");
    EXPECT_EQ(set.labels.title(1), "blue");
    EXPECT_EQ(set.labels.uid(2), "green");
    const struct {
      const char *uid, *title;
      Numbers labels;
      int32_t own;
    } expected[] = {
        {"1", "first text", {0, 1}, -1}, {"2", "green", {0}, 2}, {"3", "blue", {1, 2}, -1}, {"4", "日本", {2}, -1}};
    int64_t at[2] = {0, 0};
    for (const auto& row : expected) {
      SCOPED_TRACE(row.title);
      const bool test = std::stoul(sha1_hex(row.title).substr(0, 8), nullptr, 16) % 5 == 0;
      const Split& split = test ? set.test : set.train;
      const int64_t i = at[test]++;
      ASSERT_LT(i, split.texts.size());
      EXPECT_EQ(split.texts.uid(i), row.uid);
      EXPECT_EQ(split.texts.title(i), row.title);
      EXPECT_EQ(split.texts.content(i), "");
      EXPECT_EQ(labels_of(split, i), row.labels);
      EXPECT_EQ(split.own(i), row.own);
    }
  }
}

TEST(Import, MalformedTsvLines) {
  const BadLine bad_lines[] = {{"", "empty line"},
                               {"no label here", "no tab and label"},
                               {"text\t\t", "no tab and label"},
                               {"\tlabel", "the text before the first tab is empty"},
                               {"caf\xe9\tnew", "not UTF-8"},
                               {"text\tcaf\xe9", "not UTF-8"}};
  for (const BadLine& bad : bad_lines) {
    SCOPED_TRACE(bad.line);
    TemporaryFolder t;
    put_file(t / "in.tsv", "one\tl\n" + std::string(bad.line) + "\ntwo\tl\tm\n");
    const auto sentence = sentence_of(Exit::input, [&] { import_dataset(t / "in.tsv", t / "out", strict); });
    expect_contains(sentence, t / ("in.tsv:2: " + std::string(bad.what)));
    expect_nothing_left(t / "out");
    const ImportSummary done = import_dataset(t / "in.tsv", t / "out", lenient);
    EXPECT_EQ(done.bad_lines, 1);
    EXPECT_EQ(done.labels, 2);  // nothing of the bad line became a label
    EXPECT_EQ(done.train + done.test, 3);
    EXPECT_EQ(done.train_pairs + done.test_pairs, 3);
  }
}

// ---- the sparse format, filter files, JSON lines

void put_sparse(const std::string& folder) {
  put_file(folder + "/Y.txt", "Alpha\nBeta\nGamma\n");
  put_file(folder + "/trn_X.txt", "first\nBeta\nthird\n");
  put_file(folder + "/trn_X_Y.txt", "3 3\n2:1.00000 0:0.5\n\n1:1\n");
  put_gzip(folder + "/tst_X.txt.gz", "Gamma\nAlpha\n");
  put_gzip(folder + "/tst_X_Y.txt.gz", "2 3\n0:1.0 1:1.0\n0:1.0\n");
}

TEST(Import, Sparse) {
  TemporaryFolder t;
  put_sparse(t / "in");
  const ImportSummary done = import_dataset(t / "in", t / "out", strict);
  EXPECT_EQ(done.labels, 3);
  EXPECT_EQ(done.train_pairs, 3);
  EXPECT_EQ(done.test_pairs, 3);
  const Dataset set = open_dataset(t / "out");
  EXPECT_EQ(set.labels.title(1), "Beta");
  EXPECT_EQ(set.labels.uid(1), "1");
  EXPECT_EQ(set.train.texts.title(2), "third");
  EXPECT_EQ(labels_of(set.train, 0), (Numbers{0, 2}));
  EXPECT_EQ(labels_of(set.train, 1), Numbers{});
  EXPECT_EQ(labels_of(set.train, 2), Numbers{1});
  EXPECT_EQ(set.train.own(1), 1);  // named like it
  EXPECT_EQ(set.test.own(0), 2);
  EXPECT_EQ(set.test.own(1), -1);  // the query lists it
  EXPECT_TRUE(set.test.filtered(0).empty());
}

TEST(Import, SparseFilesThatDoNotFit) {
  const auto refused = [](const char* file, const char* text, const char* part) {
    TemporaryFolder t;
    put_sparse(t / "in");
    put_file(t / (std::string("in/") + file), text);
    expect_contains(sentence_of(Exit::input, [&] { import_dataset(t / "in", t / "out", strict); }), part);
    expect_nothing_left(t / "out");
  };
  refused("trn_X_Y.txt", "", "trn_X_Y.txt:1: expected the numbers of rows and of labels");
  refused("trn_X_Y.txt", "3\n", "trn_X_Y.txt:1");
  refused("trn_X_Y.txt", "3 4\n0:1\n0:1\n0:1\n", "trn_X_Y.txt:1");
  refused("trn_X_Y.txt", "2 3\n0:1\n0:1\n0:1\n", "found 3 texts");
  refused("trn_X_Y.txt", "3 3\n0:1\n0:1\n", "2 lines");
  refused("trn_X_Y.txt", "3 3\n0:1\n0:1\n0:1\n0:1\n", "4 lines");
  for (const char* bad : {"0", "x:1", "0:", "0:x", "0:1x", "0 :1", ":1", "3:1", "-1:1", "99999999999999999999:1"})
    refused("trn_X_Y.txt", ("3 3\n0:1\n0:1 " + std::string(bad) + "\n0:1\n").c_str(), "trn_X.txt:2: line 3 of ");
  refused("trn_X.txt", "first\n\nthird\n", "trn_X.txt:2: empty line");
  refused("trn_X.txt", "first\nsecond\n", "found 2 texts");
  refused("Y.txt", "Alpha\n\xff\nGamma\n", "Y.txt:2: not UTF-8");
  refused("tst_X.txt", "too\n", "tst_X.txt.gz too");
}

TEST(Import, SkippedSparseLinesKeepTheirNumbers) {
  TemporaryFolder t;
  put_sparse(t / "in");
  put_file(t / "in/trn_X.txt", "first\n\nthird\n");
  put_file(t / "in/trn_X_Y.txt", "3 3\n7:1\n2:1\n1:1\n");
  put_file(t / "in/filter_labels_train.txt", "2 0\n");
  const ImportSummary done = import_dataset(t / "in", t / "out", lenient);
  EXPECT_EQ(done.bad_lines, 2);
  const Dataset set = open_dataset(t / "out");
  EXPECT_EQ(set.train.texts.title(0), "");
  EXPECT_EQ(labels_of(set.train, 1), Numbers{});
  EXPECT_EQ(set.train.texts.title(2), "third");
  EXPECT_EQ(labels_of(set.train, 2), Numbers{1});
  EXPECT_EQ(set.train.filtered(2)[0], 0);
}

TEST(Import, FilterFiles) {
  for (const char* name : {"filter_labels_test.txt", "tst_filter_labels.txt", "tst_filter_labels.txt.gz"}) {
    TemporaryFolder t;
    put_raw(t / "in");
    const std::string text = "0 2\n0 0\n0 2\n";
    if (std::string(name).ends_with(".gz")) put_gzip(t / (std::string("in/") + name), text);
    else put_file(t / (std::string("in/") + name), text);
    put_file(t / "in/trn_filter_labels.txt", "");  // as of the Wikipedia sets
    import_dataset(t / "in", t / "out", strict);
    const Dataset set = open_dataset(t / "out");
    const auto row = set.test.filtered(0);
    EXPECT_EQ(Numbers(row.begin(), row.end()), (Numbers{0, 2})) << name;
    EXPECT_TRUE(set.train.filtered(1).empty());
  }
  for (const char* bad : {"0", "0 x", "1 0", "0 3", "-1 0", "0 0 0", "x 0"}) {
    TemporaryFolder t;
    put_raw(t / "in");
    put_file(t / "in/filter_labels_test.txt", "0 0\n" + std::string(bad) + "\n0 1\n");
    expect_contains(sentence_of(Exit::input, [&] { import_dataset(t / "in", t / "out", strict); }),
                    "filter_labels_test.txt:2: ");
    EXPECT_EQ(import_dataset(t / "in", t / "out", lenient).bad_lines, 1);
    EXPECT_EQ(open_dataset(t / "out").test.filtered(0).size(), 2u);
  }
}

TEST(Import, JsonLines) {
  TemporaryFolder t;
  put_gzip(t / "in.jsonl.gz", "{\"title\": \"one\", \"content\": \"more\", \"labels\": [\"l\", \"m\", \"l\"]}\n"
                              "{\"text\": \"m\", \"uid\": \"u2\", \"labels\": [\"n\"]}\n");
  const ImportSummary done = import_dataset(t / "in.jsonl.gz", t / "out", strict);
  EXPECT_EQ(done.labels, 3);
  EXPECT_EQ(done.train + done.test, 2);
  const Dataset set = open_dataset(t / "out");
  const Split& first = goes_to_test("one") ? set.test : set.train;
  EXPECT_EQ(first.texts.content(0), "more");
  EXPECT_EQ(first.texts.uid(0), "1");
  EXPECT_EQ(labels_of(first, 0), (Numbers{0, 1}));
  const Split& second = goes_to_test("m") ? set.test : set.train;
  EXPECT_EQ(second.texts.uid(second.texts.size() - 1), "u2");
  EXPECT_EQ(second.own(second.texts.size() - 1), 1);
  const BadLine bad_lines[] = {{"[]", "not a valid JSON object"},
                               {"{\"labels\": [\"l\"]}", "text is missing"},
                               {"{\"title\": 7, \"labels\": [\"l\"]}", "title is not a string"},
                               {"{\"title\": \"x\"}", "labels is missing"},
                               {"{\"title\": \"x\", \"labels\": \"l\"}", "labels is not a list"},
                               {"{\"title\": \"x\", \"labels\": [\"new\", 7]}", "not a name"},
                               {"{\"title\": \"x\", \"labels\": [\"\"]}", "not a name"},
                               {"{\"title\": \"x\", \"labels\": []}", "no label"},
                               {"{\"title\": \"\", \"labels\": [\"l\"]}", "no text"}};
  for (const BadLine& bad : bad_lines) {
    SCOPED_TRACE(bad.line);
    TemporaryFolder u;
    put_file(u / "in.jsonl", "{\"title\": \"one\", \"labels\": [\"l\"]}\n" + std::string(bad.line) + "\n");
    expect_contains(sentence_of(Exit::input, [&] { import_dataset(u / "in.jsonl", u / "out", strict); }),
                    u / "in.jsonl:2: ");
    expect_contains(sentence_of(Exit::input, [&] { import_dataset(u / "in.jsonl", u / "out", strict); }), bad.what);
    EXPECT_EQ(import_dataset(u / "in.jsonl", u / "out", lenient).labels, 1);  // nothing of the bad line became one
  }
}

TEST(Import, SplitRule) {
  EXPECT_FALSE(goes_to_test("a"));       // SHA-1 86f7e437...: 2264392759, 4 modulo 5
  EXPECT_TRUE(goes_to_test("4ti2-doc"));  // test and train rows of the default dataset
  EXPECT_TRUE(goes_to_test("7kaa-data"));
  EXPECT_FALSE(goes_to_test("0ad-data"));
}

TEST(DebianIndex, Stanzas) {
  TemporaryFolder t;
  const std::string stanzas =
      "Package: zeta\nVersion: 1\nDescription: the last\n long text\n .\n"
      "Recommends: alpha (>= 1:2.0) | beta:any, gone,\n"
      " gamma [amd64]\nSuggests: zeta, beta <!nocheck>\n\n\n"
      "Package: beta\nDescription-md5: 0123\nDescription-en: a translated one\n more\nDepends: alpha\n\n"
      "Package: zeta\nDescription: the second is not read\nRecommends: delta\n\n"
      "Package: 4ti2-doc\nRecommends: alpha\n\n"
      "Package: delta\nDescription: caf\xe9\nEnhances: alpha\nSuggests:gamma\nTag: x,\n zeta\n\n"
      "Package: alpha\nDescription: größte\n\nPackage: gamma\nDescription: unused: colon";  // no newline at the end
  const ImportSummary done = import_debian_index(stanzas, t / "out", strict);
  EXPECT_EQ(done.labels, 3);
  const Dataset set = open_dataset(t / "out");
  EXPECT_EQ(set.sha256, sha256_hex(stanzas));
  const char* labels[] = {"alpha: größte", "beta: a translated one", "gamma: unused: colon"};
  ASSERT_EQ(set.labels.size(), 3);
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(set.labels.title(i), labels[i]);
  EXPECT_EQ(set.labels.uid(1), "beta");
  ASSERT_EQ(set.test.texts.size(), 1);
  EXPECT_EQ(set.test.texts.uid(0), "4ti2-doc");
  EXPECT_EQ(set.test.texts.title(0), "4ti2-doc");
  EXPECT_EQ(labels_of(set.test, 0), Numbers{0});
  ASSERT_EQ(set.train.texts.size(), 2);
  EXPECT_EQ(set.train.texts.title(0), "delta");
  EXPECT_EQ(labels_of(set.train, 0), Numbers{2});
  EXPECT_EQ(set.train.texts.title(1), "zeta: the last");
  EXPECT_EQ(set.train.texts.content(1), "");
  EXPECT_EQ(labels_of(set.train, 1), (Numbers{0, 1, 2}));
  EXPECT_EQ(set.train.own(1), -1);
}

TEST(DebianIndex, OwnLabel) {
  TemporaryFolder t;
  import_debian_index("Package: a\nSuggests: b\n\nPackage: b\nSuggests: a\n", t / "out", strict);
  const Dataset set = open_dataset(t / "out");
  ASSERT_EQ(set.train.texts.size(), 2);
  EXPECT_EQ(set.train.own(0), 0);
  EXPECT_EQ(set.train.own(1), 1);
}

TEST(DebianIndex, EmptyOrWithoutRelations) {
  TemporaryFolder t;
  for (const char* text : {"", "\n\n", "Package\n", ":\n", "Package: a\nDescription: x\n",
                           " \tlost\nPackage: a\nSuggests: a\n"}) {
    const auto sentence =
        sentence_of(Exit::machine, [&] { import_debian_index(text, t / "out", strict); });
    expect_contains(sentence, "apt-get update");
    expect_nothing_left(t / "out");
  }
}

TEST(DebianIndex, AptCacheMissing) {
  TemporaryFolder t;
  const std::string path = getenv("PATH");
  setenv("PATH", (t / "nothing").c_str(), 1);
  const auto sentence = sentence_of(Exit::machine, [&] { import_debian_index(t / "out", strict); });
  setenv("PATH", path.c_str(), 1);
  expect_contains(sentence, "found exit status 127");
  expect_nothing_left(t / "out");
}

TEST(DefaultDataset, ImportsAsStated) {
  ASSERT_TRUE(exists("sampling/debian/trn.json.gz")) << "run the tests from the root of the repository";
  TemporaryFolder t;
  const ImportSummary done = import_dataset("sampling/debian", t / "out", strict);
  EXPECT_EQ(done.train, 13207);
  EXPECT_EQ(done.test, 3128);
  EXPECT_EQ(done.labels, 20044);
  EXPECT_EQ(done.train_pairs, 42527);
  EXPECT_EQ(done.test_pairs, 9622);
  const Dataset set = open_dataset(t / "out");
  EXPECT_EQ(set.labels.title(0), "0ad: Real-time strategy game of ancient warfare");
  for (const auto& [split, test] : {std::pair{&set.train, false}, {&set.test, true}})
    for (int64_t i = 0; i < split->texts.size(); ++i) {
      const Texts& texts = split->texts;
      ASSERT_EQ(goes_to_test(texts.uid(i)), test);
      ASSERT_TRUE(texts.content(i).empty());
      ASSERT_TRUE(texts.title(i).starts_with(std::string(texts.uid(i)) + ": "));
      ASSERT_TRUE(i == 0 || texts.uid(i - 1) < texts.uid(i));
      ASSERT_FALSE(split->labels.row(i).empty());
      const int32_t own = split->own(i);
      ASSERT_TRUE(own < 0 || set.labels.uid(own) == texts.uid(i));
      for (const int32_t label : split->labels.row(i)) ASSERT_NE(label, own);
    }
}

// Which of the two outcomes holds depends on where the tests were built.
TEST(DefaultDataset, IsFoundBesideTheExecutable) {
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  const std::string expected = here / "sampling/debian";
  if (exists(expected + "/lbl.json.gz")) {
    EXPECT_EQ(default_dataset_source(), expected);
  } else {
    expect_contains(sentence_of(Exit::input, [] { default_dataset_source(); }), expected);
  }
}

// ---- memory ----

int64_t anonymous_kib() {
  char text[4096];
  const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  const char* at = strstr(text, "RssAnon:");
  return at ? strtoll(at + 8, nullptr, 10) : -1;
}

// KiB of anonymous memory that work() adds at its peak, in a process of its own; -1 when it fails.
int64_t added_memory(const std::function<void()>& work) {
  int ends[2];
  if (pipe(ends) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<bool> done = false;
    std::atomic<int64_t> peak = -1;
    malloc_trim(0);  // so that the work cannot take what the parent has left free
    const int64_t before = anonymous_kib();
    std::thread sampler([&] {
      while (!done) {
        peak = std::max<int64_t>(peak, anonymous_kib());
        usleep(500);
      }
    });
    try {
      work();
    } catch (...) {
      _exit(1);
    }
    done = true;
    sampler.join();
    const int64_t added = peak - before;
    _exit(write(ends[1], &added, sizeof added) == sizeof added ? 0 : 1);
  }
  close(ends[1]);
  int64_t added = -1;
  if (read(ends[0], &added, sizeof added) != sizeof added) added = -1;
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return added;
}

// Copies the first `count` lines of a gzipped file.
void copy_lines(const std::string& from, const std::string& to, int64_t count) {
  gzFile in = gzopen(from.c_str(), "rb"), out = gzopen(to.c_str(), "wb1");
  ASSERT_TRUE(in && out);
  std::string line(4 << 20, '\0');
  for (int64_t i = 0; i < count && gzgets(in, line.data(), static_cast<int>(line.size())); ++i)
    gzputs(out, line.c_str());
  gzclose(in);
  ASSERT_EQ(gzclose(out), Z_OK);
}

TEST(Import, MemoryDoesNotGrowWithTheFile) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer keeps freed memory, so its size says nothing";
#endif
  const std::string yso = "../shared/data/yso";
  if (!exists(yso)) GTEST_SKIP() << yso << " is not there: it is a large real set for developers";
  TemporaryFolder t;
  fs::create_directory(t / "tenth");
  copy_lines(yso + "/lbl.json.gz", t / "tenth/lbl.json.gz", INT64_MAX);
  copy_lines(yso + "/trn.json.gz", t / "tenth/trn.json.gz", 31058);
  copy_lines(yso + "/tst.json.gz", t / "tenth/tst.json.gz", 3442);
  const int64_t tenth = added_memory([&] { import_dataset(t / "tenth", t / "a", strict); });
  const int64_t whole = added_memory([&] { import_dataset(yso, t / "b", strict); });
  ASSERT_TRUE(tenth > 0 && whole > 0);
  const Dataset a = open_dataset(t / "a"), b = open_dataset(t / "b");
  EXPECT_EQ(a.train.texts.size(), 31058);
  EXPECT_EQ(b.train.texts.size(), 310581);
  EXPECT_EQ(b.test.texts.size(), 34417);
  EXPECT_EQ(a.labels.size(), b.labels.size());
  std::printf("added at the peak: %ld KiB for a tenth, %ld KiB for the whole\n", tenth, whole);
  EXPECT_LT(static_cast<double>(whole), 1.05 * static_cast<double>(tenth));
}

}  // namespace
}  // namespace quest
