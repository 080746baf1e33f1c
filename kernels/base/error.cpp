#include "kernels/base/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>

namespace quest {

static std::string vformat(const char* fmt, va_list args) {
  char* text = nullptr;
  if (vasprintf(&text, fmt, args) < 0) throw std::bad_alloc();
  const std::unique_ptr<char, decltype(&free)> owner(text, free);
  return text;
}

void fail(Exit code, const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  std::string s = vformat(fmt, args);
  va_end(args);
  throw Error(code, s);
}

std::string format(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  std::string s = vformat(fmt, args);
  va_end(args);
  return s;
}

}  // namespace quest
