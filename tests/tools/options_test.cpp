// Options: the table parses, refuses, explains itself, and goes through JSON and back.
#include "tools/options.h"

#include <gtest/gtest.h>
#include <simdjson.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/json.h"

using namespace quest;

namespace {

struct Settings {
  int64_t steps = 100, cache = 4LL << 30;
  double rate = 0.02;
  bool json = false;
  std::string sampler = "minhash", data;
};

std::vector<Option> table(Settings& s) {
  return {{"steps", 's', &s.steps, "N", "training steps", 1, 1000000},
          {"rate", 0, &s.rate, "X", "learning rate", 0, 1},
          {"text-cache", 0, &s.cache, "SIZE", "memory for texts"},
          {"sampler", 0, &s.sampler, "minhash|paper|uniform", "how pairs are drawn"},
          {"data", 'd', &s.data, "DIR", "dataset folder"},
          {"json", 0, &s.json, "", "result as JSON"}};
}

Command command(Settings& s) {
  return {.name = "train",
          .summary = "Train a prompt",
          .arguments = "[FILE]",
          .examples = "  quest train --steps 3\n",
          .options = table(s),
          .run = [&s](const std::vector<std::string>&) { return static_cast<int>(s.steps % 100); }};
}

std::vector<char*> argv_of(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

std::vector<std::string> parse(Settings& s, std::vector<std::string> words) {
  words.insert(words.begin(), "train");
  auto argv = argv_of(words);
  return parse_options(command(s), static_cast<int>(words.size()), argv.data());
}

// The sentence of the usage error that the words cause; empty when there is none.
std::string refusal(const std::vector<std::string>& words) {
  Settings s;
  try {
    parse(s, words);
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Exit::usage);
    return error.what();
  }
  return "";
}

int run(std::vector<std::string> words, std::string* out = nullptr, std::string* err = nullptr) {
  Settings s;
  const std::vector<Command> commands = {
      command(s),
      {.name = "data import",
       .summary = "Import",
       .arguments = "A B",
       .run =
           [](const std::vector<std::string>& a) {
             return a == std::vector<std::string>{"x", "y"} ? 40 : 41;
           }},
      {.name = "broken", .run = [](const auto&) -> int { throw std::bad_alloc(); }},
      {.name = "odd", .run = [](const auto&) -> int { throw std::runtime_error("what"); }},
      {.name = "bad", .run = [](const auto&) -> int { fail(Exit::input, "file: wrong"); }}};
  words.insert(words.begin(), "quest");
  auto argv = argv_of(words);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int status = run_commands(commands, static_cast<int>(words.size()), argv.data());
  const std::string printed = testing::internal::GetCapturedStdout(),
                    said = testing::internal::GetCapturedStderr();
  if (out) *out = printed;
  if (err) *err = said;
  return status;
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(Options, EveryFormOfAValue) {
  Settings s;
  EXPECT_EQ(parse(s, {"--steps", "7", "--rate=1e-3", "one", "--sampler", "paper", "--json", "-d", "dir"}),
            std::vector<std::string>{"one"});
  EXPECT_EQ(s.steps, 7);
  EXPECT_EQ(s.rate, 1e-3);
  EXPECT_EQ(s.sampler, "paper");
  EXPECT_EQ(s.data, "dir");
  EXPECT_TRUE(s.json);
  EXPECT_EQ(s.cache, 4LL << 30);  // untouched
  parse(s, {"-s1000000"});
  EXPECT_EQ(s.steps, 1000000);
  EXPECT_EQ(parse(s, {"--", "--json"}), std::vector<std::string>{"--json"});
}

TEST(Options, Sizes) {
  const std::pair<const char*, int64_t> good[] = {
      {"0", 0},      {"123", 123},       {"4GiB", 4LL << 30}, {"512M", 512 << 20}, {"1.5GB", 1500000000},
      {"3KB", 3000}, {"1TiB", 1LL << 40}};
  for (const auto& [word, value] : good) {
    Settings s;
    parse(s, {"--text-cache", word});
    EXPECT_EQ(s.cache, value) << word;
  }
  for (const char* word :
       {"", "GiB", "4XiB", "4GiBs", "-1", "4 GiB", "1..5G", "99999999T", "1e3", "nan", "inf", "1.5"})
    EXPECT_TRUE(holds(refusal({"--text-cache", word}), "--text-cache: expected a size")) << word;
}

TEST(Options, RefusesWithOneSentence) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--steps", "0"}, "--steps: expected a whole number from 1 to 1000000, found \"0\""},
      {{"--steps", "1000001"}, "found \"1000001\""},
      {{"--steps", "7x"}, "found \"7x\""},
      {{"--steps", " 7"}, "found \" 7\""},
      {{"--steps", "99999999999999999999"}, "from 1 to 1000000"},
      {{"--steps", "1.5"}, "a whole number"},
      {{"--steps"}, "--steps: expected a whole number from 1 to 1000000, found nothing"},
      {{"-s"}, "--steps: expected"},
      {{"-s", "x"}, "--steps: expected"},
      {{"--rate", "nan"}, "--rate: expected a number from 0 to 1"},
      {{"--rate", "inf"}, "--rate"},
      {{"--rate", "1.0001"}, "--rate"},
      {{"--rate", "0.1,"}, "--rate"},
      {{"--sampler", "papers"}, "one of minhash|paper|uniform"},
      {{"--sampler", "paper|uniform"}, "one of"},
      {{"--sampler", ""}, "one of"},
      {{"--json=yes"}, "--json: expected true or false"},
      {{"--stepz", "3"}, "--stepz is no option of quest train"},
      {{"--smapler=paper"}, "--smapler=paper is no option"},
      {{"--s", "3"}, "short for several"},
      {{"--quite-unlike"}, "--quite-unlike is no option of quest train"},
      {{"-x"}, "-x is no option"},
      {{"one", "two"}, "found 2 argument(s)"}};
  for (const auto& [words, part] : cases) {
    const std::string sentence = refusal(words);
    EXPECT_TRUE(holds(sentence, part)) << words[0] << " gave: " << sentence;
    EXPECT_FALSE(holds(sentence, "\n"));
  }
}

TEST(Options, HelpShowsTheTable) {
  std::string all, one, other;
  EXPECT_EQ(run({"help"}, &all), 0);
  EXPECT_EQ(run({"train", "--steps", "x", "--help"}, &one), 0);
  EXPECT_EQ(run({"help", "train"}, &other), 0);
  EXPECT_EQ(one, other);
  for (const char* part : {"train", "Train a prompt", "data import"}) EXPECT_TRUE(holds(all, part)) << part;
  for (const char* part : {"-s, --steps N", "(default 100)", "(default 0.02)", "(default 4GiB)",
                           "minhash|paper|uniform", "[FILE]", "quest train --steps 3", "result as JSON\n"})
    EXPECT_TRUE(holds(one, part)) << part << " in\n" << one;
}

TEST(Options, RunsCommands) {
  std::string out, err;
  EXPECT_EQ(run({"train", "--steps", "12"}), 12);
  EXPECT_EQ(run({"data", "import", "x", "y"}), 40);
  EXPECT_EQ(run({"data", "import", "x"}, nullptr, &err), 2);
  EXPECT_EQ(err,
            "quest: quest data import: expected A B, found 1 argument(s); see quest data import --help\n");
  EXPECT_EQ(run({}, nullptr, &err), 2);
  EXPECT_EQ(run({"trian"}, &out, &err), 2);
  EXPECT_EQ(out, "");
  EXPECT_EQ(err, "quest: \"trian\" is no command; expected train, data import, broken, odd, bad; see quest help\n");
  EXPECT_EQ(run({"data"}, nullptr, &err), 2);
  EXPECT_TRUE(holds(err, "data import"));
  EXPECT_EQ(run({"bad"}, nullptr, &err), 3);
  EXPECT_EQ(err, "quest: file: wrong\n");
  EXPECT_EQ(run({"broken"}), 4);
  EXPECT_EQ(run({"odd"}), 4);
  EXPECT_EQ(run({"--version"}, &out), 0);
  EXPECT_EQ(out, std::string("quest ") + quest_version + "\n");
}

// As a preset does it: what one option changes, the others override, wherever they stand.
TEST(Options, PreparedValuesAreOverridden) {
  for (const std::vector<std::string>& words : {std::vector<std::string>{"train", "--sampler", "paper", "--steps", "100", "F"},
                                               {"train", "--steps", "100", "F", "--sampler", "paper"}}) {
    Settings s;
    Command c = command(s);
    int called = 0;
    c.prepare = [&] {
      ++called;
      if (s.sampler != "paper") return true;
      s = Settings{.steps = 7, .rate = 0.5, .sampler = "paper", .data = ""};
      return false;
    };
    auto copy = words;
    auto argv = argv_of(copy);
    EXPECT_EQ(parse_options(c, static_cast<int>(words.size()), argv.data()), std::vector<std::string>{"F"});
    EXPECT_EQ(s.steps, 100);  // the table's own default, but given
    EXPECT_EQ(s.rate, 0.5);
    EXPECT_EQ(called, 1);
  }
}

TEST(Options, BashCompletes) {
  std::string script;
  ASSERT_EQ(run({"completion"}, &script), 0);
  if (system("command -v bash >/dev/null") != 0) GTEST_SKIP() << "bash is not installed";
  std::string folder = std::filesystem::temp_directory_path() / "quest-options-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const auto complete = [&](const std::string& words) {
    write_file(folder + "/try.sh", script + "COMP_WORDS=(" + words +
                                       "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _quest; "
                                       "echo \"${COMPREPLY[*]}\" >" +
                                       folder + "/out\n");
    EXPECT_EQ(system(("bash " + folder + "/try.sh").c_str()), 0);
    return read_file(folder + "/out");
  };
  EXPECT_EQ(complete("quest tr"), "train\n");
  EXPECT_EQ(complete("quest train --s"), "--steps --sampler\n");
  EXPECT_EQ(complete("quest train --sampler p"), "paper\n");
  EXPECT_EQ(complete("quest train --json --te"), "--text-cache\n");
  EXPECT_EQ(complete("quest data im"), "import\n");
  std::filesystem::remove_all(folder);
}

TEST(Options, JsonAndBack) {
  Settings a, b;
  parse(a, {"--steps", "123", "--rate", "0.1", "--text-cache", "3GiB", "--sampler", "uniform", "--data",
            "a \"b\"", "--json"});
  JsonWriter out;
  out.object();
  write_options(out, table(a));
  out.end();
  simdjson::dom::parser parser;
  read_options(parser.parse(out.text()).value(), table(b), "config.json");
  EXPECT_EQ(b.steps, 123);
  EXPECT_EQ(b.rate, 0.1);
  EXPECT_EQ(b.cache, 3LL << 30);
  EXPECT_EQ(b.sampler, "uniform");
  EXPECT_EQ(b.data, "a \"b\"");
  EXPECT_TRUE(b.json);
}

TEST(Options, DamagedJsonIsRefused) {
  const std::string good =
      R"({"steps":1,"rate":0.5,"text-cache":0,"sampler":"paper","data":"","json":false})";
  const auto sentence = [&](const std::string& from, const std::string& to) -> std::string {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    simdjson::dom::parser parser;
    Settings s;
    try {
      read_options(parser.parse(text).value(), table(s), "config.json");
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Exit::input);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(sentence("1", "1"), "");
  EXPECT_EQ(sentence("0.5", "1"), "");  // a whole number is a number
  const std::pair<const char*, const char*> cases[] = {
      {"\"steps\":1,", ""},        {":1,", ":0,"},
      {":1,", ":\"1\","},          {":1,", ":1.5,"},
      {":1,", ":null,"},           {"0.5", "2"},
      {"0.5", "\"0.5\""},          {"\"paper\"", "\"other\""},
      {"\"paper\"", "3"},          {"false", "0"},
      {"false", "\"true\""},       {"\"\"", "true"},
      {"{", "{\"extra\":1,"},      {":1,", ":[1],"},
      {"cache\":0", "cache\":-1"}, {"cache\":0", "cache\":\"4GiB\""},
      {good.c_str(), "[]"},        {good.c_str(), "3"}};
  for (const auto& [from, to] : cases)
    EXPECT_TRUE(holds(sentence(from, to), "config.json: ")) << from << " -> " << to;
}
