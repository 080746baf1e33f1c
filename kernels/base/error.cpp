#include "kernels/base/error.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace quest {

static std::string vformat(const char* fmt, va_list args) {
  char* text = nullptr;
  if (vasprintf(&text, fmt, args) < 0) abort();  // no memory left for one sentence
  const std::string s = text;
  free(text);
  return s;
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
