// What the fuzzers start from, and what they have found, without a fuzzer: every seed is accepted, thousands of
// fixed mutations of it end in acceptance or in one sentence, and so does every input kept in tests/fuzz/corpus/TARGET.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/fuzz/seeds.h"

namespace quest {
namespace {

class Fuzz : public testing::TestWithParam<std::string> {};

std::string mutated(std::string bytes, uint64_t seed) {
  uint64_t at = 0;
  const auto below = [&](size_t n) { return n ? random_bits(seed, 1, at++) % n : 0; };
  for (size_t change = 0; change <= below(3) && !bytes.empty(); ++change) {
    const size_t place = below(bytes.size()), length = std::min(1 + below(8), bytes.size() - place);
    static constexpr int64_t odd[] = {0, -1, 1, INT32_MAX, INT64_MAX, INT64_MIN, 256, 4096};
    switch (below(6)) {
      case 0: bytes[place] = static_cast<char>(below(256)); break;
      case 1: bytes[place] = static_cast<char>(bytes[place] ^ 1 << below(8)); break;
      case 2: bytes.erase(place, length); break;
      case 3: bytes.insert(place, bytes.substr(place, length)); break;
      case 4: bytes.resize(place); break;
      default: {
        const int64_t value = odd[below(std::size(odd))];
        memcpy(bytes.data() + place, &value, std::min<size_t>(8, bytes.size() - place));
      }
    }
  }
  return bytes;
}

TEST_P(Fuzz, SeedsAndTheirMutations) {
  const std::vector<std::string> all = fuzz::seeds(GetParam());
  ASSERT_FALSE(all.empty());
  int refused = 0;
  for (const std::string& seed : all) {
    EXPECT_TRUE(fuzz::run(GetParam(), seed)) << GetParam();
    for (uint64_t i = 0; i < 400; ++i) refused += !fuzz::run(GetParam(), mutated(seed, i));
  }
  EXPECT_GT(refused, 0);
}

// Cut anywhere, at every byte of the beginning and at 300 places of the rest, nothing is taken for whole; but lines of
// text, and the fields of a .model, end where they end.
TEST_P(Fuzz, Truncated) {
  const std::string& target = GetParam();
  const bool lines = target == "raw" || target == "sparse" || target == "tsv" || target == "json_lines";
  for (const std::string& seed : fuzz::seeds(target)) {
    const size_t stride = seed.size() / 300 + 1;
    for (size_t cut = 0; cut < seed.size(); cut += cut < 200 ? 1 : stride) {
      const bool accepted = fuzz::run(target, seed.substr(0, cut));
      EXPECT_FALSE(accepted && !lines && target != "sentencepiece") << target << " cut at " << cut;
    }
  }
}

TEST_P(Fuzz, Corpus) {
  int inputs = 0;
  for (const auto& entry : fuzz::fs::directory_iterator(SOURCE_ROOT "/tests/fuzz/corpus/" + GetParam()))
    fuzz::run(GetParam(), read_file(entry.path())), ++inputs;
  EXPECT_GT(inputs, 0);
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& [name, target] : fuzz::targets()) out.push_back(name);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Parsers, Fuzz, testing::ValuesIn(names()), [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quest
