#include "kernels/base/json.h"

#include <charconv>
#include <cmath>

#include "kernels/base/error.h"

namespace quest {

void JsonWriter::newline() {
  if (one_line_) return;
  out_ += '\n';
  out_.append(2 * closers_.size(), ' ');
}

// A value stands behind its key, else behind a comma on a line of its own.
void JsonWriter::separate() {
  if (!after_key_ && !closers_.empty()) {
    if (!first_) out_ += one_line_ ? ", " : ",";
    newline();
  }
  first_ = after_key_ = false;
}

JsonWriter& JsonWriter::open(char bracket) {
  separate();
  out_ += bracket;
  closers_ += bracket == '{' ? '}' : ']';
  first_ = true;
  return *this;
}

JsonWriter& JsonWriter::end() {
  const char closer = closers_.back();
  closers_.pop_back();
  if (!first_) newline();
  out_ += closer;
  first_ = false;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  value(name);
  out_ += ": ";
  after_key_ = true;
  return *this;
}

JsonWriter& JsonWriter::value(double number) {
  char digits[40];
  if (!std::isfinite(number)) return raw("null");
  return raw({digits, std::to_chars(digits, digits + sizeof digits, number).ptr});
}

JsonWriter& JsonWriter::raw(std::string_view json) {
  separate();
  out_ += json;
  return *this;
}

JsonWriter& JsonWriter::value(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '\n')
      quoted += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20)
      quoted += format("\\u%04x", c);
    else
      (c == '"' || c == '\\' ? quoted += '\\' : quoted) += c;
  }
  return raw(quoted += '"');
}

}  // namespace quest
