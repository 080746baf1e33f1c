// Model, tokeniser, op table, threads and arena of one process, and how texts become embeddings with them.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/threads.h"
#include "model/encode.h"
#include "model/tokenizer.h"
#include "train/settings.h"

namespace quest {

// Ctrl-C (and SIGTERM) as a question to ask between two pieces of work. hold_interrupts(), before the first
// thread, lets the signals wait from then on; without it they end the program, and nothing ever waits.
void hold_interrupts();
bool interrupted();  // whether one waits
struct Stopped {};   // thrown between two pieces of work that a later --resume does again

// What a process takes beside its heap and its arena: the program's own data, stacks, and pages that the heap
// could not give back.
constexpr size_t program_bytes = 24 << 20;
constexpr int64_t part_texts = 256;  // texts that are embedded at once

// What is taken already of the memory that the arena's passes and steps could have.
struct Taken {
  size_t program, loaded, results;
  size_t all() const { return program + loaded + results; }
};

struct Engine {
  // Loads the model; throws Error. memory: bytes that the process may take; 0: 0.8 of what is available. On a
  // GPU: of its memory, 0.95 of what is free. All of that is asked for at once, and the weights are brought.
  // given: instead of the settings' model; without a path it has no tokeniser.
  explicit Engine(const Settings&, size_t memory = 0, std::unique_ptr<Model> given = nullptr);
  void require_fitting(const Settings&) const;  // texts, prompt and lengths; throws Error(usage)
  Taken taken(size_t beside) const;             // when results take so many bytes of the host
  size_t room(size_t beside) const;             // bytes left of the memory, or 0
  size_t host_room() const;                     // bytes of the host that are left
  void reserve(size_t bytes);                   // makes the arena, before any text is embedded

  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  Threads threads;
  std::shared_ptr<Device> device;  // nullptr: the CPU
  size_t memory, loading;          // loading: bytes that the model took besides, while it was quantised
  std::unique_ptr<Arena> arena, bookkeeping;  // bookkeeping: of a GPU's context, on the host
  Ops ops, host_ops;                          // host_ops: the CPU's
  double flops = 0;                           // counted so far: linear layers, 2 a weight and row
  double again = 0;  // besides: what was done a second time, because memory was short
  Context context;
  Context host;  // for ops on what the host has, of those that take no scratch
  int64_t rows;  // tokens of one pass

  int64_t width() const { return model->width; }
  Encoder encoder() const { return {.model = *model, .context = context, .prompt = {}, .rows = rows}; }
  Encoder encoder(const Settings&, View prompt) const;  // placement and pooling of the settings
  // Embeddings [numbers,d] of some of the texts, so many at once. The encoder's prompt is on the host.
  std::vector<float> embed(const Encoder&, const std::vector<Text>& texts,
                           const std::vector<int32_t>& numbers, const char* label);
  // Makes rows [n,d] unit vectors; mean [1,d]: subtracted first, or [0,d].
  void normalize(std::vector<float>& rows, View mean);
  std::vector<float> mean_of(const std::vector<float>& rows) const;  // [1,d] of [n,d], summed in double
  View view(const std::vector<float>& data) const;                   // as rows of the model's width
};

// How a query or label reads as one text. {title} and {content} are filled in; a sentence (they are parted by
// ". ") whose places are all empty is left out, unless keep_empty.
std::string join_text(std::string_view title, std::string_view content,
                      std::string_view pattern = "{title}. {content}", bool keep_empty = false);

// The distinct texts of a job, as tokens. Texts of the same tokens are one text.
struct Corpus {
  std::map<std::vector<int32_t>, int32_t> numbers;  // of texts, by their tokens
  std::vector<Text> texts;                          // point into the map's keys
  int64_t tokens = 0;                               // of all texts

  Corpus() = default;
  Corpus(Corpus&&) = delete;
  // Adds a text that reads as the pattern and the settings say, and returns its number. One without any token
  // becomes the token 0.
  int32_t add(const Tokenizer&, const Settings&, std::string_view title, std::string_view content,
              const std::string& pattern);
};

// Bytes of the keys and values of so many tokens, in all layers.
inline int64_t cached_bytes(const Model& model, const Ops& ops, int64_t tokens) {
  return tokens * key_value_bytes(model, ops.activation) * model.layers;
}

// text_pass of n texts that have so many tokens, their keys and values in the arena; returns their bytes.
// last, mean: on the host.
inline int64_t text_pass_into(const Encoder& e, Text* texts, int64_t n, int64_t tokens, View last,
                              View mean) {
  const Context& c = e.context;
  const int64_t bytes = cached_bytes(e.model, *c.ops, tokens);
  auto* store = c.arena->array<std::byte>(bytes, "texts/cached keys and values");
  Scope scope(c);
  const View last_rows = bring(c, last, "texts/last rows"), means = bring(c, mean, "texts/means");
  text_pass(e, texts, n, {store, bytes / e.model.layers, tokens}, last_rows, means);
  fetch(c, last_rows, last), fetch(c, means, mean);
  return bytes;
}

// Keys and values of the corpus' texts (suffix placement), as many as fit, and every text's embedding without
// a prompt: the last token's and the mean of all, after the final norm.
struct TextCache {
  // One pass over the texts. limit: bytes of keys and values to keep; texts beyond are run again when needed.
  TextCache(Engine&, const Corpus&, int64_t limit);

  std::vector<Text> texts;        // of the corpus; with keys and values where they are kept
  std::vector<float> last, mean;  // [texts,d]
  int64_t kept = 0, bytes = 0;    // texts; of their keys and values
};

}  // namespace quest
