#include "tools/options.h"

#include <getopt.h>
#include <simdjson.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "kernels/base/error.h"
#include "kernels/base/json.h"

namespace quest {

// ---- values -----------------------------------------------------------------------------------------------

static bool is_flag(const Option& o) { return std::holds_alternative<bool*>(o.target); }
static bool is_text(const Option& o) { return std::holds_alternative<std::string*>(o.target); }
static bool is_choice(const Option& o) { return is_text(o) && o.value.find('|') != std::string::npos; }

static std::string expected(const Option& o) {
  if (is_flag(o)) return "true or false";
  if (is_choice(o)) return format("one of %s", o.value.c_str());
  if (o.value == "SIZE") return "a size such as 0, 512MiB or 4GiB";
  if (is_text(o)) return o.value;
  const char* kind = std::holds_alternative<double*>(o.target) ? "a number" : "a whole number";
  return format("%s from %.15g to %.15g", kind, o.least, o.most);
}

static std::string shown(const Option& o) {  // the target's value, as help writes it
  if (is_text(o)) return *std::get<std::string*>(o.target);
  if (const auto real = std::get_if<double*>(&o.target)) return format("%g", **real);
  if (is_flag(o)) return "";
  int64_t count = *std::get<int64_t*>(o.target);
  size_t unit = 0;
  while (o.value == "SIZE" && count != 0 && count % 1024 == 0 && unit < 4) count /= 1024, ++unit;
  return std::to_string(count) + std::vector{"", "KiB", "MiB", "GiB", "TiB"}[unit];
}

// Sets the target from a word; false when the word is not what the option expects. A SIZE may have a unit. A
// double holds every int64_t up to 2^53.
static bool assign(const Option& o, const std::string& word) {
  if (const auto flag = std::get_if<bool*>(&o.target)) {
    **flag = word == "true";
    return word == "true" || word == "false";
  }
  if (const auto text = std::get_if<std::string*>(&o.target)) {
    **text = word;
    const bool listed = ("|" + o.value + "|").find("|" + word + "|") != word.npos;
    return !is_choice(o) || (listed && word.find('|') == word.npos);
  }
  const auto real = std::get_if<double*>(&o.target);
  const auto style = real ? std::chars_format::general : std::chars_format::fixed;
  double number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, style);
  std::string_view unit = std::string_view(word).substr(end - word.data());
  const size_t power = o.value == "SIZE" && !unit.empty() ? std::string_view("KMGT").find(unit[0]) + 1 : 0;
  if (power > 0) {
    unit.remove_prefix(1);
    number = std::floor(number * std::pow(unit == "B" ? 1000 : 1024, power));
    if (unit == "B" || unit == "iB") unit = "";
  }
  const bool allowed = number >= o.least && number <= o.most && (real || number == std::floor(number));
  if (error != std::errc() || !unit.empty() || !allowed) return false;
  if (real) return **real = number, true;
  *std::get<int64_t*>(o.target) = static_cast<int64_t>(number);
  return true;
}

// ---- parsing ----------------------------------------------------------------------------------------------

static std::vector<std::string> set_options(const Command& command, int argc, char** argv) {
  const char* name = command.name.c_str();
  constexpr int first = 256;  // getopt's code of the table's first option: above every letter
  std::string letters = ":";
  std::vector<option> table;
  for (const Option& o : command.options) {
    table.push_back({o.name.c_str(), is_flag(o) ? optional_argument : required_argument, nullptr,
                     first + static_cast<int>(table.size())});
    if (o.letter) (letters += o.letter) += is_flag(o) ? "" : ":";
  }
  table.push_back({});
  optind = 0;  // glibc: start afresh
  opterr = 0;
  for (int code; (code = getopt_long(argc, argv, letters.c_str(), table.data(), nullptr)) != -1;) {
    const int about = code == '?' || code == ':' ? optopt : code;  // 0: an unknown long option
    const auto at = std::ranges::find_if(command.options, [&](const Option& o) {
      return about && (o.letter == about || &o - command.options.data() == about - first);
    });
    if (at == command.options.end())
      fail(Exit::usage, "%s is no option of quest %s, or short for several; see quest %s --help",
           about ? format("-%c", about).c_str() : argv[optind - 1], name, name);
    const Option& o = *at;
    if (code == ':' || !assign(o, optarg ? optarg : "true"))
      fail(Exit::usage, "--%s: expected %s, found %s; see quest %s --help", o.name.c_str(),
           expected(o).c_str(), code == ':' ? "nothing" : format("\"%s\"", optarg).c_str(), name);
  }
  const std::vector<std::string> arguments(argv + optind, argv + argc);
  const std::string& said = command.arguments;
  const size_t words = said.empty() ? 0 : 1 + std::ranges::count(said, ' ');
  const size_t least = said.starts_with('[') ? 0 : words, most = said.ends_with("...]") ? SIZE_MAX : words;
  if (arguments.size() < least || arguments.size() > most)
    fail(Exit::usage, "quest %s: expected %s, found %zu argument(s); see quest %s --help", name,
         command.arguments.empty() ? "options only" : command.arguments.c_str(), arguments.size(), name);
  return arguments;
}

std::vector<std::string> parse_options(const Command& command, int argc, char** argv) {
  set_options(command, argc, argv);  // sorts argv: options first. Read again, it says the same
  command.prepare();
  return set_options(command, argc, argv);
}

// ---- JSON -------------------------------------------------------------------------------------------------

void write_options(JsonWriter& out, std::span<const Option> options) {
  for (const Option& o : options) {
    if (is_text(o) && !simdjson::validate_utf8(*std::get<std::string*>(o.target)))
      fail(Exit::usage, "--%s: expected UTF-8, found other bytes; write or name it otherwise",
           o.name.c_str());
    std::visit([&](const auto* value) { out.field(o.name, *value); }, o.target);
  }
}

void read_options(const simdjson::dom::element& element, std::span<const Option> options,
                  const std::string& place) {
  simdjson::dom::object object;
  if (element.get(object))
    fail(Exit::input, "%s: expected an object of options; the file is damaged", place.c_str());
  for (const Option& o : options) {
    simdjson::dom::element value;
    std::string word = "nothing";  // what a person would type
    bool good = !object[o.name].get(value);
    if (good) word = value.is_string() ? std::string(value.get_c_str().value()) : simdjson::minify(value);
    if (!good || value.is_string() != is_text(o) || !assign(o, word))
      fail(Exit::input,
           "%s: option \"%s\": expected %s, found %s; the file is damaged, or of another version",
           place.c_str(), o.name.c_str(), expected(o).c_str(), word.c_str());
  }
  if (object.size() != options.size())
    fail(Exit::input, "%s: expected %zu options, found %zu; another version of quest wrote the file",
         place.c_str(), options.size(), object.size());
}

// ---- help and completion ----------------------------------------------------------------------------------

static std::string help_text(const Command& command) {
  std::string out = format("%s.\n\nUsage: quest %s [OPTION...] %s\n", command.summary.c_str(),
                           command.name.c_str(), command.arguments.c_str());
  if (!command.options.empty()) out += "\nOptions:\n";
  for (const Option& o : command.options) {
    const std::string left = format(o.letter ? "-%c, --%s %s" : "%c    --%s %s", o.letter ? o.letter : ' ',
                                    o.name.c_str(), o.value.c_str());
    out += format("  %-30s%s%s", left.c_str(), left.size() < 30 ? "" : "\n                                ",
                  o.help.c_str());
    out += shown(o).empty() ? "\n" : format(" (default %s)\n", shown(o).c_str());
  }
  return command.examples.empty() ? out : out + "\nExamples:\n" + command.examples;
}

static std::string help_text(std::span<const Command> commands) {
  std::string out =
      "quest: extreme multi-label text classification with a frozen language model and a soft prompt.\n\n"
      "Usage: quest COMMAND [OPTION...]\n\nCommands:\n";
  for (const Command& c : commands) out += format("  %-14s %s\n", c.name.c_str(), c.summary.c_str());
  return out +
         "\nquest COMMAND --help explains one. quest --version tells which quest this is.\n"
         "eval \"$(quest completion)\" completes commands and options in bash.\n";
}

static std::string bash_completion(std::span<const Command> commands) {
  std::string words = "help completion", cases;
  for (const Command& command : commands) {
    const size_t space = std::min(command.name.find(' '), command.name.size());
    words += format(" %s", command.name.substr(0, space).c_str());
    std::string names = command.name.substr(space) + " --help", values;  // a second word is like an option
    for (const Option& o : command.options) {
      names += format(" --%s", o.name.c_str());
      std::string choices = o.value;
      std::replace(choices.begin(), choices.end(), '|', ' ');
      if (is_choice(o)) values += format("      --%s) words='%s' ;;\n", o.name.c_str(), choices.c_str());
    }
    cases += format("  '%s '*)\n    words+=' %s'\n    case $before in\n%s    esac ;;&\n",
                    command.name.substr(0, space).c_str(), names.c_str(), values.c_str());
  }
  return format(
      "_quest() {\n  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=\n"
      "  case \"${COMP_WORDS[*]:1:COMP_CWORD-1} \" in\n  ' ') words='%s' ;;\n%s  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n}\n"
      "complete -o default -F _quest quest ./quest\n",
      words.c_str(), cases.c_str());
}

// ---- running ----------------------------------------------------------------------------------------------

static int print(const std::string& out) {
  fputs(out.c_str(), stdout);
  return 0;
}

static int run_one(std::span<const Command> commands, int argc, char** argv) {
  if (argc < 2) fail(Exit::usage, "expected a command; see quest help");
  const auto asks_help = [](const std::string& word) { return word == "--help" || word == "-h"; };
  bool help = asks_help(argv[1]) || !strcmp(argv[1], "help");
  if (help && argc == 2) return print(help_text(commands));
  if (help) ++argv, --argc;  // quest help train
  for (const Command& c : commands) {
    const int words = c.name.find(' ') == c.name.npos ? 1 : 2;
    if (argc <= words || c.name != (words == 2 ? format("%s %s", argv[1], argv[2]) : argv[1])) continue;
    for (int i = words + 1; i < argc && strcmp(argv[i], "--") != 0; ++i) help = help || asks_help(argv[i]);
    return help ? print(help_text(c)) : c.run(parse_options(c, argc - words, argv + words));
  }
  if (!strcmp(argv[1], "--version")) return print(format("quest %s\n", quest_version));
  if (!strcmp(argv[1], "completion")) return print(bash_completion(commands));
  std::string names;
  for (const Command& c : commands) names += (names.empty() ? "" : ", ") + c.name;
  fail(Exit::usage, "\"%s\" is no command; expected %s; see quest help", argv[1], names.c_str());
}

int run_commands(std::span<const Command> commands, int argc, char** argv) {
  try {
    const int status = run_one(commands, argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout))
      fail(Exit::machine, "standard output: %s; give it room, then run again", strerror(errno));
    return status;
  } catch (const Error& error) {
    fprintf(stderr, "quest: %s\n", error.what());
    return static_cast<int>(error.code);
  } catch (const std::bad_alloc&) {
    fprintf(stderr, "quest: no memory is left; close other programs or choose smaller sizes\n");
  } catch (const std::exception& error) {
    fprintf(stderr, "quest: unexpected: %s; please report it\n", error.what());
  }
  return static_cast<int>(Exit::machine);
}

}  // namespace quest
