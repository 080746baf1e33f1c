// Options: one table a command, over getopt_long. The same table prints the help and the shell completion,
// and writes and reads the values as JSON, so config.json is a dump of it.
//
//   std::vector<Command> train_commands() {
//     auto s = std::make_shared<TrainSettings>();
//     return {{.name = "train", .summary = "Train a prompt", .examples = "  quest train --steps 200\n",
//              .options = {{"steps", 's', &s->steps, "N", "training steps", 1, 100000}},
//              .run = [s](const std::vector<std::string>&) { return train(*s); }}};
//   }
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace simdjson::dom {
class element;
}

namespace quest {

class JsonWriter;

constexpr const char* quest_version = "0.1.0";

// What the target holds when the table is made is the default. The target's type says what the option takes:
// bool nothing (a flag); std::string a text, or with words parted by | in `value` one of them; double a
// number; int64_t a whole number, or with `value` SIZE bytes, such as 0, 512MiB, 1.5GB.
struct Option {
  std::string name;  // without the dashes
  char letter;       // short form, or 0
  std::variant<bool*, std::string*, int64_t*, double*> target;
  std::string value;                // how help names the value; empty for a flag
  std::string help;                 // one line
  double least = 0, most = 0x1p53;  // allowed numbers, both ends included
};

struct Command {
  std::string name;            // one word, or two: "data import"
  std::string summary = {};    // one line
  std::string arguments = {};  // as help shows them, and so many: "SOURCE DIR", "[MAYBE]", "[ANY...]"
  std::string examples = {};   // lines, each indented by two spaces
  std::vector<Option> options = {};
  // Called when all options are set, and may change their targets: then the options are set once more.
  std::function<void()> prepare = [] {};
  // Gets the arguments, returns the exit status.
  std::function<int(const std::vector<std::string>&)> run = {};
};

// Fills the targets from argv[1..]; returns the arguments that are no options. "--" ends the options.
// Throws Error(usage): unknown option, missing or malformed value, number out of range, wrong number of
// arguments.
std::vector<std::string> parse_options(const Command& command, int argc, char** argv);

// One field an option, in the order of the table. Throws Error(usage): a text is not UTF-8.
void write_options(JsonWriter& out, std::span<const Option> options);
// Reads what write_options wrote; `place` (the file) is named in errors. Throws Error(input): a field is
// missing, unknown, of another type or out of range.
void read_options(const simdjson::dom::element& object, std::span<const Option> options,
                  const std::string& place);

// main(): finds the command, parses, runs. Answers help, --help, --version and completion itself. An Error is
// printed as "quest: sentence" on stderr and its code returned; anything else that is thrown, and a stdout
// that cannot be written, is 4.
int run_commands(std::span<const Command> commands, int argc, char** argv);

}  // namespace quest
