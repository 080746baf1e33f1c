// Byte-level BPE from the metadata of a GGUF: text <-> token ids. For now the pre-tokeniser of SmolLM2 alone.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/gguf.h"

namespace quest {

class Tokenizer {
 public:
  // Copies what it needs; throws Error(input) on a malformed vocabulary.
  explicit Tokenizer(const Gguf& gguf);

  // Appends the ids of a text, with BOS and EOS where the file asks for them. Added tokens (control and
  // user-defined, "<|im_end|>") are found in the text. A byte that is not UTF-8 counts as U+FFFD; a byte
  // without a token (rare control characters, in SmolLM2) is dropped, as by the Hugging Face tokenizers
  // library. Any thread may call it.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

  // The bytes that a token stands for.
  const std::string& text(int32_t id) const { return texts_.at(id); }
  int64_t size() const { return texts_.size(); }

 private:
  struct Merge {
    int32_t rank, id;
  };
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;

  std::vector<std::string> texts_;
  std::vector<int32_t> added_;  // ids, longest text first
  std::string added_starts_;    // the first bytes of their texts
  std::array<int32_t, 256> byte_ids_;
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id << 32 | right id
  int32_t bos_, eos_;                           // -1: not to be added
};

}  // namespace quest
