#include "sampling/import.h"

#include <simdjson.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "kernels/base/json.h"
#include "kernels/base/progress.h"
#include "sampling/dataset.h"

namespace quest {
namespace {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

constexpr size_t longest_line = 16u << 20, block_bytes = 256u << 10, usual_line = 64u << 10;

// ---- writing ----------------------------------------------------------------------------------------------

struct Row {
  std::string uid;
  std::string_view title, content;
  std::set<int32_t> labels;  // of a query
};

// The files of one side, except .own.
struct Side {
  std::deque<OutFile> files;  // text and ends; of queries also offsets and labels
  int64_t bytes = 0, rows = 0, pairs = 0;

  Side(const OutFolder& folder, const std::string& name) {
    for (const char* part : {".text", ".ends", ".offsets", ".labels"})
      if (name != "labels" || files.size() < 2) files.emplace_back(folder.file(name + part));
    if (files.size() > 2) files[2].put(pairs);
  }
  void add(const Row& row) {
    for (const auto part : {std::string_view(row.uid), row.title, row.content}) {
      files[0].write(part);
      files[1].put(bytes += part.size());
    }
    ++rows;
    if (files.size() == 2) return;
    for (const int32_t label : row.labels) files[3].put(label);
    files[2].put(pairs += row.labels.size());
  }
};

// Makes a dataset folder of any source: fill the sides in any order, then finish(). Without it nothing stays.
struct Import {
  OutFolder out;
  std::string name;  // of the dataset
  Side labels{out, "labels"}, train{out, "train"}, test{out, "test"};
  std::map<std::string, int32_t> label_of = {};  // by uid, the first of equal ones
  ImportSummary done = {};
  std::optional<Progress> progress = {};  // in kB of the files as they are

  Import(const std::string& folder, const ImportOptions& options) : out(folder), name(options.name) {
    if (name.empty()) name = fs::path(folder + "/").parent_path().filename();
    if (!simdjson::validate_utf8(name)) name = "dataset";  // a path may hold any bytes
  }

  // The label's number; a new one is added.
  int32_t label(std::string_view uid, std::string_view title) {
    const auto [at, is_new] = label_of.try_emplace(std::string(uid), labels.rows);
    if (is_new) labels.add({at->first, title, "", {}});
    return at->second;
  }

  // Adds a query whose labels are given by uid, to the side that its key belongs to.
  void add(Row row, const auto& uids, std::string_view key) {
    for (const std::string_view uid : uids) row.labels.insert(label(uid, uid));
    (goes_to_test(key) ? test : train).add(row);
  }

  // A query's own label is the one whose uid is its uid; or its title, unless the query lists that label.
  void write_own(const std::string& side, bool by_title) const {
    const Texts texts(out.file(""), side);
    const Pairs pairs(out.file(""), side, texts.size(), labels.rows);
    OutFile file(out.file(side + ".own"));
    for (int64_t i = 0; i < texts.size(); ++i) {
      const auto at = label_of.find(std::string(by_title ? texts.title(i) : texts.uid(i)));
      int32_t own = at == label_of.end() ? -1 : at->second;
      if (by_title && std::ranges::binary_search(pairs.row(i), own)) own = -1;
      file.put(own);
    }
    file.commit();
  }

  ImportSummary finish(const std::string& sha256, bool own_by_title) {
    for (Side* side : {&labels, &train, &test})
      for (OutFile& file : side->files) file.commit();
    label_of.erase("");
    for (const char* side : {"train", "test"}) write_own(side, own_by_title);
    done.train = train.rows, done.train_pairs = train.pairs;
    done.test = test.rows, done.test_pairs = test.pairs, done.labels = labels.rows;
    JsonWriter json;
    json.object().field("format", "quest dataset 1").field("name", name).field("sha256", sha256);
    json.field("train", done.train).field("test", done.test).field("labels", done.labels);
    json.field("train_pairs", done.train_pairs).field("test_pairs", done.test_pairs);
    write_file(out.file("meta.json"), json.field("bad_lines", done.bad_lines).end().text() + "\n");
    out.commit();
    return done;
  }
};

// ---- lines ------------------------------------------------------------------------------------------------

struct BadLine {  // thrown by what reads a line
  std::string what;
};

// Lines of a plain or gzipped file, one after another.
class Lines {
 public:
  std::string line;    // without its end; one that is longer than longest_line is cut right after that length
  int64_t number = 0;  // from 1

  explicit Lines(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb"), gzclose) {
    if (!file_) fail(Exit::input, "%s: cannot be opened: %s; check the file", path.c_str(), strerror(errno));
    gzbuffer(file_.get(), block_bytes);
    if (path.ends_with(".gz") && gzdirect(file_.get()))
      fail(Exit::input, "%s: expected gzip data, found something else; compress it again", path.c_str());
    line.reserve(usual_line + simdjson::SIMDJSON_PADDING);
  }
  bool next() {  // false at the end of a whole file
    line.clear();
    int c;
    while ((c = gzgetc(file_.get())) >= 0 && c != '\n')
      if (line.size() <= longest_line) line += static_cast<char>(c);
    int error = Z_OK;
    const char* why = gzerror(file_.get(), &error);
    if (error != Z_OK)
      fail(Exit::input,
           "%s: after line %ld: expected a whole gzip file, found %s; fetch or compress it again",
           path_.c_str(), number, error == Z_ERRNO ? strerror(errno) : why);
    if (c < 0 && line.empty()) return false;
    if (++number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (line.ends_with('\r')) line.pop_back();
    return true;
  }
  double kilobytes() {  // of the file as it is, since the last time
    const int64_t before = std::exchange(position_, gzoffset(file_.get()));
    return (position_ - before) / 1e3;
  }

 private:
  std::string path_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
  int64_t position_ = 0;
};

// Calls read(line, number) for every line, to add a row. When it throws BadLine, that is counted, and an
// empty row goes to `bad_side`. Without that, lines are no rows, and there may be none.
void each_line(const std::string& path, Import& import, Side* bad_side, auto&& read) {
  Lines lines(path);
  while (lines.next()) {
    try {
      if (lines.line.empty()) throw BadLine{"empty line"};
      if (lines.line.size() > longest_line) throw BadLine{format("longer than %zu bytes", longest_line)};
      if (!simdjson::validate_utf8(lines.line)) throw BadLine{"not UTF-8"};
      read(lines.line, lines.number);
    } catch (const BadLine& bad) {
      if (bad_side) bad_side->add({});
      if (++import.done.bad_lines <= 10)
        import.done.bad.push_back(format("%s:%ld: %s", path.c_str(), lines.number, bad.what.c_str()));
    }
    if (import.progress) import.progress->add(lines.kilobytes());
  }
  if (bad_side && lines.number == 0)
    fail(Exit::input, "%s: expected a row a line, found an empty file; fetch or make it again", path.c_str());
}

// ---- the repository's raw format --------------------------------------------------------------------------

bool has(const dom::object& object, const char* key) {
  return object[key].error() != simdjson::NO_SUCH_FIELD;
}

template <class T>
T field(const dom::object& object, const char* key) {
  T value;
  if (!has(object, key)) throw BadLine{format("%s is missing", key)};
  if (object[key].get(value))
    throw BadLine{format("%s is not a %s", key, std::is_same_v<T, dom::array> ? "list" : "string")};
  return value;
}

std::string_view text_field(const dom::object& object, const char* key) {
  const auto text = field<std::string_view>(object, key);
  // Escapes may spell half of a surrogate pair, which some versions of the library let pass.
  if (!simdjson::validate_utf8(text)) throw BadLine{format("%s is not UTF-8", key)};
  return text;
}

void read_targets(const dom::object& object, int64_t label_count, std::set<int32_t>& out) {
  const auto targets = field<dom::array>(object, "target_ind");
  for (const dom::element target : targets) {
    int64_t label = 0;
    if (target.get(label)) throw BadLine{"target_ind holds something that is not a line number"};
    if (label < 0 || label >= label_count)
      throw BadLine{format("target_ind holds %ld, expected 0 to %ld", label, label_count - 1)};
    out.insert(label);
  }
  if (!has(object, "target_rel")) return;
  const auto weights = field<dom::array>(object, "target_rel");
  for (const dom::element weight : weights)
    if (!weight.is_number()) throw BadLine{"target_rel holds something that is not a number"};
  if (weights.size() != targets.size())
    throw BadLine{format("target_rel has %zu values, target_ind %zu", weights.size(), targets.size())};
}

// Calls read(object, number, row) for every line, which is an object; its content stands in the row by then.
void each_object(const std::string& path, Import& import, Side& bad_side, auto&& read) {
  dom::parser parser;
  if (parser.allocate(usual_line)) fail(Exit::machine, "no memory for the JSON parser; close other programs");
  each_line(path, import, &bad_side, [&](const std::string& line, int64_t number) {
    dom::object object;
    if (!is_json(parser.parse(line), object)) throw BadLine{"not a valid JSON object"};
    Row row;
    if (has(object, "content")) row.content = text_field(object, "content");
    read(object, number, row);
  });
}

void import_rows(const std::string& path, Import& import, Side& side) {
  each_object(path, import, side, [&](const dom::object& object, int64_t, Row& row) {
    row.uid = text_field(object, "uid"), row.title = text_field(object, "title");
    if (&side == &import.labels)
      import.label_of.try_emplace(row.uid, side.rows);
    else
      read_targets(object, import.labels.rows, row.labels);
    side.add(row);
  });
}

// The one of a folder's files of these names that is there, plain or gzipped; of none, "" when it is
// optional.
std::string find_file(const std::string& folder, const std::vector<std::string>& names,
                      bool optional = false) {
  std::vector<std::string> found;
  for (const std::string& name : names)
    for (const char* end : {"", ".gz"})
      if (exists(folder + "/" + name + end)) found.push_back(folder + "/" + name + end);
  if (found.size() == 1 || (found.empty() && optional)) return found.empty() ? "" : found[0];
  fail(Exit::input,
       "%s/%s: expected one such file, plain or as .gz, found %s; give a folder with trn, tst and lbl "
       "as .json, or with Y.txt, trn_X.txt, trn_X_Y.txt, tst_X.txt, tst_X_Y.txt",
       folder.c_str(), names[0].c_str(), found.empty() ? "none" : (found[1] + " too").c_str());
}

// ---- the repository's sparse format -----------------------------------------------------------------------

// "3:1.0 17:0.5": labels and weights, which are not used.
void read_sparse(std::string_view line, int64_t label_count, std::set<int32_t>& out) {
  if (line.size() > longest_line) throw BadLine{format("longer than %zu bytes", longest_line)};
  for (size_t at = 0, end; (at = line.find_first_not_of(" \t", at)) != line.npos; at = end) {
    end = std::min(line.find_first_of(" \t", at), line.size());
    const std::string entry(line.substr(at, end - at));
    long label = -1;
    double weight = 0;
    int read = 0;
    if (sscanf(entry.c_str(), "%ld:%lf%n", &label, &weight, &read) != 2 || read != std::ssize(entry))
      throw BadLine{format("'%.40s' is not LABEL:WEIGHT", entry.c_str())};
    if (label < 0 || label >= label_count)
      throw BadLine{format("label %ld, expected 0 to %ld", label, label_count - 1)};
    out.insert(label);
  }
}

// One text a line beside one line of labels for each, behind a header of both counts.
void import_sparse(const std::string& texts, const std::string& pairs, Import& import, Side& side) {
  Lines labels(pairs);
  long rows = -1, columns = -1;
  if (!labels.next() || sscanf(labels.line.c_str(), "%ld %ld", &rows, &columns) != 2 ||
      columns != import.labels.rows)
    fail(Exit::input,
         "%s:1: expected the numbers of rows and of labels, %ld, found '%.40s'; it belongs to another set",
         pairs.c_str(), import.labels.rows, labels.line.c_str());
  each_line(texts, import, &side, [&](const std::string& line, int64_t number) {
    while (labels.number < number + 1 && labels.next()) {
    }
    Row row{std::to_string(number - 1), line, "", {}};
    try {
      read_sparse(labels.line, columns, row.labels);  // of nothing, behind the last line
    } catch (const BadLine& bad) {
      throw BadLine{format("line %ld of %s: %s", number + 1, pairs.c_str(), bad.what.c_str())};
    }
    side.add(row);
  });
  while (labels.next()) {
  }
  if (side.rows != rows || labels.number != rows + 1)
    fail(Exit::input,
         "%s: expected %ld texts and lines of labels, found %ld texts in %s and %ld lines; fetch both again",
         pairs.c_str(), rows, side.rows, texts.c_str(), labels.number - 1);
}

// Lines "QUERY LABEL": pairs that are dropped before ranking.
void import_filter(const std::string& path, Import& import, const std::string& name, const Side& side) {
  if (path.empty()) return;
  std::set<std::pair<int32_t, int32_t>> pairs;
  each_line(path, import, nullptr, [&](const std::string& line, int64_t) {
    long query = -1, label = -1;
    int read = 0;
    if (sscanf(line.c_str(), "%ld %ld%n", &query, &label, &read) != 2 || read != std::ssize(line))
      throw BadLine{"not a query and a label"};
    if (query < 0 || query >= side.rows || label < 0 || label >= import.labels.rows)
      throw BadLine{format("query %ld and label %ld, expected up to %ld and %ld", query, label, side.rows - 1,
                           import.labels.rows - 1)};
    pairs.emplace(query, label);
  });
  OutFile offsets(import.out.file(name + ".filter.offsets")),
      labels(import.out.file(name + ".filter.labels"));
  int64_t count = 0;
  auto at = pairs.begin();
  offsets.put(count);
  for (int64_t row = 0; row < side.rows; ++row) {
    for (; at != pairs.end() && at->first == row; ++at, ++count) labels.put(at->second);
    offsets.put(count);
  }
  offsets.commit(), labels.commit();
}

// ---- lines with label names -------------------------------------------------------------------------------

void import_tsv(const std::string& path, Import& import) {
  each_line(path, import, &import.train, [&](std::string_view line, int64_t number) {
    const size_t tab = std::min(line.find('\t'), line.size());
    if (tab == 0) throw BadLine{"the text before the first tab is empty"};
    std::vector<std::string_view> names;
    for (size_t begin, end = tab; (begin = line.find_first_not_of('\t', end)) != line.npos;) {
      end = std::min(line.find('\t', begin), line.size());
      names.push_back(line.substr(begin, end - begin));
    }
    if (names.empty()) throw BadLine{"no tab and label after the text"};
    const std::string_view text = line.substr(0, tab);
    import.add({std::to_string(number), text, "", {}}, names, text);
  });
}

void import_json_lines(const std::string& path, Import& import) {
  each_object(path, import, import.train, [&](const dom::object& object, int64_t number, Row& row) {
    row.uid = has(object, "uid") ? text_field(object, "uid") : std::to_string(number);
    row.title = text_field(object, has(object, "title") ? "title" : "text");
    std::vector<std::string_view> names;
    for (const dom::element label : field<dom::array>(object, "labels")) {
      std::string_view name;
      if (label.get(name) || name.empty() || !simdjson::validate_utf8(name))
        throw BadLine{"labels holds something that is not a name"};
      names.push_back(name);
    }
    if (names.empty() || (row.title.empty() && row.content.empty())) throw BadLine{"no label, or no text"};
    import.add(row, names, row.title);
  });
}

// ---- Debian -----------------------------------------------------------------------------------------------

struct Package {
  std::string title;              // "name: summary"; the name alone when there is no summary in UTF-8
  std::set<std::string> targets;  // names in Recommends and Suggests
};

// "a (>= 1) | b:any, c [amd64]" names a, b and c.
void add_names(std::string_view list, std::set<std::string>& names) {
  for (size_t begin = 0, end; (begin = list.find_first_not_of(" \t\r,|", begin)) != list.npos;) {
    end = std::min(list.find_first_of(" \t\r,|(:[<", begin), list.size());
    names.emplace(list.substr(begin, end - begin));
    begin = list.find_first_of(",|", end);
  }
}

// Stanzas by package, each ended by an empty line or with the text; of a name that occurs twice, the first.
std::map<std::string, Package> read_packages(std::string_view stanzas) {
  std::map<std::string, Package> packages;
  std::string_view name, summary;
  std::set<std::string> targets;
  bool in_targets = false;  // whether a continuation line goes on with them
  for (size_t at = 0, end; at <= stanzas.size(); at = end + 1) {
    end = std::min(stanzas.find('\n', at), stanzas.size());
    std::string_view line = stanzas.substr(at, end - at);
    line = line.substr(0, line.find_last_not_of(" \t\r") + 1);
    if (line.starts_with(' ') || line.starts_with('\t')) {
      if (in_targets) add_names(line, targets);
    } else if (const size_t colon = line.find(':'); colon != line.npos) {
      const std::string_view key = line.substr(0, colon);
      const std::string_view value =
          line.substr(std::min(line.find_first_not_of(" \t", colon + 1), line.size()));
      in_targets = key == "Recommends" || key == "Suggests";
      if (in_targets) add_names(value, targets);
      if (key == "Package") name = value;
      // A translated index says Description-en; Description-md5 is a checksum.
      const bool description = key.starts_with("Description") && key != "Description-md5";
      if (description && summary.empty() && simdjson::validate_utf8(value)) summary = value;
    }
    if (end < stanzas.size() && !line.empty()) continue;
    const std::string title = std::string(name) + (summary.empty() ? "" : ": ") + std::string(summary);
    if (!name.empty() && simdjson::validate_utf8(name))
      packages.try_emplace(std::string(name), Package{title, targets});
    name = summary = "", targets.clear(), in_targets = false;
  }
  return packages;
}

}  // namespace

ImportSummary import_debian_index(const std::string& stanzas, const std::string& folder,
                                  const ImportOptions& options) {
  auto packages = read_packages(stanzas);
  std::set<std::string> labels;
  for (auto& [name, package] : packages) {
    std::erase_if(package.targets,
                  [&, &self = name](auto& target) { return target == self || !packages.contains(target); });
    labels.insert(package.targets.begin(), package.targets.end());
  }
  if (labels.empty())
    fail(Exit::machine,
         "apt-cache dumpavail: expected packages that recommend others, found none; run 'apt-get update'");
  Import import(folder, options);
  for (const auto& name : labels) import.label(name, packages[name].title);
  for (const auto& [name, package] : packages)
    if (!package.targets.empty()) import.add({name, package.title, "", {}}, package.targets, name);
  return import.finish(sha256_hex(stanzas), false);
}

ImportSummary import_debian_index(const std::string& folder, const ImportOptions& options) {
  FILE* pipe = popen("apt-cache dumpavail", "r");
  if (!pipe) fail(Exit::machine, "apt-cache dumpavail: cannot be started; free some memory and run again");
  std::string text(1 << 16, '\0'), stanzas;
  while (const size_t n = fread(text.data(), 1, text.size(), pipe)) stanzas.append(text, 0, n);
  const int status = pclose(pipe);
  if (status != 0)
    fail(Exit::machine,
         "apt-cache dumpavail: expected a package index, found exit status %d; run 'apt-get update'",
         WEXITSTATUS(status));
  return import_debian_index(stanzas, folder, options);
}

// ---- the whole --------------------------------------------------------------------------------------------

ImportSummary import_dataset(const std::string& source, const std::string& folder,
                             const ImportOptions& options) {
  const bool folder_of_files = is_folder(source);
  const bool sparse = folder_of_files && find_file(source, {"lbl.json"}, true).empty() &&
                      !find_file(source, {"trn_X_Y.txt"}, true).empty();
  const auto find = [&](const char* name) { return find_file(source, {name}); };
  std::vector<std::string> files = {source};
  if (sparse)
    files = {find("Y.txt"), find("trn_X.txt"), find("trn_X_Y.txt"), find("tst_X.txt"), find("tst_X_Y.txt")};
  else if (folder_of_files)
    files = {find("lbl.json"), find("trn.json"), find("tst.json")};
  std::string train_filter, test_filter;
  if (folder_of_files) {
    train_filter = find_file(source, {"filter_labels_train.txt", "trn_filter_labels.txt"}, true);
    test_filter = find_file(source, {"filter_labels_test.txt", "tst_filter_labels.txt"}, true);
    files.insert(files.end(), {train_filter, test_filter});
  }
  Sha sha;  // of the files as they are, compressed or not
  double kilobytes = 0;
  for (const auto& path : files) {
    if (path.empty()) continue;
    const MappedFile file(path);  // refuses what is no readable file
    sha.update(file.data(), file.size());
    kilobytes += file.size() / 1e3;
  }
  Import import(folder, options);
  if (options.progress) import.progress.emplace("importing " + source, kilobytes, "kB");
  if (sparse) {
    each_line(files[0], import, &import.labels, [&](const std::string& line, int64_t number) {
      import.label_of.try_emplace(line, import.labels.rows);
      import.labels.add({std::to_string(number - 1), line, "", {}});
    });
    import_sparse(files[1], files[2], import, import.train);
    import_sparse(files[3], files[4], import, import.test);
  } else if (folder_of_files) {
    import_rows(files[0], import, import.labels);
    import_rows(files[1], import, import.train);
    import_rows(files[2], import, import.test);
  } else if (fs::path(source).filename().string().find(".json") != std::string::npos) {
    import_json_lines(source, import);
  } else {
    import_tsv(source, import);
  }
  import_filter(train_filter, import, "train", import.train);
  import_filter(test_filter, import, "test", import.test);
  import.progress.reset();
  const ImportSummary& done = import.done;
  if (done.bad_lines && !options.skip_bad) {
    std::string list;
    for (size_t i = 0; i < std::min<size_t>(done.bad.size(), 5); ++i) list += (i ? "; " : "") + done.bad[i];
    fail(Exit::input, "%s: malformed lines, %ld in all: %s%s; correct them, or import with --skip-bad",
         source.c_str(), done.bad_lines, list.c_str(), done.bad_lines > 5 ? "; ..." : "");
  }
  return import.finish(sha.hex(), sparse || !folder_of_files);
}

bool goes_to_test(std::string_view key) {
  return std::stoul(sha1_hex(key).substr(0, 8), nullptr, 16) % 5 == 0;
}

std::string default_dataset_source() {
  std::error_code ignored;
  const std::string folder = fs::read_symlink("/proc/self/exe", ignored).parent_path() / "sampling/debian";
  if (!exists(folder + "/lbl.json.gz"))
    fail(Exit::input,
         "%s: expected the default dataset, found none; keep quest where make puts it, or give --data",
         folder.c_str());
  return folder;
}

}  // namespace quest
