// What a tokeniser's file says, whichever it is: the metadata of a GGUF, SentencePiece's .model, or the
// Hugging Face library's tokenizer.json.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace quest {

// How text is cut before the merges. sentence_piece: not at all, a space is U+2581; the others work on bytes,
// written in GPT-2's alphabet.
enum class Pattern { sentence_piece, gpt2, smollm, llama3 };

// SentencePiece's dummy prefix, a space before the text between added tokens; the library's Metaspace sets it
// only where none stands, and perhaps only at the beginning.
enum class Prefix { none, always, if_absent, if_absent_at_first };

struct Vocabulary {
  enum Kind : uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

  std::string file, place;  // for messages; place stands before the name of a field
  Pattern pattern = Pattern::sentence_piece;
  std::vector<std::string> tokens;  // as written in the file
  std::vector<Kind> kinds;          // [tokens]
  std::vector<float> scores;        // [tokens] SentencePiece: the pair of highest score merges first
  std::vector<std::pair<std::string, std::string>> merges;  // otherwise: in this order
  int64_t bos = -1, eos = -1;                               // set around every text; -1: not
  Prefix prefix = Prefix::none;
  bool whole_pieces = false;  // a piece that is a token is not merged (ignore_merges)

  // Throws Error(input): "FILE: PLACE: expected EXPECTED, found FOUND; pass another model".
  [[noreturn]] void refuse(const std::string& field, const std::string& expected,
                           const std::string& found) const;
};

// Of a model: a GGUF file, or a folder with tokenizer.json or tokenizer.model. Throws Error(input).
Vocabulary read_vocabulary(const std::string& path);
// Writes the tokeniser of a model into a Hugging Face folder: as tokenizer.json, or for SentencePiece
// tokenizer.model.
void copy_tokenizer(const std::string& path, const std::string& folder);

}  // namespace quest
