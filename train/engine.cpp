#include "train/engine.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/random.h"
#include "model/fetch.h"

namespace quest {

Interrupt::Interrupt() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGTERM);
  sigprocmask(SIG_BLOCK, &signals_, nullptr);
}

bool Interrupt::requested() {
  const timespec now{0, 0};
  if (sigtimedwait(&signals_, nullptr, &now) > 0) seen_ = true;
  return seen_;
}

Engine::Engine(const Settings& s)
    : threads(static_cast<int>(s.threads)),
      arena(available_memory()),
      ops(cpu_ops(s.kernels.empty() ? nullptr : s.kernels.c_str(),
                  s.precision == "f32" ? Type::f32 : Type::bf16)),
      context{&ops, &threads, &arena, &flops},
      rows(s.rows) {
  const std::string path = s.model.empty() ? default_model_path() : s.model;
  model = load_gguf(path);
  tokenizer = std::make_unique<Tokenizer>(Gguf(model->file));
  std::vector<int32_t> start;
  tokenizer->encode(s.init, start);
  if (start.empty())
    fail(Exit::usage, "--init: expected a text of at least one token, found '%s'", s.init.c_str());
  if (s.length + s.prompt_rows > model->max_positions)
    fail(Exit::usage, "--length %lld with --prompt-rows %lld: the model has %lld positions; take less",
         static_cast<long long>(s.length), static_cast<long long>(s.prompt_rows),
         static_cast<long long>(model->max_positions));
}

Encoder Engine::encoder(Placement placement, Pooling pooling, View prompt) const {
  return {*model, context, placement, pooling, prompt, rows};
}

std::string join_text(std::string_view title, std::string_view content) {
  std::string s(title);
  if (!title.empty() && !content.empty()) s += ". ";
  return s.append(content);
}

CorpusBuilder::CorpusBuilder(const Tokenizer& tokenizer, int64_t length)
    : tokenizer_(tokenizer), length_(length), buckets_(1 << 16) {}

int32_t CorpusBuilder::add(std::string_view title, std::string_view content) {
  ids_.clear();
  // A token is at least one byte, and rarely more than 32: tokenising a whole article to keep 64 tokens is
  // waste.
  joined_ = join_text(title, content);
  tokenizer_.encode(joined_, ids_);
  if (static_cast<int64_t>(ids_.size()) > length_) ids_.resize(static_cast<size_t>(length_));
  if (ids_.empty()) ids_.push_back(0);
  auto& bucket = buckets_[hash_bytes(ids_.data(), ids_.size() * sizeof(int32_t)) % buckets_.size()];
  for (const int32_t other : bucket) {
    const Text t = corpus.text(other);
    if (std::equal(ids_.begin(), ids_.end(), t.tokens, t.tokens + t.count)) return other;
  }
  const auto number = static_cast<int32_t>(corpus.size());
  bucket.push_back(number);
  corpus.tokens.insert(corpus.tokens.end(), ids_.begin(), ids_.end());
  corpus.offsets.push_back(static_cast<int64_t>(corpus.tokens.size()));
  return number;
}

View view_of(const std::vector<float>& data, int64_t cols) {
  return {const_cast<float*>(data.data()), Type::f32, static_cast<int64_t>(data.size()) / cols, cols, cols};
}

TextCache::TextCache(Engine& engine, const Corpus& corpus, int64_t limit) : corpus_(corpus) {
  const Model& m = *engine.model;
  const int64_t n = corpus.size(), row = key_value_bytes(m, engine.ops.activation);
  const Encoder encoder = engine.encoder(Placement::none, Pooling::last, {});
  kv_.resize(static_cast<size_t>(n));
  last_.resize(static_cast<size_t>(n * m.width));
  mean_.resize(static_cast<size_t>(n * m.width));
  std::vector<Text> texts;
  for (int64_t i = 0; i < n; ++i) texts.push_back(corpus.text(i));
  Progress progress("text pass", static_cast<double>(corpus.tokens.size()), "tokens");
  for (int64_t first = 0; first < n;) {
    const int64_t count = texts_per_pass(texts.data(), first, n, engine.rows), end = first + count;
    const int64_t tokens =
        corpus.offsets[static_cast<size_t>(end)] - corpus.offsets[static_cast<size_t>(first)];
    const int64_t bytes = tokens * row * m.layers;
    engine.stop_if_asked();
    const size_t mark = engine.arena.used();
    const KeyValues store{engine.arena.array<std::byte>(bytes), tokens * row, tokens};
    text_pass(encoder, texts.data() + first, count, store, rows_of(view_of(last_, m.width), first, count),
              rows_of(view_of(mean_, m.width), first, count));
    if (bytes_ + bytes <= limit) {
      bytes_ += bytes;
      kept_ += count;
      for (int64_t i = first; i < end; ++i) kv_[static_cast<size_t>(i)] = texts[static_cast<size_t>(i)].kv;
    } else {
      engine.arena.release(mark);
    }
    progress.add(static_cast<double>(tokens));
    first = end;
  }
}

Text TextCache::text(int64_t i) const {
  Text t = corpus_.text(i);
  t.kv = kv_[static_cast<size_t>(i)];
  return t;
}

void normalize_all(Engine& engine, std::vector<float>& data, View mean) {
  const View e = view_of(data, engine.model->width);
  engine.ops.normalize(engine.context, e, mean, e);
}

std::vector<float> embed_all(Engine& engine, const Encoder& encoder, std::span<const Text> texts, View mean,
                             const char* label) {
  const auto n = static_cast<int64_t>(texts.size());
  std::vector<float> out(static_cast<size_t>(n * engine.model->width));
  const View e = view_of(out, engine.model->width);
  Progress progress(label, static_cast<double>(n), "texts");
  for (int64_t first = 0, count; first < n; first += count) {
    count = std::min<int64_t>(256, n - first);
    embed_texts(encoder, texts.data() + first, count, rows_of(e, first, count));
    progress.add(static_cast<double>(count));
  }
  normalize_all(engine, out, mean);
  return out;
}

}  // namespace quest
