// Tensor files: the safetensors layout (8 bytes header length, JSON header, data), float32 matrices only,
// with a string table under __metadata__. Prompts, checkpoints and label embeddings are kept in it.
#pragma once
#include <map>
#include <string>

#include "kernels/base/file.h"
#include "kernels/ops.h"

namespace quest {

struct TensorFile {
  std::map<std::string, View> tensors;
  std::map<std::string, std::string> metadata;
  MappedFile file;  // what the views of a file that was read point into

  // The tensor of that name and shape; throws Error(input) otherwise.
  View matrix(const std::string& name, int64_t rows, int64_t cols) const;
  const std::string& text(const std::string& name) const;  // metadata; throws Error(input) when missing
  double number(const std::string& name) const;            // metadata that is a finite number
  // Throws Error(input) unless the metadata has this value; advice: what to do then.
  void expect(const std::string& name, const std::string& value, const char* advice) const;
};

// Writes tensors and metadata; temporary file, fsync, rename.
void write_tensors(const std::string& path, const TensorFile& contents);

// Maps a file; every rule of the format is checked (no holes, no overlap, sizes, types), and that all numbers
// are finite. Throws Error(input).
TensorFile read_tensors(const std::string& path);

}  // namespace quest
