// Tensor files: the safetensors layout (8 bytes header length, JSON header, data). Hugging Face keeps models
// and prompts in it; here prompts, checkpoints and label embeddings too.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/ops.h"

namespace quest {

struct Tensor {
  std::string type;  // "F32", "BF16", "U8" ...
  std::vector<int64_t> shape;
  const std::byte* data;  // at any address
  int64_t bytes;

  Tensor(std::string t, std::vector<int64_t> s, const void* at, int64_t n)
      : type(std::move(t)), shape(std::move(s)), data(static_cast<const std::byte*>(at)), bytes(n) {}
  Tensor(const View& v);  // of a plain type, stride == cols
};

struct TensorFile {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  MappedFile file;  // what the tensors of a file that was read point into

  // The tensor of that name and shape: F32, and finite numbers; throws Error(input) otherwise. rows -1: any.
  View matrix(const std::string& name, int64_t rows, int64_t cols) const;
  std::vector<float> numbers(const std::string& name, int64_t rows, int64_t cols) const;  // a copy
  const std::string& text(const std::string& name) const;  // metadata; throws Error(input) when missing
  double number(const std::string& name) const;            // metadata that is a finite number
  // Throws Error(input) unless the metadata has this value; advice: what to do then.
  void expect(const std::string& name, const std::string& value, const char* advice) const;
};

// Writes tensors and metadata; temporary file, fsync, rename.
void write_tensors(const std::string& path, const TensorFile& contents);

// Maps a file; every rule of the format is checked: no holes, no overlap, sizes, types. Throws Error(input).
TensorFile read_tensors(const std::string& path);

}  // namespace quest
