#include "sampling/dataset.h"

#include <simdjson.h>

#include "kernels/base/error.h"
#include "kernels/base/json.h"

namespace quest {

[[noreturn]] static void damaged(const std::string& path, const std::string& what) {
  fail(Exit::input, "%s: the dataset is damaged: %s; import it again", path.c_str(), what.c_str());
}

// Throws unless low <= value <= high; `what` names the value: "label", "bytes".
static void require(const std::string& path, const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    damaged(path, format("%s: expected %ld to %ld, found %ld", what, low, high, value));
}

Texts::Texts(const std::string& folder, const std::string& side)
    : bytes_(folder + "/" + side + ".text"), ends_(folder + "/" + side + ".ends") {
  const std::string_view text = bytes_.text();
  const int64_t size = std::ssize(text);
  if (ends_.array<int64_t>().size() % 3) damaged(ends_.path(), "expected three values a row");
  if (!simdjson::validate_utf8(text)) damaged(bytes_.path(), "not UTF-8");
  int64_t previous = 0;
  for (const int64_t end : ends_.array<int64_t>()) {
    require(ends_.path(), "end of a text", end, previous, size);
    if (end < size && (text[end] & 0xc0) == 0x80)
      damaged(ends_.path(), format("the end %ld cuts a character in two", end));
    previous = end;
  }
  require(bytes_.path(), "bytes", size, previous, previous);
}

std::string_view Texts::part(int64_t k) const {
  const auto ends = ends_.array<int64_t>();
  const int64_t begin = k ? ends[k - 1] : 0;
  return bytes_.text().substr(begin, ends[k] - begin);
}

Pairs::Pairs(const std::string& folder, const std::string& side, int64_t row_count, int64_t labels)
    : offsets_(folder + "/" + side + ".offsets"), columns_(folder + "/" + side + ".labels") {
  require(offsets_.path(), "values", rows() + 1, row_count + 1, row_count + 1);
  require(offsets_.path(), "first offset", begin(0), 0, 0);
  for (int64_t i = 0; i < row_count; ++i) {
    require(offsets_.path(), "offset", begin(i + 1), begin(i), count());
    int64_t lowest = 0;  // labels ascend within a row
    for (const int32_t label : row(i)) {
      require(columns_.path(), "label", label, lowest, labels - 1);
      lowest = label + int64_t{1};
    }
  }
  require(columns_.path(), "pairs", count(), begin(row_count), begin(row_count));
}

static Split open_split(const std::string& folder, const std::string& side, int64_t labels) {
  const Texts texts(folder, side);
  Split split{texts, Pairs(folder, side, texts.size(), labels), MappedFile(folder + "/" + side + ".own"), {}};
  const auto own = split.own_file.array<int32_t>();
  const std::string& path = split.own_file.path();
  require(path, "values", std::ssize(own), texts.size(), texts.size());
  for (const int32_t label : own) require(path, "own label", label, -1, labels - 1);
  if (exists(folder + "/" + side + ".filter.offsets"))
    split.filter = Pairs(folder, side + ".filter", texts.size(), labels);
  return split;
}

Dataset open_dataset(const std::string& folder) {
  const std::string path = folder + "/meta.json";
  if (!exists(path))
    fail(Exit::input, "%s: expected a dataset, found no meta.json; make one with 'quest data import'",
         folder.c_str());
  simdjson::dom::parser parser;
  simdjson::dom::element meta;
  if (!is_json(parser.parse(read_file(path)), meta)) damaged(path, "not valid JSON");
  const auto read = [&](const char* key, auto value) {
    if (meta[key].get(value)) damaged(path, format("the field \"%s\" is missing or of a wrong type", key));
    return value;
  };
  if (read("format", std::string_view()) != "quest dataset 1")
    fail(Exit::input, "%s: expected quest dataset 1, found another format; import it again", path.c_str());

  Dataset set{folder,
              std::string(read("name", std::string_view())),
              std::string(read("sha256", std::string_view())),
              {},
              {},
              Texts(folder, "labels")};
  const int64_t labels = set.labels.size();
  require(folder + "/labels.ends", "labels", labels, 0, INT32_MAX);
  set.train = open_split(folder, "train", labels);
  set.test = open_split(folder, "test", labels);
  const std::pair<const char*, int64_t> counts[] = {{"labels", labels},
                                                    {"train", set.train.texts.size()},
                                                    {"test", set.test.texts.size()},
                                                    {"train_pairs", set.train.labels.count()},
                                                    {"test_pairs", set.test.labels.count()}};
  for (const auto& [key, found] : counts) require(path, key, read(key, int64_t()), found, found);
  return set;
}

}  // namespace quest
