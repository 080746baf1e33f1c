// A dataset from the package index of a Debian or Ubuntu machine: names and summaries of packages as texts,
// and what they recommend or suggest as labels.
#pragma once
#include <cstdio>
#include <map>
#include <string>

#include "sampling/import.h"

namespace quest {

struct DebianPackage {
  std::string title;      // "name: summary"; the name alone when there is no summary in UTF-8
  std::string relations;  // Recommends and Suggests as they stand, joined by ','
};

struct DebianIndex {
  std::map<std::string, DebianPackage> packages;  // by name; of a name that occurs twice, the first
  std::string sha256;                             // of the text read
};

// Reads stanzas as `apt-cache dumpavail` prints them.
DebianIndex read_debian_index(FILE* stanzas);

// A package is a query when it recommends or suggests another one of the index (every alternative counts;
// versions and architectures are dropped), and a label when another one does so with it. uid: the name;
// content: empty. Rows are sorted by name; a query that goes_to_test() by its name is a test row. Throws
// Error(machine) when there is no query at all, and what DatasetWriter throws.
ImportSummary import_debian_index(const DebianIndex& index, const std::string& folder,
                                  const ImportOptions& options);

// The same from this machine's apt-cache; throws Error(machine) when that is missing or fails.
ImportSummary import_debian_index(const std::string& folder, const ImportOptions& options = {});

}  // namespace quest
