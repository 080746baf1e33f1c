// parity FOLDER: the engine's side of tests/peers/parity.py, which documents the files read and written.
#include <simdjson.h>

#include <cstdio>
#include <vector>

#include "kernels/base/arena.h"
#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/threads.h"
#include "train/step.h"

using namespace quest;

namespace {

template <class T>
std::vector<T> read(const std::string& folder, const char* name) {
  const MappedFile file(folder + "/" + name + ".bin");
  const auto a = file.array<T>();
  return {a.begin(), a.end()};
}

template <class T>
void write(const std::string& folder, const char* name, const std::vector<T>& data) {
  write_file(folder + "/" + name + ".bin",
             {reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T)});
}

View view(std::vector<float>& v, int64_t cols) {
  return {v.data(), Type::f32, static_cast<int64_t>(v.size()) / cols, cols, cols};
}

int run(const std::string& folder) {
  simdjson::dom::parser parser;
  const std::string text = read_file(folder + "/request.json");
  const simdjson::dom::element r = parser.parse(text);
  const auto integer = [&](const char* key) { return int64_t{r[key]}; };
  const auto word = [&](const char* key) { return std::string(std::string_view(r[key])); };

  const auto model = load_model(word("model"));
  Threads threads(0);
  Arena arena(available_memory());
  const Ops ops = cpu_ops(nullptr, word("precision") == "f32" ? Type::f32 : Type::bf16);
  const Context context{&ops, &threads, &arena};
  const int64_t T = integer("texts"), d = integer("width"), steps = integer("steps");
  const auto offsets = read<int32_t>(folder, "offsets"), tokens = read<int32_t>(folder, "tokens");
  auto prompt = read<float>(folder, "prompt");
  std::vector<Text> texts;
  for (int64_t t = 0; t < T; ++t) {
    const auto at = static_cast<size_t>(t);
    texts.push_back({tokens.data() + offsets[at], offsets[at + 1] - offsets[at], {}});
  }
  const std::string placement = word("placement");
  const Encoder encoder{*model, context,
                        placement == "prefix"   ? Placement::prefix
                        : placement == "suffix" ? Placement::suffix
                                                : Placement::none,
                        word("pooling") == "mean" ? Pooling::mean : Pooling::last, view(prompt, d)};
  std::vector<float> embeddings(static_cast<size_t>(T * d));
  embed_texts(encoder, texts.data(), T, view(embeddings, d));
  write(folder, "embeddings", embeddings);
  if (steps == 0) return 0;

  const auto queries = read<int32_t>(folder, "query_texts"), labels = read<int32_t>(folder, "label_texts");
  const auto pairs = read<Pair>(folder, "pairs");
  const auto hidden = read<uint8_t>(folder, "hidden"), hidden_queries = read<uint8_t>(folder, "hidden_queries");
  StepBatch b;
  b.texts = texts, b.queries = queries, b.labels = labels, b.pairs = pairs;
  b.hidden = hidden.data(), b.hidden_queries = bool{r["symmetric"]} ? hidden_queries.data() : nullptr;
  b.temperature = double{r["temperature"]};
  std::vector<float> gradient(prompt.size()), m(prompt.size()), v(prompt.size()), prompts;
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) {
    float loss = 0, norm = 0;
    const View norm_view{&norm, Type::f32, 1, 1, 1};
    loss_and_gradient(encoder, b, {32, 0, 1}, {&loss, Type::f32, 1, 1, 1}, view(gradient, d));
    if (step == 1) write(folder, "gradient", gradient);
    losses.push_back(double{loss});
    ops.norm(context, view(gradient, d), norm_view);
    ops.adamw(context, view(prompt, d), view(gradient, d), view(m, d), view(v, d), norm_view, double{r["clip"]},
              {double{r["rate"]}, double{r["beta1"]}, double{r["beta2"]}, double{r["epsilon"]}, double{r["decay"]},
               step});
    prompts.insert(prompts.end(), prompt.begin(), prompt.end());
  }
  write(folder, "losses", losses);
  write(folder, "prompts", prompts);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return fprintf(stderr, "usage: parity FOLDER\n"), 2;
  return run(argv[1]);
} catch (const Error& e) {
  fprintf(stderr, "parity: %s\n", e.what());
  return static_cast<int>(e.code);
}
