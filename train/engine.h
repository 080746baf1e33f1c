// Model, tokeniser, op table, threads and arena of one process, and how texts become embeddings with them.
#pragma once
#include <csignal>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/progress.h"
#include "kernels/base/threads.h"
#include "model/encode.h"
#include "model/tokenizer.h"
#include "train/settings.h"

namespace quest {

// Ctrl-C (and SIGTERM) as a question to ask between two pieces of work. Made before the first thread.
class Interrupt {
 public:
  Interrupt();
  bool requested();

 private:
  sigset_t signals_;
  bool seen_ = false;
};
struct Stopped {};  // thrown between two pieces of work that a later --resume does again

struct Engine {
  explicit Engine(const Settings&);  // loads the model; throws Error
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  Threads threads;
  Arena arena;
  Ops ops;
  double flops = 0;  // counted so far: linear layers, 2 a weight and row
  Context context;
  int64_t rows;  // tokens of one pass

  Encoder encoder(Placement, Pooling, View prompt) const;

  Interrupt* interrupt = nullptr;
  void stop_if_asked() const {
    if (interrupt && interrupt->requested()) throw Stopped{};
  }
};

// The distinct texts of a job, as tokens.
struct Corpus {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets{0};  // [texts + 1]
  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  Text text(int64_t i) const {
    return {tokens.data() + offsets[static_cast<size_t>(i)],
            static_cast<int32_t>(offsets[static_cast<size_t>(i) + 1] - offsets[static_cast<size_t>(i)]),
            {}};
  }
};

// Adds texts to a corpus, each once (texts with the same tokens are one text).
class CorpusBuilder {
 public:
  CorpusBuilder(const Tokenizer&, int64_t length);
  // "title. content", or the title alone without content; cut at `length` tokens. Returns the text's number.
  // A text without any token becomes the single token 0.
  int32_t add(std::string_view title, std::string_view content);
  Corpus corpus;

 private:
  const Tokenizer& tokenizer_;
  int64_t length_;
  std::vector<int32_t> ids_;
  std::string joined_;
  std::vector<std::vector<int32_t>> buckets_;  // text numbers by hash
};

// How a query or label reads as one text.
std::string join_text(std::string_view title, std::string_view content);

// Keys and values of the corpus' texts (suffix placement), as many as fit, and every text's embedding without
// a prompt: the last token's and the mean of all, after the final norm.
class TextCache {
 public:
  // One pass over the texts. limit: bytes of keys and values to keep; texts beyond are run again when needed.
  TextCache(Engine&, const Corpus&, int64_t limit);
  Text text(int64_t i) const;
  int64_t kept() const { return kept_; }  // texts
  int64_t bytes() const { return bytes_; }
  const std::vector<float>& last() const { return last_; }  // [texts,d]
  const std::vector<float>& mean() const { return mean_; }

 private:
  const Corpus& corpus_;
  std::vector<KeyValues> kv_;
  std::vector<float> last_, mean_;
  int64_t kept_ = 0, bytes_ = 0;
};

// Unit embeddings [texts,d] of some texts; mean: subtracted before normalisation, or data == nullptr.
std::vector<float> embed_all(Engine&, const Encoder&, std::span<const Text> texts, View mean,
                             const char* label);

// Normalises rows [n,d] in place, minus `mean` when it has data.
void normalize_all(Engine&, std::vector<float>& rows, View mean);

View view_of(const std::vector<float>& data, int64_t cols);  // rows of `cols`

}  // namespace quest
