// nf4: a matrix of floats from stdin, quantised to NF4 with double quantisation; to stdout codes, fp32 absmax, codes of
// the absmax, their own absmax, offset. For tests/peers/nf4.py.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "kernels/nf4.h"

int main() {
  const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
  std::vector<float> w(bytes.size() / sizeof(float)), absmax;
  std::copy_n(bytes.data(), w.size() * sizeof(float), reinterpret_cast<char*>(w.data()));
  const quest::Nf4Matrix m = quest::quantize_nf4(w.data(), std::ssize(w), &absmax);
  bool good = true;
  const auto put = [&](const auto& v) { good &= fwrite(v.data(), sizeof v[0], v.size(), stdout) == v.size(); };
  put(m.codes), put(absmax), put(m.scale_codes), put(m.nested), put(std::vector{m.offset});
  return good && !fflush(stdout) ? 0 : 4;
}
