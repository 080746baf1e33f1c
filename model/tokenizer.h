// Byte-level BPE from the metadata of a GGUF: text <-> token ids. For now the pre-tokeniser of SmolLM2 alone.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/gguf.h"

namespace quest {

class Tokenizer {
 public:
  explicit Tokenizer(
      const Gguf& gguf);  // copies what it needs; throws Error(input) on a malformed vocabulary

  // Appends the ids of a text, with BOS and EOS where the file asks for them. Added tokens (control and
  // user-defined,
  // "<|im_end|>") are found in the text. A byte that is not UTF-8 counts as U+FFFD; a byte without a token
  // (rare control characters, in SmolLM2) is dropped, as by the Hugging Face tokenizers library. Any thread
  // may call it.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;
  std::string decode(std::span<const int32_t> ids) const;

  const std::string& text(int32_t id) const {
    return texts_.at(static_cast<size_t>(id));
  }  // the bytes it stands for
  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  int32_t bos() const { return bos_; }  // -1: none
  int32_t eos() const { return eos_; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  struct Symbol {
    int32_t id, previous, next;
  };  // id -1: merged into the symbol before it
  struct Scratch {
    std::vector<Symbol> symbols;
    std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap;  // rank << 32 | position
  };

  void read_tokens(const Gguf& gguf);
  void read_merges(const Gguf& gguf);
  int32_t special(const Gguf& gguf, const char* key) const;
  int32_t added_at(std::string_view text) const;
  void encode_plain(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  const Merge* merge_at(int32_t position, const Scratch& scratch) const;

  std::vector<std::string> texts_;
  std::vector<int32_t> added_;            // ids, longest text first
  std::array<bool, 256> starts_added_{};  // bytes that an added token starts with
  std::array<int32_t, 256> byte_ids_;
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id << 32 | right id
  int32_t bos_ = -1, eos_ = -1;
  bool add_bos_ = false, add_eos_ = false;
};

}  // namespace quest
