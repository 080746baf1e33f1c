// Errors: one sentence with file, place, expected, found, and what to do; the code is the exit status.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace quest {

enum class Exit { usage = 2, input = 3, machine = 4 };

struct Error : std::runtime_error {
  Exit code;
  Error(Exit c, const std::string& sentence) : std::runtime_error(one_line(sentence)), code(c) {}

 private:
  static std::string one_line(std::string s) {  // names from files may hold control characters
    for (char& byte : s)
      if (static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f) byte = '?';
    return s;
  }
};

inline std::string vformat(const char* format, va_list arguments) {
  char* text = nullptr;
  if (vasprintf(&text, format, arguments) < 0) throw std::bad_alloc();
  const std::string s = text;
  free(text);
  return s;
}

// printf into a string.
[[gnu::format(printf, 1, 2)]] inline std::string format(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string s = vformat(format, arguments);
  va_end(arguments);
  return s;
}

// printf-style; throws Error. main() prints the sentence to stderr and exits with the code.
[[noreturn, gnu::format(printf, 2, 3)]] inline void fail(Exit code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string s = vformat(format, arguments);
  va_end(arguments);
  throw Error(code, s);
}

}  // namespace quest
