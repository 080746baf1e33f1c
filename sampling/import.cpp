#include "sampling/import.h"

#include <simdjson.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "kernels/base/json.h"
#include "kernels/base/progress.h"
#include "sampling/dataset.h"

namespace quest {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

constexpr size_t longest_line = 16u << 20, block_bytes = 256u << 10, usual_line = 64u << 10;

// ---- writing ----------------------------------------------------------------------------------------------

void Row::clear() {
  uid = title = content = {};
  labels.clear();
}

SideWriter::SideWriter(const OutFolder& folder, const std::string& side, bool with_labels)
    : text_(folder.file(side + ".text")), ends_(folder.file(side + ".ends")) {
  if (!with_labels) return;
  columns_.emplace(folder.file(side + ".labels"));
  offsets_.emplace(folder.file(side + ".offsets")).put(pairs_);
}

void SideWriter::add(Row& row) {
  for (const std::string_view part : {row.uid, row.title, row.content}) {
    text_.write(part);
    ends_.put(bytes_ += static_cast<int64_t>(part.size()));
  }
  ++rows_;
  if (!offsets_) return;
  auto& labels = row.labels;
  std::sort(labels.begin(), labels.end());
  labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
  columns_->write(labels.data(), labels.size() * sizeof(int32_t));
  offsets_->put(pairs_ += static_cast<int64_t>(labels.size()));
}

void SideWriter::commit() {
  text_.commit();
  ends_.commit();
  if (!offsets_) return;
  offsets_->commit();
  columns_->commit();
}

// A path may hold any bytes, but meta.json and messages are UTF-8.
static std::string as_utf8(std::string path) {
  if (!simdjson::validate_utf8(path.data(), path.size()))
    for (char& c : path)
      if (c & 0x80) c = '?';
  return path;
}

DatasetWriter::DatasetWriter(const std::string& folder, const ImportOptions& options)
    : name_(as_utf8(options.name.empty() ? fs::path(folder + "/").parent_path().filename().string()
                                         : options.name)), out_(folder),
      labels(out_, "labels", false), train(out_, "train", true), test(out_, "test", true) {}

void DatasetWriter::write_own(const std::string& side, Own own) const {
  const Texts names(out_.file(""), "labels"), texts(out_.file(""), side);
  const Pairs pairs(out_.file(""), side, texts.size(), names.size());
  std::vector<int32_t> by_uid(static_cast<size_t>(names.size()));  // 4 bytes a label; the texts stay on disk
  std::iota(by_uid.begin(), by_uid.end(), 0);
  std::stable_sort(by_uid.begin(), by_uid.end(),
                   [&](int32_t a, int32_t b) { return names.uid(a) < names.uid(b); });
  OutFile file(out_.file(side + ".own"));
  for (int64_t i = 0; i < texts.size(); ++i) {
    const std::string_view key = own == Own::by_uid ? texts.uid(i) : texts.title(i);
    const auto at = std::lower_bound(by_uid.begin(), by_uid.end(), key,
                                     [&](int32_t label, std::string_view k) { return names.uid(label) < k; });
    const bool found = !key.empty() && at != by_uid.end() && names.uid(*at) == key;
    const auto row = pairs.row(i);
    const bool spared = found && own == Own::by_title && std::binary_search(row.begin(), row.end(), *at);
    file.put(found && !spared ? *at : int32_t{-1});
  }
  file.commit();
}

static std::string meta_json(const std::string& name, const std::vector<std::string>& sources,
                             const std::string& sha256, const ImportSummary& done) {
  JsonWriter json;
  json.object().field("format", "quest dataset 1").field("name", name);
  json.field("train", done.train).field("test", done.test).field("labels", done.labels);
  json.field("train_pairs", done.train_pairs).field("test_pairs", done.test_pairs).key("sources").array();
  for (const auto& source : sources) json.value(as_utf8(source));
  json.end().field("sha256", sha256).field("bad_lines", done.bad_lines).key("first_bad_lines").array();
  for (const auto& line : done.bad) json.value(line);
  return json.end().end().text() + "\n";
}

void DatasetWriter::finish(Own own, const std::vector<std::string>& sources, const std::string& sha256,
                           ImportSummary& done) {
  labels.commit();
  train.commit();
  test.commit();
  write_own("train", own);
  write_own("test", own);
  done.train = train.rows(), done.train_pairs = train.pairs();
  done.test = test.rows(), done.test_pairs = test.pairs();
  done.labels = labels.rows();
  write_file(out_.file("meta.json"), meta_json(name_, sources, sha256, done));
  out_.commit();
}

// ---- reading ----------------------------------------------------------------------------------------------

// What one import carries from file to file.
struct Import {
  Sha sha;  // of the files as they are, compressed or not
  ImportSummary done;
  std::optional<Progress> progress;  // in kB of the files as they are
};

// Lines of a plain or gzipped file, without their ends.
class LineReader {
 public:
  LineReader(const std::string& path, Import& import);
  bool next(std::string& line);  // false at the end of the file
  int64_t number() const { return number_; }   // of the line last read, from 1
  bool too_long() const { return too_long_; }  // then the line is not whole

 private:
  bool fill();
  std::string path_;
  Import& import_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
  std::vector<char> block_;
  size_t at_ = 0, filled_ = 0;
  int64_t number_ = 0, position_ = 0;
  bool too_long_ = false;
};

LineReader::LineReader(const std::string& path, Import& import)
    : path_(path), import_(import), file_(nullptr, gzclose), block_(block_bytes) {
  const MappedFile raw(path);  // refuses what is no readable file
  import.sha.update(raw.data(), raw.size());
  file_.reset(gzopen(path.c_str(), "rb"));
  if (!file_) fail(Exit::input, "%s: cannot be opened: %s; check the file", path.c_str(), strerror(errno));
  gzbuffer(file_.get(), block_bytes);
}

bool LineReader::fill() {
  const int n = gzread(file_.get(), block_.data(), static_cast<unsigned>(block_.size()));
  int error = Z_OK;
  const char* why = gzerror(file_.get(), &error);
  if (n < 0 || (n == 0 && error != Z_OK))
    fail(Exit::input, "%s: after line %ld: expected a whole gzip file, found %s; fetch or compress it again",
         path_.c_str(), number_, error == Z_ERRNO ? strerror(errno) : why);
  if (n > 0 && number_ == 0 && path_.ends_with(".gz") && gzdirect(file_.get()))
    fail(Exit::input, "%s: expected gzip data, found something else; compress it again", path_.c_str());
  const int64_t position = gzoffset(file_.get());
  if (import_.progress) import_.progress->add(static_cast<double>(position - position_) / 1e3);
  position_ = position;
  at_ = 0;
  filled_ = static_cast<size_t>(n);
  return n > 0;
}

bool LineReader::next(std::string& line) {
  line.clear();
  too_long_ = false;
  if (at_ == filled_ && !fill()) return false;
  ++number_;
  do {
    const char* begin = block_.data() + at_;
    const char* newline = static_cast<const char*>(memchr(begin, '\n', filled_ - at_));
    const size_t count = newline ? static_cast<size_t>(newline - begin) : filled_ - at_;
    at_ += count + (newline ? 1 : 0);
    too_long_ = too_long_ || line.size() + count > longest_line;
    if (!too_long_) line.append(begin, count);
    if (newline) break;
  } while (at_ < filled_ || fill());
  if (number_ == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

// Calls f(line, number) for every line; f returns what is wrong with it, or "". A line that is too long comes
// as "".
template <class F>
static void each_line(const std::string& path, Import& import, F&& f) {
  LineReader reader(path, import);
  std::string line;
  line.reserve(usual_line + simdjson::SIMDJSON_PADDING);
  while (reader.next(line)) {
    if (reader.too_long()) line.clear();
    std::string wrong = f(line, reader.number());
    if (reader.too_long()) wrong = format("longer than %zu bytes", longest_line);
    if (wrong.empty()) continue;
    if (++import.done.bad_lines > 10) continue;
    import.done.bad.push_back(as_utf8(path) + ":" + std::to_string(reader.number()) + ": " + wrong);
  }
  if (reader.number() == 0)
    fail(Exit::input, "%s: expected a row a line, found an empty file; fetch or make it again", path.c_str());
}

// ---- the repository's raw format --------------------------------------------------------------------------

static std::string read_text(const dom::object& object, const std::string& key, std::string_view& text) {
  const auto error = object[key].get(text);
  if (error == simdjson::NO_SUCH_FIELD) return key == "content" ? "" : key + " is missing";
  if (error) return key + " is not a string";
  // Escapes may spell half of a surrogate pair, which some versions of the library let pass.
  return text.empty() || simdjson::validate_utf8(text.data(), text.size()) ? "" : key + " is not UTF-8";
}

static std::string read_targets(const dom::object& object, int64_t label_count, std::vector<int32_t>& out) {
  dom::array targets, weights;
  auto error = object["target_ind"].get(targets);
  if (error) return error == simdjson::NO_SUCH_FIELD ? "target_ind is missing" : "target_ind is not a list";
  for (const dom::element target : targets) {
    int64_t label = 0;
    if (target.get(label)) return "target_ind holds something that is not a line number";
    if (label < 0 || label >= label_count)
      return format("target_ind holds %ld, expected 0 to %ld", label, label_count - 1);
    out.push_back(static_cast<int32_t>(label));
  }
  error = object["target_rel"].get(weights);
  if (error) return error == simdjson::NO_SUCH_FIELD ? "" : "target_rel is not a list";
  size_t count = 0;
  for (const dom::element weight : weights) {
    if (!weight.is_number()) return "target_rel holds something that is not a number";
    ++count;
  }
  return count == out.size() ? "" : format("target_rel has %zu values, target_ind %zu", count, out.size());
}

// Returns what is wrong with the line, or "". label_count < 0: a line of lbl, without targets.
static std::string read_row(dom::parser& parser, const std::string& line, int64_t label_count, Row& row) {
  if (line.empty()) return "empty line";
  dom::object object;
  const auto error = parser.parse(line).get(object);
  if (error == simdjson::UTF8_ERROR) return "not UTF-8";
  if (error) return "not a valid JSON object";
  std::string wrong = read_text(object, "uid", row.uid);
  if (wrong.empty()) wrong = read_text(object, "title", row.title);
  if (wrong.empty()) wrong = read_text(object, "content", row.content);
  return !wrong.empty() || label_count < 0 ? wrong : read_targets(object, label_count, row.labels);
}

// label_count < 0: the file of labels.
static void import_rows(const std::string& path, int64_t label_count, Import& import, SideWriter& side) {
  dom::parser parser;
  if (parser.allocate(usual_line)) fail(Exit::machine, "no memory for the JSON parser; close other programs");
  Row row;
  each_line(path, import, [&](const std::string& line, int64_t) {
    row.clear();
    std::string wrong = read_row(parser, line, label_count, row);
    if (!wrong.empty()) row.clear();
    side.add(row);
    return wrong;
  });
}

static std::string raw_file(const std::string& folder, const char* side) {
  const std::string plain = folder + "/" + side + ".json", gzipped = plain + ".gz";
  if (exists(plain) && exists(gzipped))
    fail(Exit::input, "%s: expected one file, found %s too; keep one", plain.c_str(), gzipped.c_str());
  if (!exists(plain) && !exists(gzipped))
    fail(Exit::input, "%s: expected trn, tst and lbl as .json or .json.gz, found no %s; check the folder",
         folder.c_str(), side);
  return exists(plain) ? plain : gzipped;
}

// ---- TSV --------------------------------------------------------------------------------------------------

static std::string check_tsv(std::string_view line, size_t tab) {
  if (line.empty()) return "empty line";
  if (!simdjson::validate_utf8(line.data(), line.size())) return "not UTF-8";
  if (tab == 0) return "the text before the first tab is empty";
  return line.find_first_not_of('\t', tab) == line.npos ? "no tab and label after the text" : "";
}

static void import_tsv(const std::string& path, Import& import, DatasetWriter& out) {
  std::unordered_map<std::string, int32_t> label_of;  // by name
  Row row, label;
  each_line(path, import, [&](const std::string& line, int64_t number) {
    row.clear();
    const size_t tab = std::min(line.find('\t'), line.size());
    std::string wrong = check_tsv(line, tab);
    const std::string uid = std::to_string(number);
    if (wrong.empty()) row.uid = uid, row.title = std::string_view(line).substr(0, tab);
    for (size_t begin = tab + 1; wrong.empty() && begin < line.size();) {
      const size_t end = std::min(line.find('\t', begin), line.size());
      label.uid = label.title = std::string_view(line).substr(begin, end - begin);
      begin = end + 1;
      if (label.uid.empty()) continue;
      const int32_t next = static_cast<int32_t>(label_of.size());
      const auto [at, is_new] = label_of.try_emplace(std::string(label.uid), next);
      if (is_new) out.labels.add(label);
      row.labels.push_back(at->second);
    }
    (wrong.empty() && goes_to_test(row.title) ? out.test : out.train).add(row);
    return wrong;
  });
}

// ---- the whole --------------------------------------------------------------------------------------------

[[noreturn]] static void fail_malformed(const std::string& source, const ImportSummary& done) {
  std::string list;
  for (size_t i = 0; i < std::min<size_t>(done.bad.size(), 5); ++i) list += (i ? "; " : "") + done.bad[i];
  fail(Exit::input, "%s: malformed lines, %ld in all: %s%s; correct them, or import with --skip-bad",
       source.c_str(), done.bad_lines, list.c_str(), done.bad_lines > 5 ? "; ..." : "");
}

ImportSummary import_dataset(const std::string& source, const std::string& folder,
                             const ImportOptions& options) {
  std::error_code ignored;
  const bool raw = fs::is_directory(source, ignored);
  std::vector<std::string> files = {source};
  if (raw) files = {raw_file(source, "lbl"), raw_file(source, "trn"), raw_file(source, "tst")};
  double kilobytes = 0;
  for (const auto& file : files) kilobytes += static_cast<double>(MappedFile(file).size()) / 1e3;

  DatasetWriter out(folder, options);
  Import import;
  if (options.progress) import.progress.emplace("importing " + as_utf8(source), kilobytes, "kB");
  if (raw) {
    import_rows(files[0], -1, import, out.labels);
    import_rows(files[1], out.labels.rows(), import, out.train);
    import_rows(files[2], out.labels.rows(), import, out.test);
  } else {
    import_tsv(source, import, out);
  }
  import.progress.reset();
  if (out.labels.rows() > std::numeric_limits<int32_t>::max())
    fail(Exit::input, "%s: expected fewer than 2^31 labels; leave some out", source.c_str());
  if (import.done.bad_lines && !options.skip_bad) fail_malformed(source, import.done);
  const auto own = raw ? DatasetWriter::Own::by_uid : DatasetWriter::Own::by_title;
  out.finish(own, files, import.sha.hex(), import.done);
  return import.done;
}

bool goes_to_test(std::string_view key) {
  return std::stoul(sha1_hex(key).substr(0, 8), nullptr, 16) % 5 == 0;
}

std::string default_dataset_source() {
  std::error_code ignored;
  const std::string folder = fs::read_symlink("/proc/self/exe", ignored).parent_path() / "sampling/debian";
  if (!exists(folder + "/lbl.json.gz"))
    fail(Exit::input, "%s: expected the default dataset, found none; keep quest where make puts it, or give "
         "--data", folder.c_str());
  return folder;
}

}  // namespace quest
