// Errors: one sentence with file, place, expected, found, and what to do; the code is the exit status.
#pragma once
#include <stdexcept>
#include <string>

namespace quest {

enum class Exit { usage = 2, input = 3, machine = 4 };

struct Error : std::runtime_error {
  Exit code;
  Error(Exit c, const std::string& sentence) : std::runtime_error(sentence), code(c) {}
};

// printf-style; throws Error. main() prints the sentence to stderr and exits with the code.
[[noreturn]] void fail(Exit code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// printf into a string.
std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace quest
