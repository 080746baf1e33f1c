// Text to token ids by BPE, over bytes (GPT-2, SmolLM2, Llama 3) or over characters (SentencePiece: Llama 1,
// 2).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/vocabulary.h"

namespace quest {

class Tokenizer {
 public:
  explicit Tokenizer(const Vocabulary& vocabulary);  // throws Error(input) on a malformed one

  // Appends the ids of a text, with BOS and EOS where the file asks for them. Added tokens (control and
  // user-defined, "<|im_end|>") are found in the text. A byte that is not UTF-8 counts as U+FFFD; a byte
  // without a token (rare control characters, in SmolLM2) is dropped, as by the Hugging Face tokenizers
  // library. Any thread may call it.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

  // The bytes that a token stands for.
  const std::string& text(int32_t id) const { return texts_.at(id); }
  int64_t size() const { return count_; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  void read_bytes(const Vocabulary& v);
  void read_sentence_piece(const Vocabulary& v);
  void encode_plain(std::string_view text, bool first, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;
  void push_bytes(std::string_view character, std::vector<int32_t>& ids) const;

  Pattern pattern_;
  Prefix prefix_;
  int64_t count_;                   // tokens
  std::vector<std::string> texts_;  // of the tokens; then of characters that only longer tokens have
  std::vector<uint8_t> unused_;     // [tokens] 1: of SentencePiece's kind that is split up again
  std::vector<int32_t> added_;      // ids, longest text first
  std::string added_starts_;        // the first bytes of their texts
  std::array<int32_t, 256> byte_ids_;
  int32_t unknown_ = -1;
  // SentencePiece: what a character is before the merges. Others: pieces that are a token without any merge.
  std::unordered_map<std::string, int32_t> symbols_;
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id << 32 | right id
  int32_t bos_, eos_;                           // -1: not to be added
};

}  // namespace quest
