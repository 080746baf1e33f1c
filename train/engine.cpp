#include "train/engine.h"

#include <algorithm>
#include <csignal>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "model/fetch.h"
#include "model/plan.h"

namespace quest {

void hold_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
}

bool interrupted() {
  sigset_t waiting;
  sigpending(&waiting);
  return sigismember(&waiting, SIGINT) || sigismember(&waiting, SIGTERM);
}

static std::string device_of(const Settings& s) {
  if (s.precision == "bf16") return s.device;
  if (s.device == "gpu")
    fail(Exit::usage, "--precision %s with --device gpu: the GPU multiplies in bf16; leave one of them out",
         s.precision.c_str());
  return "cpu";
}

Engine::Engine(const Settings& s, size_t bytes, std::unique_ptr<Model> given)
    : model(given ? std::move(given)
                  : load_model(s.model.empty() ? default_model_path() : s.model, s.quant == "nf4")),
      tokenizer(model->path.empty() ? nullptr : new Tokenizer(read_vocabulary(model->path))),
      threads(s.threads),
      device(open_device(device_of(s).c_str())),
      memory(bytes    ? bytes
             : device ? free_memory(*device) / 100 * 95
                      : available_memory() / 10 * 8),
      loading(s.quant == "nf4" ? std::max(model->mlp, model->q_width()) * model->width * 4 : 0),
      host_ops(cpu_ops(s.kernels.empty() ? nullptr : s.kernels.c_str(), s.activation())),
      context{&ops, &threads, nullptr, &flops, &again},
      host{&host_ops, &threads, nullptr},
      rows(s.rows) {
  ops = device ? *gpu_ops(s.activation()) : host_ops;
  if (tokenizer && tokenizer->size() > model->vocabulary)
    fail(Exit::input,
         "%s: expected a tokeniser of at most %ld tokens, as many as the embedding has rows, found %ld; pass "
         "another model",
         model->path.c_str(), model->vocabulary, tokenizer->size());
  ops.int8 = s.precision == "int8";
  require_fitting(s);
  if (!device) return;
  arena = arena_on(*device, memory);
  bookkeeping = std::make_unique<Arena>(available_memory() / 2);  // addresses: what is written is memory
  context.arena = arena.get(), context.host = bookkeeping.get(), context.device = device.get();
  bring_weights(context, *model);
  ops.path = kernels_of(*device);
  each_weight(*model, [&](const View& w, int64_t layer, auto, auto, int64_t, int64_t) {
    const Type type = ops.activation;  // a product of no rows: only of formats that the GPU knows
    if (layer >= 0 && w.rows > 1)
      ops.matmul(context, {nullptr, type, 0, w.cols, w.cols}, w, {nullptr, type, 0, w.rows, w.rows},
                 Into::set);
  });
  fprintf(stderr, "device: %s; %s given, of which weights take %s\n", describe(*device),
          human_bytes(memory).c_str(), human_bytes(arena->used()).c_str());
}

Taken Engine::taken(size_t beside) const {
  if (device) return {0, arena->used(), 0};
  return {program_bytes, heap_in_use(), std::max(beside, loading)};
}

size_t Engine::room(size_t beside) const { return memory - std::min(memory, taken(beside).all()); }

size_t Engine::host_room() const { return device ? available_memory() / 10 * 8 : room(0); }

void Engine::reserve(size_t bytes) {
  malloc_trim(0);      // what loading freed
  if (device) return;  // it has all that there is
  arena = std::make_unique<Arena>(std::max<size_t>(bytes, 1));
  context.arena = arena.get();
}

void Engine::require_fitting(const Settings& s) const {
  std::vector<int32_t> start(1);
  if (tokenizer) start.clear(), tokenizer->encode(s.init, start);
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
  return {*model, context, s.where(), s.pooled(), prompt, rows};
}

View Engine::view(const std::vector<float>& data) const {
  return {const_cast<float*>(data.data()), Type::f32, std::ssize(data) / width(), width(), width()};
}

void Engine::normalize(std::vector<float>& data, View mean) {
  host_ops.normalize(host, view(data), mean.rows ? mean : View{}, view(data));
}

std::vector<float> Engine::mean_of(const std::vector<float>& data) const {
  std::vector<float> mean(width());
  const Group all{{}, 0, 0, 0, static_cast<int32_t>(std::ssize(data) / width())};
  host_ops.pool(host, &all, 1, view(data), view(mean));
  return mean;
}

std::vector<float> Engine::embed(const Encoder& encoder, const std::vector<Text>& texts,
                                 const std::vector<int32_t>& numbers, const char* label) {
  std::vector<float> out(numbers.size() * width());
  Progress progress(label, numbers.size(), "texts");
  if (numbers.empty()) return out;
  int64_t first = 0;
  std::vector<Text> part;
  Scope scope(context);
  Encoder brought = encoder;
  brought.prompt = bring(context, encoder.prompt, "prompt/rows");
  for (const int32_t& t : numbers) {
    part.push_back(texts[t]);
    const int64_t n = std::ssize(part);
    if (n < part_texts && &t != &numbers.back()) continue;
    Scope part_scope(context);
    const View to = rows_of(view(out), first, n), e = bring(context, to, "texts/embeddings");
    embed_texts(brought, part.data(), n, e);
    fetch(context, e, to);
    part.clear();
    first += n;
    progress.add(n);
  }
  return out;
}

std::string join_text(std::string_view title, std::string_view content, std::string_view pattern,
                      bool keep_empty) {
  const std::pair<std::string_view, std::string_view> places[] = {{"{title}", title}, {"{content}", content}};
  std::string text;
  for (size_t at = 0, end; at <= pattern.size(); at = end + 2) {
    end = std::min(pattern.find(". ", at), pattern.size());
    std::string sentence;
    bool place = false, filled = false;
    for (std::string_view rest = pattern.substr(at, end - at); !rest.empty();) {
      std::string_view name = rest.substr(0, 1), value = name;  // a byte stands for itself
      for (const auto& [known, by] : places)
        if (rest.starts_with(known)) name = known, value = by, place = true, filled |= !by.empty();
      sentence += value;
      rest.remove_prefix(name.size());
    }
    if (keep_empty || !place || filled) text += (text.empty() ? "" : ". ") + sentence;
  }
  return text;
}

int32_t Corpus::add(const Tokenizer& tokenizer, const Settings& s, std::string_view title,
                    std::string_view content, const std::string& pattern) {
  std::vector<int32_t> ids;
  tokenizer.encode(join_text(title, content, pattern, s.keep_empty), ids);
  if (std::ssize(ids) > s.length) ids.resize(s.length);
  if (ids.empty()) ids.push_back(0);
  const auto [at, is_new] = numbers.try_emplace(ids, texts.size());
  if (is_new) texts.push_back({at->first.data(), int32_t(ids.size()), {}}), tokens += ids.size();
  return at->second;
}

TextCache::TextCache(Engine& engine, const Corpus& corpus, int64_t limit)
    : texts(corpus.texts), last(texts.size() * engine.width()), mean(last.size()) {
  Progress progress("text pass", corpus.tokens, "tokens");
  for (int64_t first = 0, count; first < std::ssize(texts); first += count) {
    count = texts_per_pass(texts.data(), first, texts.size(), engine.rows);
    int64_t tokens = 0;
    for (int64_t i = first; i < first + count; ++i) tokens += texts[i].count;
    const size_t mark = engine.arena->used();
    if (interrupted()) throw Stopped{};
    const int64_t size =
        text_pass_into(engine.encoder(), texts.data() + first, count, tokens,
                       rows_of(engine.view(last), first, count), rows_of(engine.view(mean), first, count));
    if (bytes + size <= limit) {
      bytes += size, kept += count;
    } else {
      engine.arena->release(mark);
      for (int64_t i = first; i < first + count; ++i) texts[i].kv = {};
    }
    progress.add(tokens);
  }
}

}  // namespace quest
