// GGUF, versions 2 and 3: the container of llama.cpp. Tensors stay where they are in the map.
#pragma once
#include <map>
#include <string>

#include "model/config.h"
#include "model/tensors.h"

namespace quest {

// Parses the file's header. Every length, count, type, size and offset is checked here, so what it hands out
// lies inside the file; all members throw Error(input) naming file, key or tensor, expected and found.
// The metadata are a Config: integers of any type, floating-point numbers (a text where one is not finite),
// flags, texts, and lists of these.
class Gguf : public Config {
 public:
  explicit Gguf(const MappedFile& file);  // which the tensors point into

  std::map<std::string, Tensor> tensors;  // rows first, and no dimensions of 1 before others

 private:
  struct Reader;
  void read_tensor(Reader& reader);
};

}  // namespace quest
