#include "sampling/debian_index.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/hash.h"
#include "kernels/base/words.h"

namespace quest {

static std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

struct Stanza {
  std::string name, summary, relations;
  bool in_relations = false;  // whether a continuation line belongs to Recommends or Suggests

  void read(std::string_view line) {
    if (line[0] == ' ' || line[0] == '\t') {
      if (in_relations) relations += line;
      return;
    }
    const size_t colon = line.find(':');
    if (colon == line.npos) return;
    const std::string_view key = line.substr(0, colon), value = trimmed(line.substr(colon + 1));
    // A translated index says Description-en; Description-md5 is a checksum.
    const bool description = key.starts_with("Description") && key != "Description-md5";
    in_relations = key == "Recommends" || key == "Suggests";
    if (key == "Package") name = value;
    if (description && summary.empty() && valid_utf8(value)) summary = value;
    if (in_relations) (relations += ',') += value;
  }
};

DebianIndex read_debian_index(FILE* stanzas) {
  DebianIndex index;
  Sha sha;
  Stanza stanza;
  char* line = nullptr;
  size_t capacity = 0;
  for (ssize_t n = 0; n >= 0;) {
    n = getline(&line, &capacity, stanzas);
    const std::string_view text(line ? line : "", n > 0 ? static_cast<size_t>(n) : 0);
    sha.update(text.data(), text.size());
    if (!trimmed(text).empty()) {
      stanza.read(text);
      continue;
    }
    const std::string& name = stanza.name;  // the stanza ends here, by an empty line or with the file
    const std::string title = stanza.summary.empty() ? name : name + ": " + stanza.summary;
    if (!name.empty() && valid_utf8(name))
      index.packages.try_emplace(name, DebianPackage{title, stanza.relations});
    stanza = {};
  }
  free(line);
  index.sha256 = sha.hex();
  return index;
}

// The other packages of the index in a package's list: "a (>= 1) | b:any, c [amd64]" names a, b and c.
static std::vector<std::string> targets(const DebianIndex& index, const std::string& package) {
  std::vector<std::string> found;
  const std::string_view all = index.packages.at(package).relations;
  for (size_t begin = 0, end; begin < all.size(); begin = end + 1) {
    end = std::min(all.find_first_of(",|", begin), all.size());
    const std::string_view one = trimmed(all.substr(begin, end - begin));
    const std::string target(one.substr(0, one.find_first_of(" \t\r\n(:[<")));
    if (target != package && index.packages.contains(target)) found.push_back(target);
  }
  return found;
}

ImportSummary import_debian_index(const DebianIndex& index, const std::string& folder,
                                  const ImportOptions& options) {
  DatasetWriter out(folder, options);
  std::map<std::string, int32_t> label_of;
  for (const auto& [name, package] : index.packages)
    for (const std::string& target : targets(index, name)) label_of[target] = 0;
  if (label_of.empty())
    fail(Exit::machine,
         "apt-cache dumpavail: expected packages that recommend others, found none; run 'apt-get update'");
  for (auto& [name, label] : label_of) {
    label = static_cast<int32_t>(out.labels.rows());
    Row row{name, index.packages.at(name).title, "", {}};
    out.labels.add(row);
  }
  for (const auto& [name, package] : index.packages) {
    Row row{name, package.title, "", {}};
    for (const std::string& target : targets(index, name)) row.labels.push_back(label_of[target]);
    if (!row.labels.empty()) (goes_to_test(name) ? out.test : out.train).add(row);
  }
  ImportSummary done;
  out.finish(DatasetWriter::Own::by_uid, index.sha256, done);
  return done;
}

ImportSummary import_debian_index(const std::string& folder, const ImportOptions& options) {
  FILE* pipe = popen("apt-cache dumpavail", "r");
  if (!pipe) fail(Exit::machine, "apt-cache dumpavail: cannot be started; free some memory and run again");
  const DebianIndex index = read_debian_index(pipe);
  const int status = pclose(pipe);
  if (status != 0)
    fail(Exit::machine,
         "apt-cache dumpavail: expected a package index, found exit status %d; run 'apt-get update'",
         WEXITSTATUS(status));
  return import_debian_index(index, folder, options);
}

}  // namespace quest
