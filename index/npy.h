// NumPy's .npy files, for embeddings from and to other programs: matrices of float32, versions 1 to 3 of the
// format (numpy.lib.format): "\x93NUMPY", version, header length, a Python dictionary as text, the numbers
// row by row.
#pragma once
#include <cstdio>
#include <cstring>
#include <string>

#include "index/exact.h"
#include "kernels/base/file.h"

namespace quest {

struct Npy {
  MappedFile file;
  Vectors vectors;  // within the file
};

// Throws Error(input) unless the file is a whole float32 matrix of finite numbers, row by row.
inline Npy read_npy(const std::string& path) {
  Npy out{MappedFile(path), {}};
  const std::string_view bytes = out.file.text();
  const auto refuse = [&](const char* what) {
    fail(Exit::input,
         "%s: expected a .npy file of a float32 matrix in C order, found %s; save it again with "
         "numpy.save(path, array.astype('float32'))",
         path.c_str(), what);
  };
  if (bytes.size() < 12 || !bytes.starts_with("\x93NUMPY")) refuse("another kind of file");
  const bool short_length = bytes[6] == 1;
  uint32_t length = 0;
  memcpy(&length, bytes.data() + 8, short_length ? 2 : 4);
  const size_t start = (short_length ? 10 : 12) + size_t{length};
  if (start > bytes.size() || start % 4) refuse("a header that is cut short, or not aligned");
  const std::string header(bytes.substr(0, start));
  const auto value = [&](const char* key) {  // the text behind a key
    const size_t at = header.find(key);
    return at == header.npos ? "" : header.c_str() + at + strlen(key);
  };
  long rows = -1, cols = -1;
  char order[2] = "", type[4] = "";
  sscanf(value("'descr':"), " '%3[^']'", type);
  sscanf(value("'fortran_order':"), " %1s", order);
  if (strcmp(type, "<f4") != 0) refuse("another type of number");
  if (strcmp(order, "F") != 0) refuse("Fortran order");  // False
  if (sscanf(value("'shape':"), " (%ld, %ld)", &rows, &cols) != 2 || rows < 0 || cols < 1)
    refuse("another shape");
  int64_t size = 0;
  if (__builtin_mul_overflow(rows, cols, &size) || size != std::ssize(bytes.substr(start)) / 4 ||
      bytes.substr(start).size() % 4)
    refuse("another number of bytes than its shape says");
  const auto* numbers = reinterpret_cast<const float*>(bytes.data() + start);
  if (!std::all_of(numbers, numbers + size, [](float x) { return std::isfinite(x); }))
    refuse("a number that is not finite");
  out.vectors = {numbers, rows, cols};
  return out;
}

inline void write_npy(const std::string& path, Vectors v) {
  std::string header =
      format("{'descr': '<f4', 'fortran_order': False, 'shape': (%ld, %ld), }", v.count, v.width);
  header.append(64 - (10 + header.size() + 1) % 64, ' ');
  header += '\n';
  OutFile out(path);
  out.write(std::string_view("\x93NUMPY\x01\x00", 8));
  out.put(static_cast<uint16_t>(header.size()));
  out.write(header);
  out.write(v.data, sizeof(float) * v.count * v.width);
  out.commit();
}

}  // namespace quest
