// ./quest from outside, on a small dataset with the tiny model: what a run leaves behind, that it repeats to
// the bit, survives kill -9 and failing writes, and that bad input gets one sentence and its exit code.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <simdjson.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "index/metrics.h"
#include "index/npy.h"
#include "kernels/base/random.h"
#include "model/tensors.h"
#include "sampling/dataset.h"
#include "sampling/import.h"
#include "tests/sampling/dataset_files.h"

using namespace quest;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;
const std::string tiny_model = SOURCE_ROOT "/tests/golden/tiny.gguf";
const Words small_job = {"--ratio", "0.5", "--validation", "0.2",  "--length", "16",
                         "--batch", "8",   "--rate",       "0.02", "-K",       "2"};

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Outcome {
  int status = -1;  // exit status; 128 + signal
  std::string out, err;
};

// Lines `text<TAB>label...`: a query holds a word of each of its labels and noise.
std::string make_tsv(int rows, int labels, uint64_t seed = 5) {
  const auto word = [](uint64_t bits) {
    std::string w;
    for (int i = 0; i < 5; ++i, bits /= 20) w += "abcdefghiklmnoprstuv"[bits % 20];
    return w;
  };
  std::string text;
  for (int i = 0; i < rows; ++i) {
    const auto at = static_cast<uint64_t>(i);
    std::string query = word(random_bits(seed, 1, at) >> 8), columns;
    std::vector<uint64_t> mine;
    for (int k = 0; k <= i % 3; ++k)
      mine.push_back(random_bits(seed, 2, 3 * at + static_cast<uint64_t>(k)) % static_cast<uint64_t>(labels));
    for (const uint64_t l : mine)
      query += " " + word(1000003 * (l + 1)), columns += "\tabout " + word(1000003 * (l + 1));
    text += query + columns + "\n";
  }
  return text;
}

int64_t lines_of(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

// The JSON without the object of this key, as JsonWriter indents it.
std::string without(std::string json, const std::string& key) {
  const size_t begin = json.find("\n  \"" + key + "\": {"), end = json.find("\n  }", begin);
  EXPECT_TRUE(begin != json.npos && end != json.npos) << key << " is not in " << json;
  if (begin == json.npos || end == json.npos) return json;
  return json.erase(begin, end + 4 - begin);
}

class Job : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    put_file(path("mine.tsv"), make_tsv(150, 25));
    const Outcome o = quest({"data", "import", "mine.tsv", "data"});
    ASSERT_EQ(o.status, 0) << o.err;
    const Outcome base = train("base", {"--steps", "12", "--validate-every", "4"});
    ASSERT_EQ(base.status, 0) << base.err;
    table = base.out, story = base.err;
  }
  static void TearDownTestSuite() {
    delete folder;
    folder = nullptr;
  }
  static std::string path(const std::string& name) { return *folder / name; }
  static std::string in(const std::string& run, const std::string& file) {
    return path("runs/" + run + "/" + file);
  }

  // Starts ./quest in the temporary folder, its output in files.
  static pid_t start(const Words& words, const Words& environment = {},
                     const std::string& input = "/dev/null") {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    const auto redirect = [](const std::string& file, int flags, int to) {
      dup2(open(file.c_str(), flags | O_CLOEXEC, 0644), to);
    };
    redirect(input, O_RDONLY, 0);
    redirect(path("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 1);
    redirect(path("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 2);
    Words all = Words{"quest"} + words, variables = environment + Words{"XDG_CACHE_HOME=" + path("cache")};
    std::vector<char*> arguments;
    for (std::string& w : all) arguments.push_back(w.data());
    arguments.push_back(nullptr);
    for (std::string& v : variables) putenv(v.data());
    if (chdir(path("").c_str()) == 0) execv(QUEST_BINARY, arguments.data());
    _exit(127);
  }
  static Outcome finish(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(path("stdout")),
            read_file(path("stderr"))};
  }
  static Outcome quest(const Words& words, const Words& environment = {},
                       const std::string& input = "/dev/null") {
    return finish(start(words, environment, input));
  }
  static Words train_words(const std::string& name, const Words& more) {
    return Words{"train", "--model", tiny_model, "--data", "data", "--name", name} + small_job + more;
  }
  static Outcome train(const std::string& name, const Words& more) { return quest(train_words(name, more)); }
  static Outcome resume(const std::string& name, const Words& more = {}) {
    return quest(Words{"train", "--resume", "runs/" + name} + more);
  }

  // Exit code `status`, nothing on stdout, and one sentence as the last line of stderr that holds every part.
  static void expect_refusal(const Outcome& o, int status, const Words& parts) {
    EXPECT_EQ(o.status, status) << o.err;
    EXPECT_EQ(o.out, "");
    const size_t at = o.err.find("quest: ");
    ASSERT_TRUE(at == 0 || (at != o.err.npos && o.err[at - 1] == '\n')) << o.err;
    EXPECT_EQ(o.err.find('\n', at), o.err.size() - 1) << o.err;
    for (const std::string& part : parts)
      EXPECT_NE(o.err.find(part, at), o.err.npos) << part << " in " << o.err;
  }

  static void expect_same_files(const std::string& a, const std::string& b) {
    for (const char* file :
         {"prompt.safetensors", "labels.safetensors", "index.hnsw", "index.hnsw.meta", "metrics.jsonl"})
      EXPECT_TRUE(read_file(in(a, file)) == read_file(in(b, file))) << file << " of " << b;
  }
  // All that `ignored` does not name is equal to the byte.
  static void expect_same(const std::string& a, const std::string& b, const Words& ignored = {"seconds"}) {
    expect_same_files(a, b);
    std::string x = read_file(in(a, "result.json")), y = read_file(in(b, "result.json"));
    for (const std::string& key : ignored) x = without(x, key), y = without(y, key);
    EXPECT_EQ(x, y) << b;
  }

  // A copy of a run, to be damaged.
  static std::string copy_run(const std::string& from, const std::string& to) {
    fs::remove_all(path("runs/" + to));
    fs::copy(path("runs/" + from), path("runs/" + to));
    return to;
  }
  static void edit(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = read_file(file);
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos) << from << " in " << text;
    put_file(file, text.replace(at, from.size(), to));
  }
  static int64_t metrics_lines(const std::string& run) {
    if (!exists(in(run, "metrics.jsonl"))) return 0;
    return lines_of(read_file(in(run, "metrics.jsonl")));
  }
  // Starts a job, sends it the signal as soon as `when` holds (or lets it end), and returns how it ended.
  static Outcome interrupted(const Words& words, int signal, const std::function<bool()>& when) {
    const pid_t pid = start(words);
    siginfo_t info{};
    while (!when() && waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           !info.si_pid)
      usleep(200);
    kill(pid, signal);
    return finish(pid);
  }

  static TemporaryFolder* folder;
  static std::string table, story;  // stdout and stderr of the run "base"
};

TemporaryFolder* Job::folder = nullptr;
std::string Job::table, Job::story;

simdjson::dom::element parsed(simdjson::dom::parser& parser, const std::string& text) {
  simdjson::dom::element element;
  EXPECT_FALSE(parser.parse(text).get(element)) << text;
  return element;
}

double number_at(const std::string& json, const std::string& pointer) {
  simdjson::dom::parser parser;
  double x = NAN;
  EXPECT_FALSE(parsed(parser, json).at_pointer(pointer).get(x)) << pointer << " in " << json;
  return x;
}

// Values under the key, in its own words: a comparison to the bit.
std::string value_at(const std::string& json, const std::string& pointer) {
  simdjson::dom::parser parser;
  simdjson::dom::element value;
  EXPECT_FALSE(parsed(parser, json).at_pointer(pointer).get(value)) << pointer << " in " << json;
  return simdjson::minify(value);
}

}  // namespace

// -- what a run leaves behind

TEST_F(Job, RunFolderHoldsEverything) {
  EXPECT_NE(table.find("trained"), table.npos);
  EXPECT_EQ(table.find("run: "), table.npos);
  EXPECT_NE(story.find("run: runs/base"), story.npos);
  EXPECT_NE(story.find("expected time"), story.npos);
  for (const char* file : {"config.json", "metrics.jsonl", "checkpoint.safetensors", "prompt.safetensors",
                           "labels.safetensors", "index.hnsw", "index.hnsw.meta", "result.json"})
    EXPECT_TRUE(exists(in("base", file))) << file;
  EXPECT_EQ(metrics_lines("base"), 12);
  const std::string result = read_file(in("base", "result.json"));
  Words methods = {"/tfidf", "/untrained", "/trained", "/raw/tfidf", "/raw/untrained", "/raw/trained"};
  for (const char* name : {"label_text", "centroid", "neighbours", "z_sum"})
    methods.push_back(std::string("/tfidf_all/") + name);
  for (const std::string& method : methods)
    for (const std::string_view metric : metric_names) {
      const double x = number_at(result, method + "/" + std::string(metric));
      EXPECT_TRUE(x >= 0 && x <= 100) << method << " " << metric << " " << x;
    }
  for (const char* metric : {"P@1", "R@10"}) {
    const std::string at = std::string("/gain/") + metric;
    const double mean = number_at(result, at + "/mean");
    EXPECT_TRUE(number_at(result, at + "/low") <= mean && mean <= number_at(result, at + "/high"));
    EXPECT_NEAR(mean,
                number_at(result, std::string("/trained/") + metric) -
                    number_at(result, std::string("/untrained/") + metric),
                1e-9);
  }
  for (const char* phase : {"sample", "tokenise", "tfidf", "text_pass", "training", "untrained", "evaluation",
                            "index", "total"}) {
    EXPECT_TRUE(number_at(result, std::string("/seconds/") + phase) >= 0);
    EXPECT_TRUE(number_at(result, std::string("/tflop/") + phase) >= 0);
  }
  EXPECT_TRUE(number_at(result, "/tflop/training") > 0);
  EXPECT_EQ(number_at(result, "/hnsw_recall"), 100);  // 25 labels
  EXPECT_EQ(number_at(result, "/protocol/labels"), 25);
  // tfidf is one of the four
  bool found = false;
  for (size_t i = 6; i < methods.size(); ++i)
    found |= value_at(result, methods[i]) == value_at(result, "/tfidf");
  EXPECT_TRUE(found);
  found = false;
  for (const char* name : {"no prompt, last token", "no prompt, centred mean", "start prompt"})
    found |= value_at(result, std::string("/untrained_all/") + name) == value_at(result, "/untrained");
  EXPECT_TRUE(found);
  EXPECT_TRUE(number_at(result, "/tfidf/P@1") > 50) << "the words of the labels stand in the queries";
}

// Jobs that share a text pass are to the bit what each is alone; what is finished is not run again.
TEST_F(Job, ReproduceIsItsRuns) {
  const Words reproduce = {"reproduce", "table1", "--data", "data", "--model", tiny_model, "--name", "table"};
  const auto runs = [](const char* file) { return path("runs/table/" + std::string(file)); };
  const Outcome stopped =
      interrupted(reproduce, SIGTERM, [&] { return exists(runs("default/result.json")); });
  EXPECT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_EQ(stopped.out, "");
  expect_contains(stopped.err, "the same command goes on");
  EXPECT_FALSE(exists(runs("paper/config.json")));
  const auto finished = fs::last_write_time(runs("default/result.json"));
  const Outcome done = quest(reproduce);
  ASSERT_EQ(done.status, 0) << done.err;
  EXPECT_EQ(fs::last_write_time(runs("default/result.json")), finished);
  for (const std::string method :
       {"| TF-IDF, z_sum |", "| untrained suffix |", "| untrained prefix |", "| default (suffix, MinHash) |",
        "| default as prefix |", "| preset paper,"})
    expect_contains(done.out, "\n" + method);
  const std::string prefix = read_file(runs("prefix/result.json"));
  expect_contains(done.out, format("| default as prefix | %.1f |", number_at(prefix, "/trained/P@1")));
  expect_contains(
      done.out, format("| untrained prefix | %.1f |", number_at(prefix, "/untrained_all/start prompt/P@1")));

  const Words protocol = {"--test-queries", "2000", "--pairs", "3000", "--ratio", "0.25", "--length", "32"};
  const Words of_paper = {"--preset", "paper"}, by_uniform = {"--sampler", "uniform"};
  for (const auto& [name, more] : {std::pair("sampler-uniform", by_uniform), std::pair("paper", of_paper)}) {
    const std::string alone = std::string("alone-") + name;
    const Outcome o =
        quest(Words{"train", "--model", tiny_model, "--data", "data", "--name", alone} + protocol + more);
    ASSERT_EQ(o.status, 0) << o.err;
    for (const char* file : {"prompt.safetensors", "labels.safetensors", "index.hnsw", "metrics.jsonl"})
      EXPECT_TRUE(read_file(in(alone, file)) == read_file(runs(name) + "/" + file)) << name << " " << file;
    for (const char* part : {"/trained", "/untrained_all", "/tfidf_all", "/protocol"})
      EXPECT_EQ(value_at(read_file(in(alone, "result.json")), part),
                value_at(read_file(runs(name) + "/result.json"), part));
  }

  expect_refusal(
      quest({"reproduce", "table1", "--data", "elsewhere", "--model", tiny_model, "--name", "table"}), 2,
      {"elsewhere", "'data'"});
  edit(runs("paper/config.json"), "\"pairs\": 3000", "\"pairs\": 300");
  expect_refusal(quest(reproduce), 2, {"--pairs", "paper/config.json"});
  EXPECT_EQ(quest({"reproduce", "table2"}).status, 2);
}

TEST_F(Job, OwnLabelIsDroppedButKeptUnderRaw) {
  // Texts that are also labels, of other texts: ranking finds the own label first.
  std::string tsv;
  for (int i = 0; i < 200; ++i) {
    const auto name = [](int n) { return "t" + std::to_string(n * 37 % 200); };
    tsv += name(i) + "\t" + name((i + 1) % 200) + "\t" + name((i + 7) % 200) + "\n";
  }
  put_file(path("own.tsv"), tsv);
  ASSERT_EQ(quest({"data", "import", "own.tsv", "own"}).status, 0);
  const Outcome o = quest(Words{"train", "--model", tiny_model, "--data", "own", "--name", "own"} +
                          small_job + Words{"--steps", "2", "--json"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, read_file(in("own", "result.json")));  // --json prints the same JSON
  EXPECT_NE(value_at(o.out, "/trained"), value_at(o.out, "/raw/trained"));
  EXPECT_EQ(number_at(o.out, "/raw/untrained/P@1"),
            0);  // the own label stands first, and is none of the true
}

// -- the same bits

TEST_F(Job, RepeatsToTheBit) {
  const Words steps = {"--steps", "12", "--validate-every", "4"};
  ASSERT_EQ(train("again", steps).status, 0);
  expect_same("base", "again");
  for (const char* threads : {"1", "2", "7"}) {
    ASSERT_EQ(train(std::string("threads") + threads, steps + Words{"--threads", threads}).status, 0);
    expect_same("base", std::string("threads") + threads);
  }
  const struct {
    const char* name;
    Words options;
  } ways[] = {{"uncached", {"--text-cache", "0"}},
              {"partly", {"--text-cache", "20KiB"}},
              {"rows16", {"--rows", "16"}},
              {"rows1", {"--rows", "1"}},
              {"spacing", {"--spacing", "1"}},
              {"all", {"--spacing", "2", "--micro", "5", "--rows", "100", "--text-cache", "0"}}};
  for (const auto& way : ways) {
    const Outcome o = train(way.name, steps + way.options);
    ASSERT_EQ(o.status, 0) << way.name << o.err;
    expect_same("base", way.name, {"seconds", "tflop"});  // what is computed twice is counted twice
  }
}

// The least that is named when too little is given is enough, a byte less is not, and no budget changes a bit.
TEST_F(Job, MemoryIsABoundThatChangesNoBit) {
  for (const Words& kind : {Words{}, Words{"--placement", "prefix", "--pooling", "mean", "--centre"}}) {
    const Words steps = Words{"--steps", "6", "--validate-every", "3", "--threads", "2"} + kind;
    const std::string run = kind.empty() ? "suffix-memory" : "prefix-memory";
    ASSERT_EQ(train(run, steps).status, 0);
    const auto least_at = [&](int64_t bytes) {
      const Outcome o = train("refused", steps + Words{"--memory", std::to_string(bytes)});
      expect_refusal(o, 4, {"memory: expected at least", std::to_string(bytes), "--batch"});
      EXPECT_FALSE(exists(path("runs/refused")));
      const size_t at = o.err.find("give --memory ");
      return at == o.err.npos ? 0 : std::stoll(o.err.substr(at + 14));
    };
    const int64_t least = least_at(1);
    EXPECT_GT(least, 24 << 20);  // the program itself
    EXPECT_EQ(least_at(least - 1), least);
    std::string stories;
    for (int i = 0; i < 10; ++i) {
      const std::string name = run + std::to_string(i);
      const int64_t bytes = least + (int64_t{1} << 13 << i) - (i ? 0 : 1 << 13);
      const Outcome o = train(name, steps + Words{"--memory", std::to_string(bytes)});
      ASSERT_EQ(o.status, 0) << bytes << o.err;
      expect_same(run, name, {"seconds", "tflop"});
      stories += o.err;
    }
    // They did differ: passes of one text with nothing held, and a step with all it could use.
    EXPECT_NE(stories.find("16 passes of 1 texts, 0 of them held"), stories.npos) << stories;
    EXPECT_NE(stories.find("does 1.00 times the work"), stories.npos) << stories;
  }
  expect_refusal(quest({"predict", "--run", "runs/base", "--memory", "1", "text"}), 4, {"give --memory"});
  expect_refusal(quest({"eval", "--run", "runs/base", "--memory", "24MiB"}), 4, {"give --memory"});
  const Outcome all = quest({"predict", "--run", "runs/base", "some text"});
  EXPECT_EQ(quest({"predict", "--run", "runs/base", "--memory", "40MiB", "some text"}).out, all.out);
  for (const char* wrong : {"0", "-1", "6GB!", "lots", "99999999999GiB"})
    expect_refusal(train("refused", {"--memory", wrong}), 2, {"--memory"});
}

TEST_F(Job, RepeatsToTheBitInEveryVariant) {
  const Words variants[] = {{"--precision", "f32"},
                            {"--placement", "prefix"},
                            {"--placement", "prefix", "--pooling", "mean", "--precision", "f32"},
                            {"--pooling", "mean", "--centre"},
                            {"--symmetric", "--sampler", "uniform", "--decay", "0.1"},
                            {"--sampler", "paper", "--clip", "0", "--kernels", "portable"},
                            {"--quant", "nf4"},
                            {"--constant"},
                            {"--unmasked"},
                            {"--init", ""},
                            {"--preset", "authors"}};
  std::vector<std::string> losses = {read_file(in("base", "metrics.jsonl"))};
  int number = 0;
  for (const Words& variant : variants) {
    const std::string a = "variant" + std::to_string(number++), b = a + "again";
    const Words steps = Words{"--steps", "6", "--validate-every", "2"} + variant;
    const Outcome first = train(a, steps);
    ASSERT_EQ(first.status, 0) << first.err;
    ASSERT_EQ(
        train(b, steps + Words{"--threads", "7", "--rows", "50", "--micro", "3", "--text-cache", "0"}).status,
        0);
    expect_same(a, b, {"seconds", "tflop"});
    losses.push_back(read_file(in(a, "metrics.jsonl")));
  }
  std::sort(losses.begin(), losses.end());
  EXPECT_TRUE(std::unique(losses.begin(), losses.end()) == losses.end())
      << "two variants trained the same way";
}

// The values that a preset sets, and those that are given beside it, stand in the run's config.json.
TEST_F(Job, PresetsAreWrittenDown) {
  const Outcome o = train("preset", {"--steps", "2", "--preset", "paper", "--clip", "1"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(o.err.find("the paper does not name them") != o.err.npos) << o.err;
  const std::string config = read_file(in("preset", "config.json"));
  for (const char* part :
       {"\"preset\": \"paper\"", "\"placement\": \"prefix\"", "\"quant\": \"nf4\"", "\"sampler\": \"paper\"",
        "\"clip\": 1", "\"prompt-rows\": 2", "\"batch\": 8", "\"constant\": true",
        "\"query-text\": \"The title of the product is {title}. Its"})
    EXPECT_TRUE(config.find(part) != config.npos) << part << " in " << config;
  EXPECT_EQ(quest({"predict", "--run", "runs/preset", "some text"}).status, 0);
  ASSERT_EQ(train("flag", {"--steps", "2", "--preset", "paper", "--unmasked=false"}).status, 0);
  EXPECT_TRUE(read_file(in("flag", "config.json")).find("\"unmasked\": false") != std::string::npos);
  EXPECT_EQ(resume("preset", {"--preset", "paper"}).status, 0);  // the same: no contradiction
  expect_refusal(resume("preset", {"--rate", "0.5"}), 2, {"--rate"});
}

// -- interrupted

TEST_F(Job, KilledAndResumedToTheSameBits) {
  const Words steps = {"--steps", "120", "--validate-every", "10", "--patience", "100"};
  ASSERT_EQ(train("whole", steps).status, 0);
  ASSERT_EQ(metrics_lines("whole"), 120);
  int killed = 0, number = 0;
  const auto try_kill = [&](const std::function<bool(const std::string&)>& when) {
    const std::string run = "killed" + std::to_string(number++);
    const Outcome o = interrupted(train_words(run, steps), SIGKILL, [&] { return when(run); });
    killed += o.status == 128 + SIGKILL;
    const bool early = !exists(in(run, "config.json"));  // nothing to resume: start again
    const Outcome again = early ? train(run, steps) : resume(run);
    ASSERT_EQ(again.status, 0) << again.err;
    expect_same("whole", run);
    for (const auto& entry : fs::directory_iterator(path("runs/" + run)))
      EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
  };
  for (const char* file :
       {"config.json", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.safetensors.tmp",
        "prompt.safetensors", "index.hnsw", "result.json.tmp"})
    try_kill([&](const std::string& run) { return exists(in(run, file)); });
  for (const int64_t lines : {1, 9, 11, 45, 77, 119, 120})
    try_kill([&](const std::string& run) { return metrics_lines(run) >= lines; });
  EXPECT_GE(killed, 7);  // the others ended first

  // Killed again and again, at every fifteenth step.
  Words words = train_words("often", steps);
  for (int64_t lines = 15; lines < 120; lines += 15) {
    interrupted(words, SIGKILL, [&] { return metrics_lines("often") >= lines; });
    words = {"train", "--resume", "runs/often"};
  }
  ASSERT_EQ(resume("often").status, 0);
  expect_same("whole", "often");
  // A finished run resumes, too.
  ASSERT_EQ(resume("often", {"--threads", "7", "--rows", "64", "--text-cache", "4GiB"}).status, 0);
  expect_same("whole", "often");
}

TEST_F(Job, ControlCSavesAndSaysHowToResume) {
  const Words steps = {"--steps", "240", "--validate-every", "50", "--patience", "100"};
  ASSERT_EQ(train("calm", steps).status, 0);
  int number = 0;
  for (const int64_t lines : {0, 1, 20, 60}) {
    const std::string run = "stopped" + std::to_string(number++);
    const Outcome o = interrupted(train_words(run, steps), number % 2 ? SIGINT : SIGTERM, [&] {
      return lines == 0 ? exists(in(run, "config.json")) : metrics_lines(run) >= lines;
    });
    EXPECT_EQ(o.status, 130) << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_NE(o.err.find("quest train --resume runs/" + run), o.err.npos) << o.err;
    if (lines > 0) {
      EXPECT_TRUE(exists(in(run, "checkpoint.safetensors")));
      const int64_t done = metrics_lines(run);
      EXPECT_TRUE(done >= lines && done < 240) << done;
    }
    const Outcome again = resume(run);
    ASSERT_EQ(again.status, 0) << again.err;
    expect_same("calm", run);
  }
}

TEST_F(Job, ControlCEndsTheDownload) {  // of the default model, before the run begins
  put_file(path("bin/python3"),
           "#!/bin/sh\ncase \"$*\" in *download*) kill -INT $PPID; kill -INT $$; exit 0;; esac\n");
  fs::permissions(path("bin/python3"), fs::perms::owner_all);
  const Outcome o = quest({"train", "--data", "data", "--name", "fetched"}, {"PATH=" + path("bin")});
  expect_refusal(o, 4, {"python3", "signal 2"});
  EXPECT_FALSE(exists(path("runs/fetched")));
}

TEST_F(Job, EachFailedWriteKeepsTheCheckpoint) {
  const Words steps = {"--steps", "4", "--validate-every", "2", "--threads", "1", "--length", "6"};
  const auto faulty = [&](int at, int why) {
    fs::remove_all(path("runs/faulty"));
    return quest(
        train_words("faulty", steps),
        {"LD_PRELOAD=" BUILD_ROOT "/faults.so", "ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0",
         "FAULT_FOLDER=" + path("runs/faulty"), "FAULT_AT=" + std::to_string(at),
         "FAULT_ERRNO=" + std::to_string(why), "FAULT_COUNT=" + path("count")});
  };
  ASSERT_EQ(train("sound", steps).status, 0);
  const Outcome whole = faulty(0, ENOSPC);
  ASSERT_EQ(whole.status, 0) << whole.err;
  expect_same("sound", "faulty");
  const int calls = std::stoi(read_file(path("count")));
  EXPECT_GE(calls, 45);  // a folder, four metrics lines, two checkpoints, six other files of five calls each
  for (int at = 1; at <= calls; ++at) {
    const Outcome o = faulty(at, at % 3 ? ENOSPC : EIO);
    expect_refusal(o, 4, {"faulty", strerror(at % 3 ? ENOSPC : EIO)});
    const Outcome again = exists(in("faulty", "config.json")) ? resume("faulty") : train("faulty", steps);
    ASSERT_EQ(again.status, 0) << "call " << at << ": " << again.err;
    expect_same("sound", "faulty");
  }
}

// Memory that is refused anywhere, also to a library or on a worker thread: a sentence and exit 4, or no harm.
TEST_F(Job, EachFailedAllocationEndsInASentence) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer has a heap of its own";
#endif
  const Words steps = {"--steps",  "4", "--validate-every", "2",      "--threads", "2",
                       "--length", "6", "--sampler",        "uniform"};  // which needs no counts
  const auto faulty = [&](int64_t at) {
    fs::remove_all(path("runs/poor"));
    return quest(train_words("poor", steps),
                 {"LD_PRELOAD=" BUILD_ROOT "/heap_faults.so", "HEAP_FAULT_AT=" + std::to_string(at),
                  "HEAP_FAULT_COUNT=" + path("allocations")});
  };
  ASSERT_EQ(train("rich", steps).status, 0);
  const Outcome whole = faulty(0);
  ASSERT_EQ(whole.status, 0);
  expect_same("rich", "poor");
  int64_t all = 0, most = 0;
  ASSERT_EQ(sscanf(read_file(path("allocations")).c_str(), "%ld %ld", &all, &most), 2);
  EXPECT_GT(all, 10000);
  // The plan's word on the heap, from outside: never more than what was loaded and the results, nor much less.
  double loaded = 0, results = 0;
  const size_t at_loaded = whole.err.find("loaded ");
  ASSERT_EQ(sscanf(whole.err.c_str() + at_loaded, "loaded %lf MiB, results %lf MiB", &loaded, &results), 2);
  EXPECT_LE(static_cast<double>(most), (loaded + results) * (1 << 20));
  EXPECT_GE(static_cast<double>(most), (loaded + results - 1.1) * (1 << 20));  // what is loaded is rounded up
  int refused = 0;
  for (int64_t i = 0; i < 90; ++i) {
    const int64_t at = i < 10 ? i + 1 : 1 + static_cast<int64_t>(random_uniform(77, 1, i) * double(all));
    SCOPED_TRACE(format("allocation %ld of %ld", at, all));
    const Outcome o = faulty(at);
    EXPECT_TRUE(o.status == 4 || o.status == 0) << o.status << o.err;
    if (o.status == 4) {
      ++refused;
      expect_refusal(o, 4, {"memory"});
      const Outcome again = exists(in("poor", "config.json")) ? resume("poor") : train("poor", steps);
      ASSERT_EQ(again.status, 0) << again.err;
    }
    expect_same("rich", "poor");
  }
  EXPECT_GT(refused, 60);
}

// Two processes in one run folder would each overwrite what the other saves.
TEST_F(Job, OneProcessARun) {
  ASSERT_EQ(train("first", {"--steps", "2"}).status, 0);
  fs::create_directories(path("runs/busy"));
  fs::copy_file(in("first", "config.json"), in("busy", "config.json"));
  {
    const FileLock lock(in("busy", "config.json"), "this test");
    expect_refusal(resume("busy"), 4, {"config.json", "another process at work on this run"});
  }
  EXPECT_EQ(resume("busy").status, 0);
  expect_same("first", "busy");
}

// The same of a program that only reads a model and texts: every third of its allocations.
TEST_F(Job, EachFailedAllocationOfEmbedEndsInASentence) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer has a heap of its own";
#endif
  const auto faulty = [&](int64_t at) {
    return quest({"embed", "--model", tiny_model, "--length", "8", "--threads", "2", "--out", path("e.npy"), "red stone"},
                 {"LD_PRELOAD=" BUILD_ROOT "/heap_faults.so", "HEAP_FAULT_AT=" + std::to_string(at),
                  "HEAP_FAULT_COUNT=" + path("allocations")});
  };
  ASSERT_EQ(faulty(0).status, 0);
  const std::string whole = read_file(path("e.npy"));
  int64_t all = 0;
  ASSERT_EQ(sscanf(read_file(path("allocations")).c_str(), "%ld", &all), 1);
  EXPECT_GT(all, 2000);
  for (int64_t at = 1; at <= all; at += 3) {
    SCOPED_TRACE(format("allocation %ld of %ld", at, all));
    const Outcome o = faulty(at);
    if (o.status == 0)
      EXPECT_EQ(read_file(path("e.npy")), whole);
    else
      expect_refusal(o, 4, {"memory"});
  }
}

TEST_F(Job, FullStandardOutputIsAFailure) {
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open("/dev/full", O_WRONLY), 1);
    dup2(open("/dev/null", O_WRONLY), 2);
    execl(QUEST_BINARY, "quest", "--help", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 4);
}

// -- refusals

TEST_F(Job, ResumeRefusesWhatDoesNotBelong) {
  std::string other = read_file(tiny_model);
  other[other.size() - 9] ^= 1;  // a weight
  put_file(path("other.gguf"), other);
  put_file(path("other.tsv"), make_tsv(150, 25, 6));
  ASSERT_EQ(quest({"data", "import", "other.tsv", "other"}).status, 0);
  copy_run("base", "refused");
  const std::string checkpoint = "refused/checkpoint.safetensors";
  expect_refusal(resume("refused", {"--model", "other.gguf"}), 3, {checkpoint, "model"});
  expect_refusal(resume("refused", {"--data", "other"}), 3, {checkpoint, "data"});
  expect_refusal(resume("refused", {"--kernels", "portable"}), 3, {checkpoint, "kernels", "portable"});
  expect_refusal(resume("refused", {"--steps", "13"}), 2, {"--steps", "config.json"});
  expect_refusal(resume("refused", {"--name", "new"}), 2, {"--name"});
  const std::string config = in("refused", "config.json");
  const struct {
    const char *from, *to;
    Words parts;
  } edits[] = {{"\"kernels\": \"\"", "\"kernels\": \"portable\"", {checkpoint, "kernels", "portable"}},
               {"\"precision\": \"bf16\"", "\"precision\": \"f32\"", {checkpoint, "precision"}},
               {"\"data\": \"data\"", "\"data\": \"other\"", {checkpoint, "data"}},
               {"tests/golden/tiny.gguf", "tests/golden/none.gguf", {"none.gguf"}},
               {"\"prompt-rows\": 2", "\"prompt-rows\": 3", {checkpoint, "3 x 64", "2 x 64"}},
               {"\"steps\": 12", "\"steps\": 11", {checkpoint, "step"}},
               {"\"steps\": 12", "\"steps\": -1", {"config.json", "steps", "-1"}},
               {"\"steps\": 12", "\"steps\": \"12\"", {"config.json", "steps"}},
               {"\"rate\": 0.02", "\"rate\": true", {"config.json", "rate"}},
               {"\"rate\": 0.02", "\"rate\": 1e999", {"config.json"}},
               {"\"symmetric\": false", "\"symmetric\": 0", {"config.json", "symmetric"}},
               {"\"placement\": \"suffix\"", "\"placement\": \"middle\"", {"config.json", "middle"}},
               {"\"patience\"", "\"patienec\"", {"config.json", "patience"}},
               {"\"patience\"", "\"new\": 1, \"patience\"", {"config.json", "options"}},
               {"{", "[", {"config.json", "JSON"}}};
  const std::string good = read_file(config);
  for (const auto& e : edits) {
    edit(config, e.from, e.to);
    SCOPED_TRACE(e.to);
    expect_refusal(resume("refused"), 3, e.parts);
    put_file(config, good);
  }
  for (const std::string text : {"", "null", "[]", "{\"data\": \"\xff\"}"}) {
    put_file(config, text);
    expect_refusal(resume("refused"), 3, {"config.json"});
  }
  fs::remove(config);
  expect_refusal(resume("refused"), 3, {"config.json"});
  expect_refusal(resume("absent"), 3, {"absent/config.json"});
  EXPECT_FALSE(exists(path("runs/absent")));
}

TEST_F(Job, DamagedCheckpointIsRefused) {
  copy_run("base", "damaged");
  const std::string file = in("damaged", "checkpoint.safetensors"), good = read_file(file);
  const auto refused = [&](const char* what, std::string bytes) {
    SCOPED_TRACE(what);
    put_file(file, bytes);
    expect_refusal(resume("damaged"), 3, {"damaged/checkpoint.safetensors"});
  };
  for (const size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, good.size() / 2, good.size() - 1})
    refused("truncated", good.substr(0, size));
  refused("longer", good + "more");
  for (const size_t byte : {0, 1, 4, 7}) {
    std::string bytes = good;
    bytes[byte] ^= '\x80';
    refused("lying header length", bytes);
  }
  refused("NaN", good.substr(0, good.size() - 4) + "\xff\xff\xff\x7f");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    const size_t at = bytes.find(from);
    EXPECT_NE(at, bytes.npos) << from;
    refused(to.c_str(), bytes.replace(at, from.size(), to));
  };
  changed("\"dtype\": \"F32\"", "\"dtype\": \"F16\"");
  changed("\"shape\": [2", "\"shape\": [3");
  changed("\"best\"", "\"bets\"");
  changed("\"step\": \"12\"", "\"step\": \"1x\"");
  changed("\"step\": \"12\"", "\"step\": \"-2\"");
  changed("\"step\": \"12\"", "\"sepp\": \"12\"");
  changed("\"finished\"", "\"finisked\"");
  changed("\"best_score\": \"", "\"best_score\": \"nan");
  put_file(file, good);
  ASSERT_EQ(resume("damaged").status, 0);
  expect_same("base", "damaged");
}

TEST_F(Job, UsageErrorsExitWithTwo) {
  expect_refusal(train("wrong", {"--stepz", "3"}), 2, {"--stepz", "quest train --help"});
  expect_refusal(train("wrong", {"--steps", "many"}), 2, {"--steps", "many"});
  expect_refusal(train("wrong", {"--batch", "1"}), 2, {"--batch", "from 2"});
  expect_refusal(train("wrong", {"--rate", "nan"}), 2, {"--rate", "nan"});
  expect_refusal(train("wrong", {"--text-cache", "4GB?"}), 2, {"--text-cache"});
  expect_refusal(train("wrong", {"--placement", "infix"}), 2, {"--placement", "infix"});
  expect_refusal(train("wrong", {"--length", "63"}), 2, {"--length", "64 positions"});
  expect_refusal(train("wrong", {"--init", "\xff"}), 2, {"--init", "UTF-8"});
  expect_refusal(train("wrong", {"word"}), 2, {"argument"});
  expect_refusal(train("wrong", {"--query-text", "no place"}), 2, {"--query-text", "{title}"});
  expect_refusal(quest({"quantize", "--to", "int8", "--out", "q"}), 2, {"--to", "int8"});
  expect_refusal(train("base", {}), 2, {"runs/base", "exists", "--resume"});
  expect_refusal(train("wrong", {"--kernels", "sse2"}), 2, {"sse2"});
  EXPECT_FALSE(exists(path("runs/wrong")));
  expect_refusal(quest({}), 2, {"quest help"});
  expect_refusal(quest({"trian"}), 2, {"trian", "train"});
  expect_refusal(quest({"data"}), 2, {"data"});
  expect_refusal(quest({"info"}), 2, {"argument"});
  expect_refusal(quest({"sample"}), 2, {"--data"});
  expect_refusal(quest({"data", "import", "mine.tsv"}), 2, {"argument"});
  expect_refusal(quest({"data", "import", "mine.tsv", "data"}), 2, {"data", "exists"});
}

TEST_F(Job, BadModelIsRefused) {
  const std::string good = read_file(tiny_model);
  const auto refused = [&](const char* what, const std::string& bytes) {
    SCOPED_TRACE(what);
    put_file(path("bad.gguf"), bytes);
    expect_refusal(train("bad", {"--model", "bad.gguf"}), 3, {"bad.gguf"});
    expect_refusal(quest({"info", "bad.gguf"}), 3, {"bad.gguf"});
  };
  refused("empty", "");
  refused("text", "hello");
  for (const size_t part : {1, 10, 50, 90, 99})
    refused("truncated", good.substr(0, good.size() * part / 100));
  std::string version = good, count = good;
  version[4] = 9, count[14] = '\x7f';
  refused("version", version);
  refused("lying count", count);
  expect_refusal(train("bad", {"--model", "none.gguf"}), 3, {"none.gguf"});
  expect_refusal(train("bad", {"--model", "data"}), 3, {"data"});
  if (geteuid() != 0) {
    chmod(path("bad.gguf").c_str(), 0);
    expect_refusal(train("bad", {"--model", "bad.gguf"}), 3, {"bad.gguf", "Permission"});
  }
  EXPECT_FALSE(exists(path("runs/bad")));
}

TEST_F(Job, BadDatasetIsRefused) {
  for (const auto& entry : fs::directory_iterator(path("data"))) {
    const std::string name = entry.path().filename();
    SCOPED_TRACE(name);
    fs::remove_all(path("broken"));
    fs::copy(path("data"), path("broken"));
    const std::string file = path("broken/" + name), good = read_file(file);
    put_file(file, good.substr(0, good.size() - good.size() / 3 - 1));
    expect_refusal(train("broken", {"--data", "broken"}), 3, {"broken"});
    fs::remove(file);
    expect_refusal(train("broken", {"--data", "broken"}), 3, {"broken"});
    expect_refusal(quest({"sample", "--data", "broken"}), 3, {"broken"});
  }
  expect_refusal(train("broken", {"--data", "nowhere"}), 3, {"nowhere"});
  expect_refusal(train("broken", {"--data", "mine.tsv"}), 3, {"mine.tsv"});
  EXPECT_FALSE(exists(path("runs/broken")));
}

// quest plan: the table and the JSON say the same, and what cannot be planned is refused.
TEST_F(Job, PlansAreSpoken) {
  const Words step = {"plan", "--model", "tinyllama-1.1b", "--batch", "64", "--threads", "2"};
  const Outcome spoken = quest(step + Words{"--gpu", "8GiB"}),
                json = quest(step + Words{"--gpu", "8GiB", "--json"});
  ASSERT_EQ(spoken.status, 0) << spoken.err;
  ASSERT_EQ(json.status, 0) << json.err;
  simdjson::dom::parser parser;
  const simdjson::dom::element plan = parser.parse(json.out);
  const auto peak = uint64_t(plan["peak_bytes"]);
  EXPECT_EQ(uint64_t(plan["budget_bytes"]), uint64_t{8} << 30);
  EXPECT_TRUE(bool(plan["fits"]));
  EXPECT_NE(spoken.out.find(" " + std::to_string(peak) + " "), std::string::npos) << spoken.out;
  EXPECT_NE(spoken.out.find("fits, "), std::string::npos);
  uint64_t weights = 0, arena = 0;
  for (const auto entry : plan["entries"].get_array()) {
    const bool weight = entry["group"].get_string().value() == "weights";
    (weight ? weights : arena) += weight ? uint64_t(entry["bytes"]) : 0;
    if (!weight)
      arena = std::max(arena, uint64_t(entry["offset"]) + (uint64_t(entry["bytes"]) + 63) / 64 * 64);
  }
  EXPECT_EQ(weights + arena, peak);

  EXPECT_NE(quest(step + Words{"--gpu", "1GiB"}).out.find("does not fit; lower"), std::string::npos);
  for (const Words& bad : {Words{"--gpu", "24GB5"},
                           {"--gpu", "1GiB", "--memory", "1GiB"},
                           {"--length", "2048"},
                           {"--model", "gpt-2"},
                           {"--batch", "1000000"}}) {
    const Outcome refused = quest(step + bad);
    EXPECT_EQ(refused.status, 2) << refused.err;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
  put_file(path("absurd.json"),
           R"({"model_type":"llama","num_hidden_layers":4096,"hidden_size":2147483646,)"
           R"("intermediate_size":2147483647,"num_attention_heads":2147483646,"head_dim":2,)"
           R"("vocab_size":2147483647,"max_position_embeddings":8192,"rms_norm_eps":1e-5})");
  const Outcome absurd = quest(step + Words{"--model", "absurd.json"});
  EXPECT_EQ(absurd.status, 3) << absurd.err;
}

// Every part runs and gives finite rates; shares of the ceiling are shares; nothing is left behind.
TEST_F(Job, BenchMeasuresEveryPart) {
  const Words bench = {"bench", "--model", tiny_model, "--data", "data", "--length", "8", "--prompt-rows", "3",
                       "--batch", "4", "--rows", "32", "--texts", "8", "--rounds", "3", "--threads", "2"};
  fs::create_directory(path("tmp"));
  const Outcome json = quest(bench + Words{"--json"}, {"TMPDIR=" + path("tmp")}), spoken = quest(bench + Words{"encode", "sample"});
  ASSERT_EQ(json.status, 0) << json.err;
  ASSERT_EQ(spoken.status, 0) << spoken.err;
  EXPECT_TRUE(fs::is_empty(path("tmp")));
  simdjson::dom::parser parser;
  const simdjson::dom::element all = parser.parse(json.out);
  std::set<std::string> units;
  int64_t with_share = 0;
  for (const auto result : all["results"].get_array()) {
    units.insert(std::string(result["unit"].get_string().value()));
    const double least = result["least"], median = result["median"], most = result["most"];
    EXPECT_TRUE(0 < least && least <= median && median <= most && most < 1e15) << result["name"];
    double share = 0.5;
    with_share += !result["of_ceiling"].get(share);
    EXPECT_TRUE(0 < share && share < 1.5) << result["name"];
  }
  units.erase("GOP/s");  // where the processor multiplies bytes
  EXPECT_EQ(units, (std::set<std::string>{"GFLOP/s", "GB/s", "tokens/s", "pairs/s", "MB/s", "queries/s"}));
  EXPECT_GE(with_share, 7);  // products forward and backward, encode, two kinds of steps
  EXPECT_EQ(std::count(spoken.out.begin(), spoken.out.end(), '\n'), 5) << spoken.out;
  EXPECT_NE(spoken.out.find("matmul "), std::string::npos);
  EXPECT_EQ(quest(bench + Words{"ops", "--kernels", "portable", "--memory", "200MiB"}).status, 0);
  EXPECT_EQ(quest(bench + Words{"ops", "encode", "--precision", "int8"}).status, 0);
  expect_refusal(quest(bench + Words{"encode", "train-suffix", "--precision", "int8"}), 2, {"train-suffix", "8 bits"});
  std::string all_test = "text";  // of which no training row is left
  while (!goes_to_test(all_test)) all_test += "s";
  put_file(path("test.tsv"), all_test + "\tlabel\n");
  ASSERT_EQ(quest({"data", "import", "test.tsv", "test"}).status, 0);
  for (const auto& [bad, status] :
       {std::pair{Words{"everything"}, 2}, {{"--memory", "1MiB"}, 4}, {{"--data", "test"}, 3}, {{"import", "--source", "none"}, 3}}) {
    const Outcome refused = quest(bench + bad, {"TMPDIR=" + path("tmp")});
    EXPECT_EQ(refused.status, status) << refused.err;
    EXPECT_NE(refused.err.find("quest: "), std::string::npos) << refused.err;
  }
  EXPECT_TRUE(fs::is_empty(path("tmp")));
}

TEST_F(Job, SmallAndOddDatasets) {
  const auto trained_on = [](const std::string& tsv, const Words& more = {}) {
    fs::remove_all(path("odd"));
    fs::remove_all(path("runs/odd"));
    put_file(path("odd.tsv"), tsv);
    const Outcome o = quest({"data", "import", "odd.tsv", "odd"});
    EXPECT_EQ(o.status, 0) << o.err;
    return train("odd", Words{"--data", "odd", "--steps", "2"} + more);
  };
  expect_refusal(trained_on("only one line\tlabel\n"), 3, {"odd"});
  expect_refusal(trained_on(make_tsv(3, 2)), 3, {"odd"});
  expect_refusal(trained_on(make_tsv(40, 5), {"--validation", "1e-9"}), 3, {"odd", "validation"});
  expect_refusal(trained_on(make_tsv(40, 5), {"--min-positives", "1000"}), 3, {"odd", "--min-positives"});
  expect_refusal(trained_on(make_tsv(40, 5), {"--ratio", "1e-6"}), 3, {"odd", "--ratio"});
  EXPECT_FALSE(exists(path("runs/odd")));
  for (const int labels : {1, 2, 3, 140}) {  // a single one; fewer and more than the depth of the lists
    const Outcome o = trained_on(make_tsv(140, labels));
    ASSERT_EQ(o.status, 0) << labels << o.err;
    const double recall = number_at(read_file(in("odd", "result.json")), "/trained/R@100");
    EXPECT_TRUE(labels <= 100 ? recall == 100 : recall > 50 && recall <= 100) << labels << " " << recall;
  }
  // Fewer pairs than a batch, down to one.
  ASSERT_EQ(trained_on(make_tsv(140, 25), {"--batch", "100000"}).status, 0);
  ASSERT_EQ(trained_on(make_tsv(140, 25), {"--pairs", "1"}).status, 0);
  ASSERT_EQ(resume("odd").status, 0);
  // Without validation the last prompt counts.
  ASSERT_EQ(
      trained_on(make_tsv(140, 25), {"--validation", "0", "--patience", "1", "--validate-every", "1"}).status,
      0);
  EXPECT_EQ(number_at(read_file(in("odd", "result.json")), "/protocol/trained_steps"), 2);
  // A text too long, odd characters, the same text twice.
  const std::string long_text(100000, 'x');
  const Outcome o =
      trained_on(long_text + "\tlong\n\xf0\x9f\x98\x80\tlong\nsame\tlong\nsame\tlong\n" + make_tsv(60, 9));
  EXPECT_EQ(o.status, 0) << o.err;
}

// -- the other commands

TEST_F(Job, PredictAnswers) {
  const Words of_base = {"predict", "--run", "runs/base", "--top", "3"};
  const Outcome one = quest(of_base + Words{"some text"});
  ASSERT_EQ(one.status, 0) << one.err;
  EXPECT_EQ(lines_of(one.out), 3);
  EXPECT_NE(one.out.find("about "), one.out.npos);
  const Outcome json = quest(of_base + Words{"--json", "some text", "\"quoted\"\n", ""});
  ASSERT_EQ(json.status, 0) << json.err;
  const size_t line = json.out.find('\n') + 1, next = json.out.find('\n', line) + 1;
  EXPECT_EQ(value_at(json.out.substr(0, line), "/text"), "\"some text\"");
  EXPECT_EQ(value_at(json.out.substr(line, next - line), "/text"), "\"\\\"quoted\\\"\\n\"");
  EXPECT_EQ(value_at(json.out.substr(next), "/text"), "\"\"");
  double last = 2;
  for (const char* place : {"/labels/0/score", "/labels/1/score", "/labels/2/score"}) {
    const double score = number_at(json.out.substr(0, line), place);
    EXPECT_TRUE(score <= last && score >= -1.001);
    last = score;
  }
  put_file(path("texts"), "some text\n\"quoted\"\n\n");
  const Outcome lines = quest(of_base + Words{"--json"}, {}, path("texts"));
  ASSERT_EQ(lines.status, 0) << lines.err;
  EXPECT_EQ(lines.out.substr(0, line), json.out.substr(0, line));
  EXPECT_EQ(lines_of(lines.out), 3);
  const Outcome hnsw = quest(of_base + Words{"--json", "--hnsw", "some text"});
  EXPECT_EQ(hnsw.out, json.out.substr(0, line)) << hnsw.err;  // 25 labels: the graph finds them all
  EXPECT_EQ(quest(of_base).out, "");                          // no line at all
  const Outcome many = quest({"predict", "--run", "runs/base", "--top", "1000", "some text"});
  EXPECT_EQ(lines_of(many.out), 25);
  const Outcome more = quest({"predict", "--hnsw", "--run", "runs/base", "--top", "1000", "some text"});
  EXPECT_EQ(more.out, many.out) << more.err;
  expect_refusal(quest(of_base + Words{"fine", "not \xff fine"}), 3, {"text 2", "UTF-8"});
  put_file(path("texts"), "fine\n\xc3\x28\n");
  expect_refusal(quest(of_base, {}, path("texts")), 3, {"text 2", "UTF-8"});
  expect_refusal(quest({"predict", "--run", "runs/none", "text"}), 3, {"runs/none"});
  expect_refusal(quest({"predict", "--top", "0", "text"}), 2, {"--top"});
}

TEST_F(Job, PredictRefusesADamagedRun) {
  for (const char* file : {"prompt.safetensors", "labels.safetensors", "index.hnsw", "index.hnsw.meta"}) {
    SCOPED_TRACE(file);
    copy_run("base", "hurt");
    const std::string good = read_file(in("hurt", file));
    put_file(in("hurt", file), good.substr(0, good.size() - 5));
    expect_refusal(quest({"predict", "--run", "runs/hurt", "--hnsw", "text"}), 3, {"runs/hurt/"});
    fs::remove(in("hurt", file));
    expect_refusal(quest({"predict", "--run", "runs/hurt", "--hnsw", "text"}), 3, {"runs/hurt/"});
  }
  copy_run("base", "hurt");
  put_file(path("third.tsv"), make_tsv(150, 25, 9));
  ASSERT_EQ(quest({"data", "import", "third.tsv", "third"}).status, 0);
  edit(in("hurt", "config.json"), "\"data\": \"data\"", "\"data\": \"third\"");
  expect_refusal(quest({"predict", "--run", "runs/hurt", "text"}), 3, {"prompt.safetensors", "dataset"});
  expect_refusal(quest({"eval", "--run", "runs/hurt"}), 3, {"prompt.safetensors", "dataset"});
}

TEST_F(Job, EvalRepeatsTheResult) {
  const std::string result = read_file(in("base", "result.json"));
  const Words of_base = {"eval", "--run", "runs/base", "--json"};
  const Outcome o = quest(of_base + Words{"--out", "lists.tsv"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(value_at(o.out, ""), value_at(result, "/trained"));
  EXPECT_EQ(value_at(quest(of_base + Words{"--keep-own"}).out, ""), value_at(result, "/raw/trained"));
  EXPECT_EQ(value_at(quest(of_base + Words{"--hnsw"}).out, ""), value_at(result, "/trained"));
  const std::string lists = read_file(path("lists.tsv"));
  const auto queries = static_cast<int64_t>(number_at(result, "/protocol/test_queries"));
  EXPECT_EQ(lines_of(lists), queries * 25);
  const Outcome text = quest({"eval", "--run", "runs/base"});
  EXPECT_NE(text.out.find("base"), text.out.npos);
  EXPECT_NE(text.out.find("PSP@5"), text.out.npos);
  expect_refusal(quest(of_base + Words{"--out", "no/such/folder"}), 4, {"no/such/folder"});
}

// Vectors written by embed and brought back give the run's own metrics.
TEST_F(Job, EmbedAndBring) {
  const Dataset data = open_dataset(path("data"));
  std::string queries, labels;
  for (int64_t i = 0; i < data.test.texts.size(); ++i)
    queries += std::string(data.test.texts.title(i)) + "\n";
  for (int64_t i = 0; i < data.labels.size(); ++i) labels += std::string(data.labels.title(i)) + "\n";
  put_file(path("queries"), queries), put_file(path("labels"), labels);
  for (const char* name : {"queries", "labels"}) {
    const Outcome o =
        quest({"embed", "--run", "runs/base", "--out", std::string(name) + ".npy"}, {}, path(name));
    ASSERT_EQ(o.status, 0) << o.err;
    EXPECT_TRUE(o.out.find("unit vectors of width 64") != o.out.npos) << o.out;
  }
  const Words bring = {"eval", "--data", "data", "--bring", "queries.npy", "labels.npy"};
  const Outcome o = quest(bring + Words{"--json"});
  ASSERT_EQ(o.status, 0) << o.err;
  simdjson::dom::parser a, b;
  const simdjson::dom::element brought = a.parse(o.out),
                               result = b.parse(read_file(in("base", "result.json")));
  for (const auto& name : metric_names) {
    EXPECT_EQ(double(brought["brought"][name]), double(result["trained"][name])) << name;
    EXPECT_EQ(double(brought["raw"][name]), double(result["raw"]["trained"][name])) << name;
  }
  EXPECT_TRUE(quest(bring).out.find("brought") != std::string::npos);
  expect_refusal(quest({"eval", "--data", "data", "--bring", "labels.npy", "labels.npy"}), 3,
                 {"labels.npy", "one a test query"});
  expect_refusal(quest({"eval", "--data", "data", "--bring", "queries.npy", "queries.npy"}), 3,
                 {"one a label"});
  expect_refusal(quest({"eval", "--data", "data", "--bring", "queries.npy"}), 2, {"--bring", "two files"});
  expect_refusal(quest({"eval", "--data", "data", "--bring", "queries", "labels.npy"}), 3, {".npy file"});
  expect_refusal(quest({"embed", "--run", "runs/base"}), 2, {"--out"});
  expect_refusal(quest({"embed", "--run", "runs/base", "--prompt", "x", "--out", "y"}), 2,
                 {"--prompt with --run"});
  expect_refusal(quest(bring + Words{"--out", "lists"}), 2, {"belong to a run"});
  expect_refusal(quest({"eval", "--run", "runs/base", "--data", "data"}), 2, {"belong to a run"});
  // In 8 bits: near, and how near is said. What is trained has no such precision.
  const Outcome bytes = quest({"embed", "--run", "runs/base", "--precision", "int8", "--out", "bytes.npy"}, {}, path("queries"));
  ASSERT_EQ(bytes.status, 0) << bytes.err;
  double apart = 0, cosine = 0;
  const size_t said = bytes.err.find("int8: of 39 texts");
  ASSERT_NE(said, bytes.err.npos) << bytes.err;
  ASSERT_EQ(sscanf(bytes.err.c_str() + said, "int8: of 39 texts the vectors are %lf of their spread from bf16's, the cosine at least %lf",
                   &apart, &cosine), 2) << bytes.err;
  const Npy exact = read_npy(path("queries.npy")), near = read_npy(path("bytes.npy"));
  double square = 0, spread = 0, least = 1;
  for (int64_t t = 0; t < 39; ++t) {
    double product = 0;
    for (int64_t i = 0; i < 64; ++i) {
      double mean = 0;
      for (int64_t s = 0; s < 39; ++s) mean += exact.vectors.row(s)[i] / 39.0;
      const double is = near.vectors.row(t)[i], was = exact.vectors.row(t)[i];
      square += (is - was) * (is - was), spread += (was - mean) * (was - mean), product += is * was;
    }
    least = std::min(least, product);
  }
  EXPECT_NEAR(apart, std::sqrt(square / spread), 0.05 * apart + 1e-6);  // two digits were printed
  EXPECT_NEAR(cosine, least, 1e-5);
  EXPECT_TRUE(apart > 0 && apart < 0.2 && cosine > 0.98) << bytes.err;
  EXPECT_EQ(train("eight", {"--precision", "int8"}).status, 2);
  // What is given beside --run counts; labels read as the run's labels do.
  for (const Words& more :
       {Words{"--length", "2"}, {"--query-text", "about {title}"}, {"--precision", "f32"}}) {
    ASSERT_EQ(
        quest(Words{"embed", "--run", "runs/base", "--out", "other.npy"} + more, {}, path("queries")).status,
        0);
    EXPECT_NE(read_file(path("other.npy")), read_file(path("queries.npy"))) << more[0];
  }
  ASSERT_EQ(
      quest({"embed", "--run", "runs/base", "--label", "--query-text", "x {title}", "--out", "other.npy"}, {},
            path("labels"))
          .status,
      0);
  EXPECT_EQ(read_file(path("other.npy")), read_file(path("labels.npy")));
}

TEST_F(Job, PromptsForPeftAndBack) {
  ASSERT_EQ(train("prefix", {"--placement", "prefix", "--steps", "16", "--validate-every", "2"}).status, 0);
  ASSERT_EQ(quest({"export", "runs/prefix", "peft"}).status, 0);
  const std::string config = read_file(path("peft/adapter_config.json"));
  for (const char* part : {"\"PROMPT_TUNING\"", "\"num_virtual_tokens\": 2", "\"token_dim\": 64"})
    EXPECT_TRUE(config.find(part) != config.npos) << config;
  put_file(path("some"), "one text\nand another\n");
  const Words embed = {"embed", "--model", tiny_model, "--length", "16"};
  ASSERT_EQ(quest({"embed", "--run", "runs/prefix", "--out", "a.npy"}, {}, path("some")).status, 0);
  ASSERT_EQ(quest(embed + Words{"--prompt", "peft", "--out", "b.npy"}, {}, path("some")).status, 0);
  ASSERT_EQ(
      quest(embed + Words{"--prompt", "runs/prefix/prompt.safetensors", "--out", "c.npy"}, {}, path("some"))
          .status,
      0);
  ASSERT_EQ(quest(embed + Words{"--out", "d.npy"}, {}, path("some")).status, 0);  // without a prompt
  EXPECT_EQ(read_file(path("a.npy")), read_file(path("b.npy")));
  EXPECT_EQ(read_file(path("a.npy")), read_file(path("c.npy")));
  EXPECT_NE(read_file(path("a.npy")), read_file(path("d.npy")));
  expect_refusal(quest({"export", "runs/base", "never"}), 2, {"PEFT", "placement suffix"});
  EXPECT_FALSE(exists(path("never")));
  // A run may start from it.
  const Words steps = {"--placement", "prefix", "--steps", "16", "--validate-every", "2"};
  std::vector<float> other(2 * 64);
  for (size_t i = 0; i < other.size(); ++i) other[i] = static_cast<float>(random_uniform(9, 0, i) - 0.5);
  const View rows{other.data(), Type::f32, 2, 64, 64}, none{other.data(), Type::f32, 0, 64, 64};
  write_tensors(path("other.safetensors"),
                {{{"prompt", rows}, {"mean", none}}, {{"placement", "prefix"}, {"pooling", "last"}}, {}});
  ASSERT_EQ(train("further", steps + Words{"--prompt", "other.safetensors"}).status, 0);
  EXPECT_NE(read_file(in("further", "metrics.jsonl")), read_file(in("prefix", "metrics.jsonl")));
  expect_refusal(train("no", {"--steps", "3", "--prompt", "peft"}), 2,
                 {"--prompt peft", "placement suffix", "prefix"});
  expect_refusal(train("no", {"--steps", "3", "--prompt", "absent"}), 3, {"absent"});
  EXPECT_FALSE(exists(path("runs/no")));
  expect_refusal(train("no2", steps + Words{"--prompt", "peft", "-K", "3"}), 2,
                 {"expected 3 rows", "found 2"});
  const auto damaged = [&](const std::string& part, const std::string& by, const Words& parts) {
    std::string text = config;
    ASSERT_NE(text.find(part), text.npos) << part;
    put_file(path("peft/adapter_config.json"), text.replace(text.find(part), part.size(), by));
    expect_refusal(quest(embed + Words{"--prompt", "peft", "--out", "e.npy"}, {}, path("some")), 3, parts);
  };
  damaged("PROMPT_TUNING", "LORA", {"adapter_config.json", "peft_type", "LORA"});
  damaged("\"token_dim\": 64", "\"token_dim\": 65", {"token_dim", "width 64", "65"});
  damaged("\"num_virtual_tokens\": 2", "\"num_virtual_tokens\": 3",
          {"prompt_embeddings", "3 x 64", "2 x 64"});
  damaged("\"num_transformer_submodules\": 1", "\"num_transformer_submodules\": 2",
          {"num_transformer_submodules"});
  damaged("{", "[", {"adapter_config.json", "JSON object"});
  put_file(path("peft/adapter_config.json"), config);
  fs::remove(path("peft/adapter_model.safetensors"));
  expect_refusal(quest(embed + Words{"--prompt", "peft", "--out", "e.npy"}), 3,
                 {"adapter_model.safetensors"});
}

TEST_F(Job, NewestRunIsTheDefault) {
  ASSERT_EQ(train("newest", {"--steps", "1"}).status, 0);
  fs::last_write_time(in("newest", "result.json"), fs::file_time_type::clock::now() + std::chrono::hours(1));
  fs::create_directories(path("runs/unfinished"));
  EXPECT_NE(quest({"eval"}).out.find("newest"), std::string::npos);
  EXPECT_EQ(quest({"predict", "text"}).status, 0);
  fs::rename(path("runs"), path("hidden"));
  expect_refusal(quest({"predict", "text"}), 2, {"runs/", "quest train"});
  fs::rename(path("hidden"), path("runs"));
  fs::remove_all(path("runs/newest"));
}

TEST_F(Job, InfoKnowsModelRunAndDataset) {
  const auto says = [](const Words& words, const std::string& part) {
    const Outcome o = quest(words);
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_NE(o.out.find(part), o.out.npos) << part << " in " << o.out;
  };
  says({"info", tiny_model}, "width 64");
  says({"info", "data"}, "25 labels");
  says({"info", "runs/base"}, "gain of training");
  copy_run("base", "open");
  fs::remove(in("open", "result.json"));
  says({"info", "runs/open"}, "--resume runs/open");
  put_file(path("nonsense/file"), "nonsense");
  expect_refusal(quest({"info", "nonsense"}), 3, {"nonsense"});
  expect_refusal(quest({"info", "nonsense/file"}), 3, {"nonsense/file"});
  expect_refusal(quest({"info", "nothing"}), 3, {"nothing"});
}

TEST_F(Job, SampleReports) {
  const Words words = {"sample", "--data", "data", "--ratio", "0.5"};
  const Outcome o = quest(words + Words{"--out", "pairs.tsv"});
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("uniform"), o.out.npos);
  const Outcome json = quest(words + Words{"--json", "--threads", "7", "--out", "pairs7.tsv"});
  const std::string pairs = read_file(path("pairs.tsv"));
  EXPECT_EQ(lines_of(pairs), number_at(json.out, "/drawn/pairs"));
  EXPECT_EQ(pairs, read_file(path("pairs7.tsv")));
  EXPECT_EQ(number_at(quest(words + Words{"--json", "--pairs", "10"}).out, "/drawn/pairs"), 10);
  for (const char* sampler : {"paper", "uniform"})
    EXPECT_EQ(quest(words + Words{"--sampler", sampler}).status, 0) << sampler;
  EXPECT_EQ(quest(words + Words{"--ratio", "0"}).status, 0);
}

TEST_F(Job, HelpAndCompletion) {
  for (const Words& command : {Words{"train"}, Words{"predict"}, Words{"eval"}, Words{"info"},
                               Words{"sample"}, Words{"data", "import"}, Words{"data", "debian"}}) {
    const Outcome o = quest(command + Words{"--help"}), help = quest(Words{"help"} + command);
    EXPECT_EQ(o.status, 0);
    EXPECT_EQ(o.out, help.out);
    EXPECT_NE(o.out.find("Usage: quest " + command[0]), o.out.npos);
    EXPECT_NE(o.out.find("Examples:"), o.out.npos) << command[0];
    EXPECT_NE(quest({"help"}).out.find(command.back()), std::string::npos);
  }
  EXPECT_EQ(quest({"--help"}).out, quest({"help"}).out);
  EXPECT_NE(quest({"completion"}).out.find("complete -o default -F _quest quest"), std::string::npos);
  EXPECT_NE(quest({"--version"}).out.find("quest "), std::string::npos);
}
