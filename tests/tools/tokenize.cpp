// tokenize MODEL: reads texts from stdin, each closed by a NUL byte, and writes the ids of each as one
// line. For tests/peers/tokenizer.py.
#include <cstdio>
#include <iostream>
#include <iterator>

#include "kernels/base/error.h"
#include "model/tokenizer.h"

int main(int count, char** arguments) try {
  if (count != 2) quest::fail(quest::Exit::usage, "expected a model, found %d arguments", count - 1);
  const quest::Tokenizer tokenizer(quest::read_vocabulary(arguments[1]));
  std::string text, line;
  std::vector<int32_t> ids;
  while (std::getline(std::cin, text, '\0')) {
    ids.clear();
    line.clear();
    tokenizer.encode(text, ids);
    for (const int32_t id : ids) line += std::to_string(id) + ' ';
    std::puts(line.c_str());
  }
  return 0;
} catch (const quest::Error& e) {
  std::fprintf(stderr, "tokenize: %s\n", e.what());
  return static_cast<int>(e.code);
}
