// Mutation test of the arithmetic: on a copy of the tree, breaks one thing at a time and expects a test to
// fail.
//
//   mutants SEED COUNT PATTERN     COUNT 0: all whose key (FILE FUNCTION | line | changed line) is like
//   PATTERN
//
// tests/mutants.txt says which functions are broken and which files of tests are tried first, each as a
// program of its own, so that little is compiled for a mutant; what survives these meets all tests. It also
// lists the mutants that change nothing, with the reason. In every line of those functions each kind of
// change (sign, index, constant, order, rounding, dropped term) is made at one place; a hash of the line
// chooses the place. A mutant that does not compile is none; one whose test program is the same machine code
// is explained by that.
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"
#include "kernels/base/progress.h"
#include "kernels/base/random.h"

using namespace quest;
namespace fs = std::filesystem;

namespace {

// -- tests/mutants.txt -------------------------------------------------------------------------------------

struct Target {
  std::string file, functions;     // functions: globs parted by commas
  std::vector<std::string> tests;  // files of tests, tried in this order before all the others
};

struct Table {
  std::vector<Target> targets;
  std::map<std::string, bool> same;  // key of a mutant that changes nothing -> was it met
};

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\n"), last = text.find_last_not_of(" \t\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

Table read_table(const std::string& path) {
  Table table;
  std::istringstream lines(read_file(path));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (trim(line).empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string kind;
    Target target;
    words >> kind >> target.file >> target.functions;
    for (std::string test; words >> test;) target.tests.push_back(test);
    if (kind == "break" && !target.tests.empty())
      table.targets.push_back(target);
    else if (const size_t reason = line.rfind(" ## "); kind == "same" && reason != line.npos)
      table.same[trim(line.substr(5, reason - 5))] = false;
    else
      fail(Exit::input, "%s:%d: expected \"break FILE FUNCTIONS TESTS...\" or \"same MUTANT ## REASON\"",
           path.c_str(), number);
  }
  return table;
}

// -- C++ text ----------------------------------------------------------------------------------------------

// The text with comments, strings, characters and preprocessor lines blanked out; nothing moves.
std::string masked(const std::string& text) {
  std::string out = text;
  const auto blank = [&](size_t from, size_t to) {
    for (size_t i = from; i < std::min(to, out.size()); ++i)
      if (out[i] != '\n') out[i] = ' ';
    return std::min(to, out.size());
  };
  const auto behind = [&](const char* what, size_t from) {
    const size_t at = text.find(what, from);
    return at == text.npos ? text.size() : at + strlen(what);
  };
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const bool digit_before = i > 0 && isalnum(static_cast<unsigned char>(text[i - 1]));
    if (text.compare(i, 2, "//") == 0)
      i = blank(i, behind("\n", i));
    else if (text.compare(i, 2, "/*") == 0)
      i = blank(i, behind("*/", i + 2));
    else if (c == '#' && trim(text.substr(text.rfind('\n', i) + 1, i - text.rfind('\n', i) - 1)).empty())
      i = blank(i, behind("\n", i));
    else if (text.compare(i, 3, "R\"(") == 0)
      i = blank(i, behind(")\"", i));
    else if (c == '"' || (c == '\'' && !digit_before)) {
      size_t end = i + 1;
      while (end < text.size() && text[end] != c) end += text[end] == '\\' ? 2 : 1;
      i = blank(i, end + 1);
    } else
      ++i;
  }
  return out;
}

struct Function {
  std::string name;
  size_t begin, end;
};  // the body, braces included

// Functions of a masked text. What stands before a brace and has no parenthesis is a namespace, type or
// table.
std::vector<Function> functions_of(const std::string& text) {
  std::vector<Function> found;
  size_t heading = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ';' || text[i] == '}') heading = i + 1;
    if (text[i] != '{') continue;
    const std::string before = text.substr(heading, i - heading);
    const size_t parenthesis = before.find('(');
    heading = i + 1;
    if (parenthesis == before.npos) continue;
    size_t end = i, depth = 0;
    do depth += (text[end] == '{') - (text[end] == '}');
    while (depth > 0 && ++end < text.size());
    size_t first = parenthesis;
    while (first > 0 &&
           (isalnum(static_cast<unsigned char>(before[first - 1])) || strchr("_~:", before[first - 1])))
      --first;
    found.push_back({before.substr(first, parenthesis - first), i, end + 1});
    i = end;
    heading = end + 1;
  }
  return found;
}

struct Token {
  enum Kind { name, number, sign } kind;
  size_t begin, end;
  std::string text;
};

std::vector<Token> tokens_of(const std::string& text, size_t begin, size_t end) {
  static const char* const long_signs[] = {
      "<<=", ">>=", "...", "<=>", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=",
      "==",  "!=",  "<=",  ">=",  "&&", "||", "++", "--", "->", "<<", ">>", "::"};
  std::vector<Token> tokens;
  for (size_t i = begin; i < end;) {
    const auto byte = [&](size_t at) { return at < end ? static_cast<unsigned char>(text[at]) : 0; };
    size_t last = i + 1;
    Token::Kind kind = Token::sign;
    if (isspace(byte(i))) {
      ++i;
      continue;
    }
    if (isdigit(byte(i)) || (byte(i) == '.' && isdigit(byte(i + 1)))) {
      kind = Token::number;
      const bool hex = byte(i) == '0' && (byte(i + 1) | 32) == 'x';
      while (isalnum(byte(last)) || byte(last) == '.' || byte(last) == '\'' ||
             (strchr("+-", byte(last)) && byte(last) && (byte(last - 1) | 32) == (hex ? 'p' : 'e')))
        ++last;
    } else if (isalpha(byte(i)) || byte(i) == '_') {
      kind = Token::name;
      while (isalnum(byte(last)) || byte(last) == '_') ++last;
    } else {
      for (const char* sign : long_signs)
        if (text.compare(i, strlen(sign), sign) == 0) {
          last = i + strlen(sign);
          break;
        }
    }
    tokens.push_back({kind, i, last, text.substr(i, last - i)});
    i = last;
  }
  return tokens;
}

// -- mutants -----------------------------------------------------------------------------------------------

struct Mutant {
  const Target* target;
  std::string function, kind;
  size_t begin, end;  // replaced bytes of the file
  std::string replacement;
  size_t body;  // behind the brace that opens the function
  int line;
  std::string key;  // FILE FUNCTION | line | changed line
};

class Finder {
 public:
  Finder(const std::string& text, std::vector<Token> tokens) : text_(text), t_(std::move(tokens)) {}

  // Calls emit(kind, token index, begin, end, replacement) for every possible change.
  template <class Emit>
  void each(Emit&& emit) {
    for (size_t i = 0; i < t_.size(); ++i) {
      const Token& t = t_[i];
      const auto replace = [&](const char* kind, const std::string& by) {
        emit(kind, i, t.begin, t.end, by);
      };
      if (const auto swap = swaps().find(t.text);
          swap != swaps().end() && !is(i - 1, "<"))  // static_cast<double>: no
        replace(swap->second.first, swap->second.second);
      if (t.text == "+=") emit("drop", i, t.begin, t.end, "=");
      if (binary(i)) {
        replace("sign", t.text == "+" ? "-" : t.text == "-" ? "+" : t.text == "*" ? "/" : "*");
        emit("drop", i, t.begin, t_[term_end(i)].end, "");
      } else if (t.text == "-" && operand_starts(i + 1))
        replace("sign", "");
      if (comparison(i)) {
        if (in_for(i))
          emit("order", i, t.begin, t.begin, "+ 1 ");
        else
          replace("order", t.text == "<" ? "<=" : ">=");
      }
      if (t.text == "[" && operand_ends(i - 1) &&
          !(i > 1 && t_[i - 2].kind == Token::name && t_[i - 2].text != "return"))
        if (const size_t close = closing(i); close > i + 1 && close < t_.size())
          emit("index", i, t_[i + 1].begin, t_[close - 1].end,
               "(" + text_.substr(t_[i + 1].begin, t_[close - 1].end - t_[i + 1].begin) + ") + 1");
      if (t.kind == Token::number && !(is(i - 1, "[") && is(i + 1, "]")) &&
          !(is(i - 1, "<") && !space_before(i)))
        replace("constant", "(" + t.text + " + 1)");
    }
  }

 private:
  static const std::map<std::string, std::pair<const char*, const char*>>& swaps() {
    static const std::map<std::string, std::pair<const char*, const char*>> table = {
        {"+=", {"sign", "-="}},
        {"-=", {"sign", "+="}},
        {"*=", {"sign", "/="}},
        {"/=", {"sign", "*="}},
        {"<=", {"order", "<"}},
        {">=", {"order", ">"}},
        {"==", {"order", "!="}},
        {"!=", {"order", "=="}},
        {"&&", {"order", "||"}},
        {"||", {"order", "&&"}},
        {"min", {"order", "max"}},
        {"max", {"order", "min"}},
        {"true", {"constant", "false"}},
        {"false", {"constant", "true"}},
        {"double", {"rounding", "float"}},
        {"floor", {"rounding", "ceil"}},
        {"ceil", {"rounding", "floor"}},
        {"round", {"rounding", "floor"}},
        {"lround", {"rounding", "floor"}},
        {"llround", {"rounding", "floor"}},
        {"nearbyint", {"rounding", "floor"}},
        {"rint", {"rounding", "floor"}},
        {"round_bf16", {"rounding", ""}}};
    return table;
  }
  bool is(size_t i, const char* sign) const { return i < t_.size() && t_[i].text == sign; }
  bool space_before(size_t i) const { return isspace(static_cast<unsigned char>(text_[t_[i].begin - 1])); }
  bool spaced(size_t i) const {
    return space_before(i) && isspace(static_cast<unsigned char>(text_[t_[i].end]));
  }
  bool operand_ends(size_t i) const {
    return i < t_.size() && t_[i].text != "return" && (t_[i].kind != Token::sign || is(i, ")") || is(i, "]"));
  }
  bool operand_starts(size_t i) const {
    return i < t_.size() &&
           (t_[i].kind != Token::sign || is(i, "(") || is(i, "-") || is(i, "*") || is(i, "!"));
  }
  bool binary(size_t i) const {
    if (t_[i].text.size() != 1 || !strchr("+-*/", t_[i].text[0]) || !operand_ends(i - 1) ||
        !operand_starts(i + 1))
      return false;
    return t_[i].text != "*" || spaced(i);  // `float* x` declares
  }
  bool comparison(size_t i) const { return (is(i, "<") || is(i, ">")) && spaced(i) && operand_ends(i - 1); }
  bool in_for(size_t i) const {
    const size_t line = text_.rfind('\n', t_[i].begin) + 1;
    return text_.substr(line, t_[i].begin - line).find("for (") != std::string::npos && is(i, "<");
  }
  size_t closing(size_t i) const {
    int depth = 0;
    for (; i < t_.size(); ++i) {
      if (is(i, "(") || is(i, "[") || is(i, "{")) ++depth;
      if ((is(i, ")") || is(i, "]") || is(i, "}")) && --depth == 0) break;
    }
    return i;
  }
  // The last token of the term (of + and -) or factor (of * and /) that follows the operator.
  size_t term_end(size_t op) const {
    const bool factor = is(op, "*") || is(op, "/");
    size_t i = op + 1;
    while (is(i, "-") || is(i, "*") || is(i, "!")) ++i;
    for (; i + 1 < t_.size(); ++i) {
      if (is(i, "(") || is(i, "[") || is(i, "{")) i = std::min(closing(i), t_.size() - 2);
      const Token& next = t_[i + 1];
      const bool continues = next.text == "(" || next.text == "[" || next.text == "{" || next.text == "." ||
                             next.text == "->" || next.text == "::" || (next.text == "<" && !spaced(i + 1)) ||
                             (next.text == ">" && !spaced(i + 1)) || next.kind != Token::sign ||
                             (!factor && (next.text == "*" || next.text == "/" || next.text == "%"));
      if (!continues) break;
    }
    return i;
  }

  const std::string& text_;
  std::vector<Token> t_;
};

bool matches(const std::string& name, const std::string& globs) {
  std::istringstream list(globs);
  for (std::string glob; std::getline(list, glob, ',');)
    if (fnmatch(glob.c_str(), name.c_str(), 0) == 0) return true;
  return false;
}

std::string line_around(const std::string& text, size_t begin, size_t end) {
  const size_t first = text.rfind('\n', begin ? begin - 1 : 0) + 1;
  return trim(text.substr(first, std::min(text.find('\n', end), text.size()) - first));
}

// taken: functions of the file that a line above has; these are left out.
std::vector<Mutant> mutants_of(const Target& target, const std::string& text, std::set<std::string>& taken) {
  const std::string mask = masked(text);
  std::map<std::pair<int, std::string>, std::vector<Mutant>> places;  // by line and kind
  std::set<std::string> names;
  for (const Function& function : functions_of(mask)) {
    if (!matches(function.name, target.functions) || taken.count(function.name)) continue;
    names.insert(function.name);
    Finder(mask, tokens_of(mask, function.begin, function.end))
        .each([&](const char* kind, size_t, size_t begin, size_t end, const std::string& by) {
          const std::string line = line_around(text, begin, begin);
          // No arithmetic: messages, types, and what is read from a file's metadata.
          const bool message = line.find("fail(") != line.npos || line.starts_with("static_assert") ||
                               line.starts_with("using ") || line.find("config.") != line.npos;
          if (message || mask.substr(begin, end - begin).find('\n') != mask.npos) return;
          std::string changed = text;
          changed.replace(begin, end - begin, by);
          Mutant m{&target, function.name, kind, begin, end, by, function.begin + 1, 0, ""};
          m.line =
              1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<long>(begin), '\n'));
          m.key =
              target.file + " " + function.name + " | " + line + " | " + line_around(changed, begin, begin);
          places[{m.line, kind}].push_back(m);
        });
  }
  taken.merge(names);
  std::vector<Mutant> chosen;
  for (auto& [place, candidates] : places) {
    const std::string line = candidates[0].key.substr(0, candidates[0].key.rfind(" | ")) + place.second;
    chosen.push_back(candidates[hash_bytes(line.data(), line.size()) % candidates.size()]);
  }
  return chosen;
}

// -- running ----------------------------------------------------------------------------------------------

// A program of some test files and of the folders that they may use.
struct Program {
  std::string hash;    // SHA-256 of the unbroken one; empty: not yet built
  double seconds = 0;  // its tests took so long
};

enum class End { good, bad, late };

// One copy of the tree, with its own objects: workers break different things side by side.
class Tree {
 public:
  explicit Tree(unsigned number)
      : root_(fs::absolute(format("build/mutants/tree.%u", number))),
        log_(fs::absolute(format("build/mutants/log.%u", number))) {
    make_folders(root_);
    copy();
  }

  void write(const std::string& file, const std::string& text) { write_file(root_ + "/" + file, text); }

  // Builds the program of a test file ("kernels/ref_test"), or of all tests.
  bool build(const std::string& test) {
    fs::remove(root_ + "/build/tests/all");  // programs share this name
    std::vector<std::string> words = {
        "make", "-j1", "BUILD=build", "CUDA=0", "SAN=", "WERROR=", "V=", "CXXFLAGS=-O1 -g0 -w"};
    if (test == everything)
      words.push_back("tests");
    else {
      std::set<std::string> sources;
      for (const char* folder : {"kernels/base", "kernels", "model", "sampling", "index", "train", "tools"}) {
        for (const auto& entry : fs::directory_iterator(root_ + "/" + folder))
          if (entry.path().extension() == ".cpp" && entry.path().filename() != "main.cpp")
            sources.insert(std::string(folder) + "/" + entry.path().filename().string());
        if (test.starts_with(std::string(folder) + "/")) break;  // a folder uses those before it
      }
      std::string list;
      for (const std::string& source : sources) list += source + " ";
      words.insert(words.end(),
                   {"SRC=" + list, "TEST_SRC=tests/main.cpp tests/" + test + ".cpp", "build/tests/all"});
    }
    return wait(start(words), 1800) == End::good;
  }
  std::string hash() const { return sha256_file(root_ + "/build/tests/all"); }

  End run(double seconds) {
    // A mutant may well be a line too long for Tree.Size.
    return wait(start({"build/tests/all", "--gtest_break_on_failure", "--gtest_filter=*-Tree.*"}), seconds);
  }

  // The unbroken program; text: of the only file that a mutant may have changed.
  const Program& unbroken(const std::string& test, const std::string& file, const std::string& text) {
    Program& program = programs_[test];
    if (!program.hash.empty()) return program;
    write(file, text);
    if (!build(test)) fail(Exit::input, "%s does not build; see %s", root_.c_str(), log_.c_str());
    program.hash = hash();
    const double start_time = now_seconds();
    if (run(3600) != End::good)
      fail(Exit::input, "the unbroken tests fail: %s; see %s", first_failure().c_str(), log_.c_str());
    program.seconds = now_seconds() - start_time;
    return program;
  }

  std::string first_failure() const {
    std::istringstream lines(read_file(log_));
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("failed: ")) return line.substr(8);
    return "a crash";
  }

  static constexpr const char* everything = "everything";

 private:
  // Makes the copy equal to the tree; files that are equal already keep their time, so nothing is rebuilt for
  // them.
  void copy() {
    std::set<std::string> kept;
    for (const char* top : {"kernels", "model", "sampling", "index", "train", "tools", "tests", "Makefile"}) {
      std::vector<std::string> files;
      if (fs::is_regular_file(top)) files.push_back(top);
      if (fs::is_directory(top))
        for (const auto& entry : fs::recursive_directory_iterator(top))
          if (entry.is_regular_file()) files.push_back(entry.path());
      for (const std::string& file : files) {
        const std::string copy = root_ + "/" + file;
        kept.insert(copy);
        if (exists(copy) && read_file(copy) == read_file(file)) continue;
        make_folders(fs::path(copy).parent_path());
        fs::copy_file(file, copy, fs::copy_options::overwrite_existing);
      }
    }
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      const std::string path = entry.path();
      if (entry.is_regular_file() && !kept.count(path) && !path.starts_with(root_ + "/build/") &&
          path != root_ + "/quest")
        fs::remove(path);
    }
  }

  pid_t start(std::vector<std::string> words) {
    const pid_t pid = fork();
    if (pid != 0) {
      if (pid < 0) fail(Exit::machine, "cannot start %s: %s", words[0].c_str(), strerror(errno));
      setpgid(pid, pid);
      return pid;
    }
    setpgid(0, 0);
    const int out = open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), in = open("/dev/null", O_RDONLY);
    dup2(in, 0), dup2(out, 1), dup2(out, 2);
    for (const char* name : {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}) unsetenv(name);
    const rlimit file_size = {1ull << 32, 1ull << 32};
    setrlimit(RLIMIT_FSIZE, &file_size);
    if (const int score = open("/proc/self/oom_score_adj", O_WRONLY);
        score >= 0)  // a greedy mutant goes first
      if (::write(score, "1000", 4) < 0) close(score);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (chdir(root_.c_str()) == 0) execvp(argv[0], argv.data());
    _exit(127);
  }

  static End wait(pid_t pid, double seconds) {
    const double until = now_seconds() + seconds;
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) != pid) {
      if (now_seconds() > until) {
        kill(-pid, SIGKILL), waitpid(pid, nullptr, 0);
        return End::late;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    kill(-pid, SIGKILL);  // what it left behind
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? End::good : End::bad;
  }

  std::string root_, log_;
  std::map<std::string, Program> programs_;
};

enum class Verdict { killed, surviving, explained, none };

// Breaks one thing in a copy, and says what came of it.
std::pair<Verdict, std::string> judge(const Mutant& m, const std::string& text, Tree& tree) {
  std::string changed = text, trap = text;
  changed.replace(m.begin, m.end - m.begin, m.replacement);
  trap.insert(m.body, "__builtin_trap();");
  std::vector<std::string> stages = m.target->tests;
  stages.push_back(Tree::everything);
  for (const std::string& stage : stages) {
    const Program& unbroken = tree.unbroken(stage, m.target->file, text);
    const auto build = [&](const std::string& what) {
      tree.write(m.target->file, what);
      return tree.build(stage);
    };
    if (!build(changed)) return {Verdict::none, "does not compile"};
    if (tree.hash() == unbroken.hash) {
      if (!build(trap) || tree.hash() != unbroken.hash) return {Verdict::explained, "the same machine code"};
      continue;  // this program does not contain the function
    }
    const End end = tree.run(std::max(30.0, 4 * unbroken.seconds));
    if (end == End::late) return {Verdict::killed, "killed by the clock"};
    if (end == End::bad) return {Verdict::killed, "killed by " + tree.first_failure()};
  }
  return {Verdict::surviving, "SURVIVED"};
}

int run(uint64_t seed, size_t count, const char* only) {
  Table table = read_table("tests/mutants.txt");
  std::vector<Mutant> mutants;
  std::map<std::string, std::string> texts;
  std::map<std::string, std::set<std::string>> taken;
  for (const Target& target : table.targets) {
    const std::string& text = texts[target.file] = read_file(target.file);
    const auto some = mutants_of(target, text, taken[target.file]);
    if (some.empty())
      fail(Exit::input, "tests/mutants.txt: no arithmetic in %s of %s", target.functions.c_str(),
           target.file.c_str());
    mutants.insert(mutants.end(), some.begin(), some.end());
  }
  for (const Mutant& m : mutants)
    if (table.same.count(m.key)) table.same[m.key] = true;
  for (const auto& [key, met] : table.same)
    if (!met) fprintf(stderr, "tests/mutants.txt: there is no such mutant any more: %s\n", key.c_str());
  std::vector<size_t> order;
  for (size_t i = 0; i < mutants.size(); ++i)
    if (fnmatch(only, mutants[i].key.c_str(), 0) == 0) order.push_back(i);
  if (order.empty())
    fail(Exit::usage, "ONLY=%s: expected a pattern such as 'kernels/nf4*', found no mutant that is like it",
         only);
  if (count != 0 && count < order.size()) {
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return random_bits(seed, 0, a) < random_bits(seed, 0, b); });
    order.resize(count);
    std::sort(order.begin(), order.end());  // file by file: what is rebuilt stays little
  }
  fprintf(stderr, "%zu mutants, %zu of them now\n", mutants.size(), order.size());

  std::map<Verdict, int> tally;
  size_t next = 0, done = 0;
  std::exception_ptr broken;
  std::mutex mutex;
  const auto work = [&](unsigned number) {
    try {
      std::unique_lock lock(mutex);
      const std::string* dirty = nullptr;  // the file that this copy's last mutant broke
      std::unique_ptr<Tree> tree;
      while (next < order.size() && !broken) {
        const Mutant& m = mutants[order[next++]];
        if (table.same.count(m.key)) {
          ++tally[Verdict::explained], ++done;
          continue;
        }
        lock.unlock();
        const double start_time = now_seconds();
        if (!tree) tree = std::make_unique<Tree>(number);
        if (dirty && *dirty != m.target->file) tree->write(*dirty, texts.at(*dirty));
        dirty = &m.target->file;
        const auto [verdict, why] = judge(m, texts.at(m.target->file), *tree);
        lock.lock();
        ++tally[verdict];
        fprintf(stderr, "[%zu/%zu] %s:%d %s: %s, %.0f s\n", ++done, order.size(), m.target->file.c_str(),
                m.line, m.kind.c_str(), why.c_str(), now_seconds() - start_time);
        if (verdict == Verdict::surviving) printf("same %s ## why?\n", m.key.c_str()), fflush(stdout);
      }
      if (tree && dirty) tree->write(*dirty, texts.at(*dirty));
    } catch (...) {
      const std::lock_guard lock(mutex);
      broken = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < std::clamp(std::thread::hardware_concurrency(), 1u, 8u); ++i)
    workers.emplace_back(work, i);
  for (std::thread& worker : workers) worker.join();
  if (broken) std::rethrow_exception(broken);
  fprintf(stderr, "%d more did not compile\n", tally[Verdict::none]);
  printf("%d killed, %d surviving, %d explained\n", tally[Verdict::killed], tally[Verdict::surviving],
         tally[Verdict::explained]);
  return tally[Verdict::surviving] != 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 4) fail(Exit::usage, "usage: mutants SEED COUNT PATTERN");
    return run(strtoull(argv[1], nullptr, 10), strtoull(argv[2], nullptr, 10), argv[3]);
  } catch (const std::exception& error) {
    fprintf(stderr, "mutants: %s\n", error.what());
    return 2;
  }
}
