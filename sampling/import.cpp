#include "sampling/import.h"

#include <simdjson.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
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

// A path may hold any bytes, but meta.json is UTF-8.
static std::string name_of(const std::string& folder, const ImportOptions& options) {
  if (!options.name.empty()) return options.name;
  const std::string last = fs::path(folder + "/").parent_path().filename();
  return simdjson::validate_utf8(last.data(), last.size()) ? last : "dataset";
}

DatasetWriter::DatasetWriter(const std::string& folder, const ImportOptions& options)
    : name_(name_of(folder, options)), out_(folder) {}

void DatasetWriter::write_own(const std::string& side, Own own) const {
  const Texts names(out_.file(""), "labels"), texts(out_.file(""), side);
  const Pairs pairs(out_.file(""), side, texts.size(), names.size());
  std::unordered_map<std::string_view, int32_t> by_uid;  // the first of equal ones; the texts stay on disk
  for (int64_t l = 0; l < names.size(); ++l) by_uid.try_emplace(names.uid(l), l);
  by_uid.erase("");
  OutFile file(out_.file(side + ".own"));
  for (int64_t i = 0; i < texts.size(); ++i) {
    const auto at = by_uid.find(own == Own::by_uid ? texts.uid(i) : texts.title(i));
    int32_t label = at == by_uid.end() ? -1 : at->second;
    if (own == Own::by_title && std::ranges::binary_search(pairs.row(i), label)) label = -1;
    file.put(label);
  }
  file.commit();
}

void DatasetWriter::finish(Own own, const std::string& sha256, ImportSummary& done) {
  for (SideWriter* side : {&labels, &train, &test}) side->commit();
  for (const char* side : {"train", "test"}) write_own(side, own);
  done.train = train.rows(), done.train_pairs = train.pairs();
  done.test = test.rows(), done.test_pairs = test.pairs();
  done.labels = labels.rows();
  JsonWriter json;
  json.object().field("format", "quest dataset 1").field("name", name_).field("sha256", sha256);
  json.field("train", done.train).field("test", done.test).field("labels", done.labels);
  json.field("train_pairs", done.train_pairs).field("test_pairs", done.test_pairs);
  write_file(out_.file("meta.json"), json.field("bad_lines", done.bad_lines).end().text() + "\n");
  out_.commit();
}

// ---- reading ----------------------------------------------------------------------------------------------

// What one import carries from file to file.
struct Import {
  Sha sha;  // of the files as they are, compressed or not
  ImportSummary done;
  std::optional<Progress> progress;  // in kB of the files as they are
};

struct BadLine {  // thrown by what reads a line
  std::string what;
};

using GzFile = std::unique_ptr<gzFile_s, int (*)(gzFile)>;

static GzFile open_lines(const std::string& path, Import& import) {
  const MappedFile raw(path);  // refuses what is no readable file
  import.sha.update(raw.data(), raw.size());
  GzFile file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) fail(Exit::input, "%s: cannot be opened: %s; check the file", path.c_str(), strerror(errno));
  gzbuffer(file.get(), block_bytes);
  if (path.ends_with(".gz") && gzdirect(file.get()))
    fail(Exit::input, "%s: expected gzip data, found something else; compress it again", path.c_str());
  return file;
}

// Reads a line of a plain or gzipped file, without its end; false when there is none. A line that is longer
// than longest_line is cut right after that length.
static bool read_line(gzFile file, std::string& line) {
  line.clear();
  int c;
  while ((c = gzgetc(file)) >= 0 && c != '\n')
    if (line.size() <= longest_line) line += static_cast<char>(c);
  return c >= 0 || !line.empty();
}

// Adds a row for every line: read(line, number, row) fills it and returns its side, or throws BadLine; then
// an empty row goes to `bad_side`.
template <class Read>
static void each_line(const std::string& path, Import& import, SideWriter& bad_side, Read&& read) {
  const GzFile file = open_lines(path, import);
  std::string line;
  line.reserve(usual_line + simdjson::SIMDJSON_PADDING);
  int64_t number = 0;
  for (int64_t position = 0; read_line(file.get(), line);) {
    const bool too_long = line.size() > longest_line;
    if (++number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (line.ends_with('\r')) line.pop_back();
    Row row;
    SideWriter* side = &bad_side;
    try {
      if (line.empty()) throw BadLine{"empty line"};
      if (too_long) throw BadLine{format("longer than %zu bytes", longest_line)};
      side = &read(line, number, row);
    } catch (const BadLine& bad) {
      row = {};
      if (++import.done.bad_lines <= 10)
        import.done.bad.push_back(format("%s:%ld: %s", path.c_str(), number, bad.what.c_str()));
    }
    side->add(row);
    const int64_t before = std::exchange(position, gzoffset(file.get()));
    if (import.progress) import.progress->add(static_cast<double>(position - before) / 1e3);
  }
  int error = Z_OK;
  const char* why = gzerror(file.get(), &error);
  if (error != Z_OK)
    fail(Exit::input, "%s: after line %ld: expected a whole gzip file, found %s; fetch or compress it again",
         path.c_str(), number, error == Z_ERRNO ? strerror(errno) : why);
  if (number == 0)
    fail(Exit::input, "%s: expected a row a line, found an empty file; fetch or make it again", path.c_str());
}

// ---- the repository's raw format --------------------------------------------------------------------------

// The field of type T, which `otherwise` calls what is not of it. An optional one that is missing is T().
template <class T>
static T field(const dom::object& object, const char* key, const char* otherwise, bool optional = false) {
  T value{};
  const auto error = object[key].get(value);
  if (error == simdjson::NO_SUCH_FIELD && optional) return {};
  if (error) throw BadLine{format("%s is %s", key, error == simdjson::NO_SUCH_FIELD ? "missing" : otherwise)};
  return value;
}

static std::string_view text_field(const dom::object& object, const char* key, bool optional = false) {
  const auto text = field<std::string_view>(object, key, "not a string", optional);
  // Escapes may spell half of a surrogate pair, which some versions of the library let pass.
  if (!simdjson::validate_utf8(text.data(), text.size())) throw BadLine{format("%s is not UTF-8", key)};
  return text;
}

static void read_targets(const dom::object& object, int64_t label_count, std::vector<int32_t>& out) {
  for (const dom::element target : field<dom::array>(object, "target_ind", "not a list")) {
    int64_t label = 0;
    if (target.get(label)) throw BadLine{"target_ind holds something that is not a line number"};
    if (label < 0 || label >= label_count)
      throw BadLine{format("target_ind holds %ld, expected 0 to %ld", label, label_count - 1)};
    out.push_back(static_cast<int32_t>(label));
  }
  if (object["target_rel"].error() == simdjson::NO_SUCH_FIELD) return;
  size_t count = 0;
  for (const dom::element weight : field<dom::array>(object, "target_rel", "not a list")) {
    if (!weight.is_number()) throw BadLine{"target_rel holds something that is not a number"};
    ++count;
  }
  if (count != out.size())
    throw BadLine{format("target_rel has %zu values, target_ind %zu", count, out.size())};
}

// label_count < 0: the file of labels, without targets.
static void import_rows(const std::string& path, int64_t label_count, Import& import, SideWriter& side) {
  dom::parser parser;
  if (parser.allocate(usual_line)) fail(Exit::machine, "no memory for the JSON parser; close other programs");
  each_line(path, import, side, [&](const std::string& line, int64_t, Row& row) -> SideWriter& {
    dom::object object;
    const auto error = parser.parse(line).get(object);
    if (error) throw BadLine{error == simdjson::UTF8_ERROR ? "not UTF-8" : "not a valid JSON object"};
    row.uid = text_field(object, "uid");
    row.title = text_field(object, "title");
    row.content = text_field(object, "content", true);
    if (label_count >= 0) read_targets(object, label_count, row.labels);
    return side;
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

static void import_tsv(const std::string& path, Import& import, DatasetWriter& out) {
  std::unordered_map<std::string, int32_t> label_of;  // by name
  std::string uid;
  each_line(path, import, out.train, [&](std::string_view line, int64_t number, Row& row) -> SideWriter& {
    const size_t tab = std::min(line.find('\t'), line.size());
    if (!simdjson::validate_utf8(line.data(), line.size())) throw BadLine{"not UTF-8"};
    if (tab == 0) throw BadLine{"the text before the first tab is empty"};
    if (line.find_first_not_of('\t', tab) == line.npos) throw BadLine{"no tab and label after the text"};
    row.uid = uid = std::to_string(number), row.title = line.substr(0, tab);
    for (size_t begin, end = tab; (begin = line.find_first_not_of('\t', end)) != line.npos;) {
      end = std::min(line.find('\t', begin), line.size());
      const std::string_view name = line.substr(begin, end - begin);
      const auto [at, is_new] = label_of.try_emplace(std::string(name), out.labels.rows());
      if (is_new) {
        Row label{name, name, "", {}};
        out.labels.add(label);
      }
      row.labels.push_back(at->second);
    }
    return goes_to_test(row.title) ? out.test : out.train;
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
  if (options.progress) import.progress.emplace("importing " + source, kilobytes, "kB");
  if (raw) {
    import_rows(files[0], -1, import, out.labels);
    import_rows(files[1], out.labels.rows(), import, out.train);
    import_rows(files[2], out.labels.rows(), import, out.test);
  } else {
    import_tsv(source, import, out);
  }
  import.progress.reset();
  if (import.done.bad_lines && !options.skip_bad) fail_malformed(source, import.done);
  out.finish(raw ? DatasetWriter::Own::by_uid : DatasetWriter::Own::by_title, import.sha.hex(), import.done);
  return import.done;
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
