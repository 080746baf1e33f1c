#include "kernels/base/error.h"

#include <cstdarg>
#include <cstdio>

namespace quest {

static std::string vformat(const char* fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  const int n = vsnprintf(nullptr, 0, fmt, again);
  va_end(again);
  std::string s(static_cast<size_t>(n < 0 ? 0 : n), '\0');
  vsnprintf(s.data(), s.size() + 1, fmt, args);
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
