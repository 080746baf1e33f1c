// Makes dataset folders. The folder holds flat little-endian arrays; SIDE is train, test or labels:
//
//   SIDE.text     bytes   uid, title, content of each row, one after another, UTF-8
//   SIDE.ends     int64   3 a row: where each of these parts ends in SIDE.text
//   SIDE.offsets  int64   rows + 1: where each row's labels begin in SIDE.labels           (train, test)
//   SIDE.labels   int32   labels of each row, ascending and distinct                       (train, test)
//   SIDE.own      int32   the label that is the query itself, or -1                        (train, test)
//   SIDE.filter.offsets, SIDE.filter.labels: pairs that are never ranked, if the source has a filter file
//   meta.json             format, name, counts, sha256 of the sources' bytes, number of bad lines
//
// A label without title and content was a malformed line that was skipped: it is never predicted.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quest {

struct ImportOptions {
  bool skip_bad = false;  // keep malformed lines as empty rows, instead of stopping
  std::string name;       // of the dataset; empty: the last part of the folder's path
  bool progress = true;   // on stderr
};

struct ImportSummary {
  int64_t train = 0, test = 0, labels = 0, train_pairs = 0, test_pairs = 0, bad_lines = 0;
  std::vector<std::string> bad;  // the first ten bad lines, as "FILE:LINE: what is wrong"
};

// Imports SOURCE into the new folder FOLDER, streaming: memory grows with the number of labels and of filter
// pairs. SOURCE is
//
// * a folder with trn, tst and lbl, each .json or .json.gz: the raw format of the Extreme Classification
//   Repository, one object a line. uid and title are required strings, content is optional. trn and tst
//   need target_ind, a list of line numbers of lbl from 0; target_rel may stand beside it, with as many
//   numbers, which are not used. A query's own label is the first label with the query's uid.
// * a folder in the repository's sparse format: Y.txt, trn_X.txt and tst_X.txt with a text a line,
// trn_X_Y.txt
//   and tst_X_Y.txt with a header "ROWS LABELS" and for each text a line of LABEL:WEIGHT. uids are line
//   numbers from 0. Own labels as in the next format.
// * In both kinds of folder filter_labels_train.txt and _test.txt (or trn_, tst_filter_labels.txt) may stand,
//   of lines "QUERY LABEL" with numbers from 0: pairs that no method may rank.
// * a file with .json in its name, of one object a line: title (or text), labels, a list of names, and
// perhaps
//   uid and content; otherwise as the next.
// * or a file of lines text<TAB>label<TAB>label...; empty label fields are ignored, but there
//   must be a label. Labels are numbered by first appearance; the name is uid and title. A row's uid is its
//   line number; a row that goes_to_test() by its text is a test row. A row's own label is the one that is
//   named like its text, unless the row itself lists it.
//
// Every file may be gzipped.
// A byte order mark at the start and CR before LF are dropped. A malformed line is named by file and number
// from 1: not JSON, not UTF-8, a field missing or of a wrong type, a label out of range, an empty line, one
// above 16 MiB. skip_bad keeps it as an empty row without labels (in a TSV file, of train).
//
// Throws Error(input) when a line is malformed and not skipped, or a file missing, empty or damaged;
// Error(usage) when FOLDER exists; Error(machine) when it cannot be written. Then no folder is left behind.
ImportSummary import_dataset(const std::string& source, const std::string& folder,
                             const ImportOptions& options = {});

// Whether a query belongs to the test set: the first 8 hex digits of SHA-1(key) are 0 modulo 5.
bool goes_to_test(std::string_view key);

// The default dataset's raw files: sampling/debian beside this program's executable. Throws Error(input) when
// they are not there.
std::string default_dataset_source();

// A dataset from the package index of a Debian or Ubuntu machine, by `apt-cache dumpavail`: a package is a
// query when it recommends or suggests another one of the index (every alternative counts; versions and
// architectures are dropped), and a label when another one does so with it. uid: the name; title:
// "name: summary"; content: empty. Rows are sorted by name; a query that goes_to_test() by its name is a test
// row. Throws Error(machine) when apt-cache is missing or fails or there is no query at all, and what
// import_dataset throws about FOLDER.
ImportSummary import_debian_index(const std::string& folder, const ImportOptions& options = {});

// The same from such a text; sha256: of the text.
ImportSummary import_debian_index(const std::string& stanzas, const std::string& folder,
                                  const ImportOptions& options);

}  // namespace quest
