#include "train/engine.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
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
  return seen_ = seen_ || sigtimedwait(&signals_, nullptr, &now) > 0;
}

Engine::Engine(const Settings& s)
    : model(load_model(s.model.empty() ? default_model_path() : s.model, s.quant == "nf4")),
      tokenizer(new Tokenizer(read_vocabulary(model->path))),
      threads(s.threads),
      arena(available_memory()),
      ops(cpu_ops(s.kernels.empty() ? nullptr : s.kernels.c_str(),
                  s.precision == "f32" ? Type::f32 : Type::bf16)),
      context{&ops, &threads, &arena, &flops},
      rows(s.rows) {
  if (tokenizer->size() > model->vocabulary)
    fail(Exit::input,
         "%s: expected a tokeniser of at most %ld tokens, as many as the embedding has rows, found %ld; pass "
         "another model",
         model->path.c_str(), model->vocabulary, tokenizer->size());
  std::vector<int32_t> start;
  tokenizer->encode(s.init, start);
  for (const std::string& pattern : {s.query_text, s.label_text})
    if (pattern.find("{title}") == pattern.npos && pattern.find("{content}") == pattern.npos)
      fail(Exit::usage, "--query-text, --label-text: expected {title} or {content} in it, found '%s'",
           pattern.c_str());
  if (start.empty() && !s.init.empty())
    fail(Exit::usage, "--init: expected a text of at least one token, found '%s'", s.init.c_str());
  if (s.length + s.prompt_rows > model->max_positions)
    fail(Exit::usage, "--length %ld with --prompt-rows %ld: the model has %ld positions; take less", s.length,
         s.prompt_rows, model->max_positions);
}

Encoder Engine::encoder(const Settings& s, View prompt) const {
  return {*model,
          context,
          s.placement == "prefix" ? Placement::prefix : Placement::suffix,
          s.pooling == "mean" ? Pooling::mean : Pooling::last,
          prompt,
          rows};
}

View Engine::view(const std::vector<float>& data) const {
  return {const_cast<float*>(data.data()), Type::f32, std::ssize(data) / width(), width(), width()};
}

void Engine::normalize(std::vector<float>& data, View mean) {
  ops.normalize(context, view(data), mean, view(data));
}

std::vector<float> Engine::embed(const Encoder& encoder, const std::vector<Text>& texts, View mean,
                                 const char* label) {
  const int64_t n = std::ssize(texts);
  std::vector<float> out(n * width());
  Progress progress(label, n, "texts");
  for (int64_t first = 0, count; first < n; first += count) {
    count = std::min<int64_t>(256, n - first);
    embed_texts(encoder, texts.data() + first, count, rows_of(view(out), first, count));
    progress.add(count);
  }
  normalize(out, mean);
  return out;
}

std::string join_text(std::string_view title, std::string_view content, std::string_view pattern,
                      bool keep_empty) {
  std::string text;
  for (size_t at = 0, end; at <= pattern.size(); at = end + 2) {
    end = std::min(pattern.find(". ", at), pattern.size());
    std::string sentence;
    bool place = false, filled = false;
    for (std::string_view rest = pattern.substr(at, end - at); !rest.empty();) {
      const auto fill = [&](std::string_view name, std::string_view value) {
        if (!rest.starts_with(name)) return false;
        rest.remove_prefix(name.size());
        place = true, filled |= !value.empty();
        sentence += value;
        return true;
      };
      if (fill("{title}", title) || fill("{content}", content)) continue;
      sentence += rest[0];
      rest.remove_prefix(1);
    }
    if (keep_empty || !place || filled) text += (text.empty() ? "" : ". ") + sentence;
  }
  return text;
}

int32_t Corpus::add(const Tokenizer& tokenizer, int64_t length, const std::string& text) {
  std::vector<int32_t> ids;
  tokenizer.encode(text, ids);
  if (std::ssize(ids) > length) ids.resize(length);
  if (ids.empty()) ids.push_back(0);
  const uint64_t hash = hash_bytes(ids.data(), ids.size() * sizeof(int32_t));
  for (auto [at, end] = by_hash_.equal_range(hash); at != end; ++at) {
    const Text t = this->text(at->second);
    if (std::equal(ids.begin(), ids.end(), t.tokens, t.tokens + t.count)) return at->second;
  }
  const auto number = static_cast<int32_t>(size());
  by_hash_.emplace(hash, number);
  tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  offsets_.push_back(std::ssize(tokens_));
  return number;
}

TextCache::TextCache(Engine& engine, const Corpus& corpus, int64_t limit)
    : last(corpus.size() * engine.width()), mean(last.size()) {
  const int64_t row = key_value_bytes(*engine.model, engine.ops.activation);
  for (int64_t i = 0; i < corpus.size(); ++i) texts.push_back(corpus.text(i));
  Progress progress("text pass", corpus.tokens(), "tokens");
  for (int64_t first = 0, count; first < corpus.size(); first += count) {
    count = texts_per_pass(texts.data(), first, corpus.size(), engine.rows);
    const int64_t tokens =
        texts[first + count - 1].tokens + texts[first + count - 1].count - texts[first].tokens;
    const int64_t size = tokens * row * engine.model->layers;
    const size_t mark = engine.arena.used();
    engine.stop_if_asked();
    text_pass(engine.encoder(), texts.data() + first, count,
              {engine.arena.array<std::byte>(size), tokens * row, tokens},
              rows_of(engine.view(last), first, count), rows_of(engine.view(mean), first, count));
    if (bytes + size <= limit) {
      bytes += size, kept += count;
    } else {
      engine.arena.release(mark);
      for (int64_t i = first; i < first + count; ++i) texts[i].kv = {};
    }
    progress.add(tokens);
  }
}

}  // namespace quest
