// quest bench: how fast each part of the job runs here, beside the most that this machine could do.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <tuple>

#include "index/hnsw.h"
#include "kernels/base/json.h"
#include "kernels/base/progress.h"
#include "kernels/base/random.h"
#include "kernels/tile.h"
#include "sampling/import.h"
#include "sampling/sampler.h"
#include "tools/commands.h"
#include "tools/run.h"
#include "train/job.h"
#include "train/plan.h"

namespace quest {

namespace {

struct BenchOptions {
  Settings s;
  std::string source;                  // of the dataset, for import
  std::string shape, weights = "NF4";  // of a model of random weights
  int64_t rounds = 5, texts = 256, memory = 0;
  bool json = false;
};

// A context that takes the time of every op; on a GPU wait() is for its end.
struct Stopwatch : Context {
  static constexpr const char* names[] = {"matmul",     "matmul, backward",
                                          "attention",  "attention, backward",
                                          "norm",       "norm, backward",
                                          "rope",       "rope, backward",
                                          "swiglu",     "swiglu, backward",
                                          "similarity", "similarity, backward",
                                          "add",        "embed",
                                          "gather",     "pool"};
  static constexpr std::tuple ops{&Ops::matmul,     &Ops::matmul_backward,
                                  &Ops::attention,  &Ops::attention_backward,
                                  &Ops::rmsnorm,    &Ops::rmsnorm_backward,
                                  &Ops::rope,       &Ops::rope_backward,
                                  &Ops::swiglu,     &Ops::swiglu_backward,
                                  &Ops::similarity, &Ops::similarity_backward,
                                  &Ops::add,        &Ops::embed,
                                  &Ops::gather,     &Ops::pool};
  static constexpr size_t count = std::size(names);

  Stopwatch(const Context& c, std::function<void()> w)
      : Context(c), real(*c.ops), wait(std::move(w)), timed(real) {
    Context::ops = &timed;
    replace(std::make_index_sequence<count>());
  }
  Stopwatch(Stopwatch&&) = delete;

  const Ops real;
  const std::function<void()> wait;
  Ops timed;
  mutable double seconds[count] = {};
  // "matmul 81 %, attention 9 %, ...", of so many seconds
  std::string shares(double whole) const {
    std::vector<std::pair<double, const char*>> all;
    for (size_t i = 0; i < count; ++i) all.push_back({seconds[i] / whole, names[i]});
    std::ranges::sort(all, std::greater());
    std::string text;
    double rest = 1;
    for (const auto& [share, name] : all)
      if (share > 0.005) text += format("%s %.0f %%, ", name, 100 * share), rest -= share;
    return text + format("other %.0f %%", 100 * rest);
  }

 private:
  template <size_t i, class... A>
  static void run(const Context& c, A... a) {
    const auto& watch = static_cast<const Stopwatch&>(c);
    const double start = now_seconds();
    (watch.real.*std::get<i>(ops))(c, a...);
    watch.wait();
    watch.seconds[i] += now_seconds() - start;
  }
  template <size_t i, class... A>
  void replace_one(void (*Ops::*op)(const Context&, A...)) {
    timed.*op = run<i, A...>;
  }
  template <size_t... i>
  void replace(std::index_sequence<i...>) {
    (replace_one<i>(std::get<i>(ops)), ...);
  }
};

// What a round did: an amount of something, and FLOP of linear layers.
struct Done {
  double amount, flop = 0;
};

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : o(options), data(open_job_data(o.s)), engine(o.s, o.memory, model_of(o)) {
    // Texts of the dataset, and a stream of their tokens that can be cut into texts of equal length. Without
    // a tokeniser: of random tokens.
    Corpus corpus;
    const Texts& all = data.train.texts;
    for (int64_t i = 0; engine.tokenizer && i < all.size() && std::ssize(corpus.texts) < o.texts; ++i)
      corpus.add(*engine.tokenizer, o.s, all.title(i), all.content(i), o.s.query_text);
    for (const Text& t : corpus.texts) texts.emplace_back(t.tokens, t.tokens + t.count);
    for (int64_t i = 0; !engine.tokenizer && i < o.texts; ++i) {
      texts.emplace_back(o.s.length);
      for (int32_t& id : texts[i]) id = random_bits(1, i, &id - texts[i].data()) % engine.model->vocabulary;
    }
    if (texts.empty())
      fail(Exit::input, "%s: expected training queries to measure with, found none; give another --data",
           data.name.c_str());
    for (size_t i = 0; std::ssize(stream) < 2 * o.s.batch * o.s.length; ++i)
      stream.insert(stream.end(), texts[i % texts.size()].begin(), texts[i % texts.size()].end());
    const int64_t vectors = (searched + queries) * engine.width() * 4;
    engine.reserve(engine.room(vectors + Hnsw::bytes(searched, engine.width(), engine.threads.count())));
    std::vector<int32_t> ids;
    for (int64_t k = 1; k <= o.s.prompt_rows; ++k) ids.push_back(k % engine.model->vocabulary);
    prompt = new_acc(engine.context, o.s.prompt_rows, engine.width(), "prompt/rows");
    engine.ops.embed(engine.context, engine.model->embedding, ids.data(), prompt);
    json.object().field("model", engine.model->name).field("dataset", data.name);
    json.field("threads", engine.threads.count()).field("kernels", engine.ops.path);
    if (engine.device) json.field("device", describe(*engine.device));
    json.field("precision", o.s.precision).field("rounds", o.rounds).key("results").array();
    say(format("%s; %s; %d threads, kernels %s, %s; medians of %ld rounds", engine.model->name.c_str(),
               data.name.c_str(), engine.threads.count(), engine.ops.path, o.s.precision.c_str(), o.rounds));
  }

  using Parts = std::vector<std::pair<std::string, void (Bench::*)()>>;
  static const Parts& parts() {
    static const Parts all = {{"ceilings", &Bench::ceilings},
                              {"ops", &Bench::ops},
                              {"encode", &Bench::encode},
                              {"train-prefix", &Bench::train<Placement::prefix>},
                              {"train-suffix", &Bench::train<Placement::suffix>},
                              {"sample", &Bench::sample},
                              {"import", &Bench::import},
                              {"search", &Bench::search}};
    return all;
  }
  void run(const std::vector<std::string>& wanted) {
    for (const auto& [name, part] : parts())
      if ((wanted.empty() && !(engine.ops.int8 && name.starts_with("train"))) ||
          std::ranges::count(wanted, name))
        (this->*part)();
    if (results) json.end();
    if (o.json) printf("%s\n", json.end().end().text().c_str());
  }

 private:
  // The most that registers and memory give.
  void ceilings() {
    if (engine.device) return ceilings_of(*engine.device);
    const KernelPath& k = *engine.ops.kernel_path;
    measure("multiply-add, fp32", "GFLOP/s", 1e-9, [&] { return Done{multiply(k.peak, 2)}; });
    if (k.peak_pairs)
      measure("multiply-add, bf16", "GFLOP/s", 1e-9, [&] { return Done{multiply(k.peak_pairs, 4)}; });
    if (k.peak_quads)
      measure("multiply-add, int8", "GOP/s", 1e-9, [&] { return Done{multiply(k.peak_quads, 8)}; });
    // 256 MiB, written once: pages that nobody wrote are all the same one.
    const int64_t words = std::min<int64_t>(1 << 25, engine.arena->room() / 16);
    const Scratch scope(*engine.arena);
    uint64_t* memory = engine.arena->array<uint64_t>(words, "bench/memory");
    std::fill_n(memory, words, 1);
    measure("memory, read", "GB/s", 1e-9, [&] { return Done{read(memory, words)}; });
  }

  void ceilings_of(Device& device) {
    measure("multiply-add, bf16, tensor cores", "GFLOP/s", 1e-9,
            [&] { return Done{multiply_adds(device, 20000)}; });
    const size_t bytes = std::min<size_t>(1 << 30, engine.arena->room() / 2);
    const Scratch scope(*engine.arena);
    std::byte* memory = engine.arena->array<std::byte>(bytes, "bench/memory");
    measure("memory, read", "GB/s", 1e-9, [&] {
      read_memory(device, memory, bytes);
      return Done{10.0 * bytes};
    });
  }

  // The linear layers, once each type and shape, on --rows rows; on a GPU beside cuBLAS.
  void ops() {
    std::set<std::tuple<Type, int64_t, int64_t>> known;
    const std::shared_ptr<Cublas> cublas = engine.device ? open_cublas(*engine.device) : nullptr;
    if (engine.device && !cublas) fprintf(stderr, "bench: found no libcublas.so to compare with\n");
    each_weight(*engine.model, [&](const View& w, int64_t layer, const char* name, auto, int64_t, int64_t) {
      if (layer < 0 || w.rows == 1 || !known.insert({w.type, w.rows, w.cols}).second) return;
      for (const bool forward : {true, false}) {
        if (engine.ops.int8 && !forward) continue;
        const Scratch scope(*engine.arena);
        const Context& c = engine.context;
        const Type type = forward ? engine.ops.activation : engine.ops.accumulator;
        const int64_t inner = forward ? w.cols : w.rows, outputs = forward ? w.rows : w.cols;
        std::vector<uint32_t> numbers;
        const View x = filled(numbers, type, o.s.rows, inner);
        const View y = (forward ? new_act : new_acc)(c, o.s.rows, outputs, "bench/y");
        const double flop = 2.0 * o.s.rows * w.rows * w.cols;
        const char* direction = forward ? "forward" : "dX";
        measure(format("%s, %s %ld x %ld, %s", name, w.type == Type::nf4 ? "NF4" : format_of(w.type).name,
                       w.rows, w.cols, direction),
                "GFLOP/s", 1e-9, [&] {
                  (forward ? engine.ops.matmul : engine.ops.matmul_backward)(c, x, w, y, Into::set);
                  return Done{flop, flop};
                });
        if (!cublas) continue;
        std::vector<uint32_t> others, weights;
        const View x16 = filled(others, Type::bf16, o.s.rows, inner),
                   w16 = filled(weights, Type::bf16, w.rows, w.cols);
        const View y16 = new_act(c, o.s.rows, outputs, "bench/y");
        measure(format("cuBLAS, BF16 %ld x %ld, %s", w.rows, w.cols, direction), "GFLOP/s", 1e-9, [&] {
          dense_product(*cublas, x16, w16, y16, forward);
          return Done{flop, flop};
        });
      }
    });
  }
  // A matrix of random numbers of 0.008 to 0.12, where the ops see it; numbers: the host's.
  View filled(std::vector<uint32_t>& numbers, Type type, int64_t rows, int64_t cols) {
    numbers.resize((rows * row_bytes(type, cols) + 3) / 4);
    for (size_t i = 0; i < numbers.size(); ++i) {
      const uint32_t bits = random_bits(1, 0, i);
      numbers[i] = type == Type::bf16 ? (bits & 0x81ff81ff) | 0x3c003c00 : (bits & 0x81ffffff) | 0x3c000000;
    }
    return bring(engine.context, View{numbers.data(), type, rows, cols, cols}, "bench/matrix");
  }

  // Texts as they are, behind a shared prompt.
  void encode() {
    const Scratch scope(*engine.arena);
    std::vector<Text> list;
    double tokens = 0;
    for (const auto& t : texts) list.push_back({t.data(), int32_t(t.size()), {}}), tokens += t.size();
    const View e = new_acc(engine.context, std::ssize(list), engine.width(), "bench/embeddings");
    measure_steps("encode, prefix", "tokens/s", tokens,
                  format("%zu texts, %.1f tokens each", list.size(), tokens / list.size()),
                  [&](const Context& c) {
                    embed_texts(encoder(c, Placement::prefix), list.data(), std::ssize(list), e);
                  });
  }

  // Steps of --batch pairs of texts of exactly --length tokens; those of the suffix are in the text cache.
  template <Placement placement>
  void train() {
    const Context& shared = engine.context;
    const Scope scope(shared);
    const int64_t B = o.s.batch, T = 2 * B, length = o.s.length;
    const bool suffix = placement == Placement::suffix;
    const BatchArrays a(shared.bookkeeping(), B, false);
    for (int64_t t = 0; t < T; ++t) a.texts[t] = {stream.data() + t * length, int32_t(length), {}};
    for (int32_t i = 0; i < B; ++i) a.queries[i] = i, a.labels[i] = B + i, a.pairs[i] = {i, i};
    std::fill_n(a.hidden, B * B, uint8_t{0});
    for (int64_t first = 0, n; suffix && first < T; first += n) {
      n = texts_per_pass(a.texts, first, T, o.s.rows);
      text_pass_into(encoder(shared, placement), a.texts + first, n, n * length, {}, {});
    }
    View gradient = new_acc(shared, o.s.prompt_rows, engine.width(), "prompt/gradient");
    View loss = new_acc(shared, 1, 1, "loss/loss");
    const StepShape shape{placement, Pooling::last, o.s.prompt_rows, B,     length,
                          o.s.rows,  false,         false,           suffix};
    const auto [policy, fits] = choose_policy(*engine.model, engine.ops, engine.threads.count(), shape,
                                              engine.arena->room(), o.s.micro, o.s.spacing);
    if (!fits)
      fail(Exit::machine,
           "memory: %ld pairs of texts of %ld tokens do not fit into %s; give more --memory or a "
           "smaller --batch",
           B, length, human_bytes(engine.memory).c_str());
    measure_steps(suffix ? "train, suffix, cached texts" : "train, prefix", "pairs/s", B,
                  describe(policy, T, engine.model->layers), [&](const Context& c) {
                    loss_and_gradient(encoder(c, placement), a.batch(T, B, B, B), policy, loss, gradient);
                  });
  }

  void sample() {
    const double n = data.train.labels.count();
    measure("sample", "pairs/s", 1, [&] {
      sample_pairs(data, {}, {.k = int64_t(n / 4)}, engine.threads);
      return Done{n};
    });
  }

  // Of --source; what counts is the dataset folder that is written.
  void import() {
    const std::filesystem::path folder =
        std::filesystem::temp_directory_path() / format("quest-bench-%d", getpid());
    measure("import", "MB/s", 1e-6, [&] {
      std::filesystem::remove_all(folder);
      import_dataset(o.source.empty() ? default_dataset_source() : o.source, folder,
                     {.name = "bench", .progress = false});
      Done done{0};
      for (const auto& file : std::filesystem::directory_iterator(folder)) done.amount += file.file_size();
      return done;
    });
    std::filesystem::remove_all(folder);
  }

  // Random vectors.
  void search() {
    const int64_t d = engine.width(), n = searched;
    std::vector<float> vectors((n + queries) * d);
    for (size_t i = 0; i < vectors.size(); ++i) vectors[i] = float(random_uniform(1, 0, i)) - 0.5f;
    engine.normalize(vectors, {});
    const Vectors q{vectors.data(), queries, d}, l{q.row(queries), n, d};
    measure(format("search, exact, %ld random vectors", n), "queries/s", 1, [&] {
      exact_top_k(q, l, 100, engine.threads);
      return Done{double(queries)};
    });
    const Hnsw index(l);
    measure(format("search, HNSW, %ld random vectors", n), "queries/s", 1, [&] {
      index.search(q, 100, engine.threads);
      return Done{double(queries)};
    });
  }

  static std::unique_ptr<Model> model_of(const BenchOptions& o) {
    if (o.shape.empty()) return nullptr;
    return random_model(o.shape, o.weights == "NF4" ? Type::nf4 : *type_named(o.weights));
  }

  Encoder encoder(const Context& c, Placement placement) {
    return {*engine.model, c, placement, Pooling::last, prompt, o.s.rows};
  }

  // All threads at once: so many FLOP of nothing but multiply-adds.
  double multiply(KernelPath::Tile peak, double flop_a_word) {
    const int64_t steps = 2000000, threads = engine.threads.count();  // some hundredths of a second
    alignas(64) const float operands[64] = {};
    engine.threads.each(threads, [&](int64_t, int) {
      alignas(64) float sums[512];
      peak(operands, operands, sums, steps);
    });
    const KernelPath& k = *engine.ops.kernel_path;
    return flop_a_word * k.rows * k.columns * steps * threads;
  }
  double ceiling() {
    const KernelPath& k = *engine.ops.kernel_path;
    const bool quads = k.peak_quads && engine.ops.int8;
    const bool pairs = k.peak_pairs && engine.ops.activation == Type::bf16;
    const double start = now_seconds(), flop = engine.device ? multiply_adds(*engine.device, 20000)
                                               : quads       ? multiply(k.peak_quads, 8)
                                               : pairs       ? multiply(k.peak_pairs, 4)
                                                             : multiply(k.peak, 2);
    return flop / (now_seconds() - start);
  }
  // Bytes read, by all threads at once.
  double read(const uint64_t* memory, int64_t words) {
    const int64_t threads = engine.threads.count(), part = words / threads;
    std::vector<uint64_t> sums(threads * 8);
    engine.threads.each(threads, [&](int64_t t, int) {
      uint64_t sum = 0;
      for (int64_t i = t * part; i < (t + 1) * part; ++i) sum += memory[i];
      sums[t * 8] = sum;
    });
    return 8.0 * sums[0] * threads;  // words of 1
  }

  void wait() {
    std::vector<float> row(engine.width());
    if (engine.device) fetch(engine.context, rows_of(prompt, 0, 1), engine.view(row));
  }

  // f(context) does `amount` of the unit, and counts its FLOP. The clock costs an op less than a microsecond;
  // on a GPU, where it waits for every op, they are timed apart.
  void measure_steps(const std::string& name, const char* unit, double amount, const std::string& how,
                     auto&& f) {
    const Stopwatch watch(engine.context, [this] { wait(); });
    double all = 0;
    const auto timed = [&](const Context& c) {
      const double before = engine.flops, start = now_seconds();
      f(c);
      all += now_seconds() - start;
      return Done{amount, engine.flops - before};
    };
    measure(name, unit, 1,
            [&] { return timed(engine.device ? engine.context : static_cast<const Context&>(watch)); });
    if (engine.device) all = 0, timed(watch);
    const std::string shares = watch.shares(all);
    say("    " + how + "\n    " + shares);
    json.field("how", how).field("ops", shares);
  }

  // The median rate, in units of 1 / scale, of rounds of f(), each about a twentieth of a second or one f(),
  // after some that do not count. Where f does FLOP the ceiling is measured before each round. Leaves the
  // result's object open.
  void measure(const std::string& name, const char* unit, double scale, auto&& f) {
    std::vector<double> rates, shares;
    int64_t repeats = 1;
    bool warm = false, counts = true;
    while (std::ssize(rates) < o.rounds) {
      const double top = counts ? ceiling() : 0, start = now_seconds();
      Done sum{0};
      for (int64_t i = 0; i < repeats; ++i) {
        const Done done = f();
        sum.amount += done.amount, sum.flop += done.flop;
      }
      wait();
      const double seconds = now_seconds() - start;
      counts = sum.flop > 0;
      if (!std::exchange(warm, true) || seconds < 0.04) {
        repeats = std::ceil(repeats * std::min(0.05 / seconds, 100.0));
        continue;
      }
      rates.push_back(sum.amount / seconds * scale);
      shares.push_back(counts ? sum.flop / seconds / top : 0);
    }
    std::ranges::sort(rates), std::ranges::sort(shares);
    const double middle = rates[(rates.size() - 1) / 2], share = shares[(shares.size() - 1) / 2];
    if (results++) json.end();
    json.object().field("name", name).field("unit", unit).field("median", middle);
    json.field("least", rates.front()).field("most", rates.back());
    if (share > 0) json.field("of_ceiling", share);
    say(format("%-36s %10.5g %-9s %10.5g to %-10.5g", name.c_str(), middle, unit, rates.front(),
               rates.back()) +
        (share > 0 ? format("%3.0f %% of the ceiling", 100 * share) : ""));
  }

  void say(const std::string& line) {
    if (!o.json) printf("%s\n", line.c_str()), fflush(stdout);
  }

  static constexpr int64_t queries = 1000;
  const BenchOptions& o;
  const Dataset data;
  const int64_t searched = std::min<int64_t>(data.labels.size(), 20000);
  Engine engine;
  std::vector<std::vector<int32_t>> texts;  // tokens
  std::vector<int32_t> stream;
  View prompt;
  JsonWriter json;
  int64_t results = 0;
};

}  // namespace

std::vector<Command> bench_commands() {
  const auto o = std::make_shared<BenchOptions>();
  o->s.prompt_rows = 16, o->s.device = "cpu";
  std::vector<Option> options = job_options(
      o->s, "model quant data length prompt-rows batch kernels device threads rows micro spacing");
  options.insert(
      options.begin(),
      {encoding_precision(o->s),
       {"rounds", 0, &o->rounds, "N", "rounds of each measurement", 1, 1000},
       {"texts", 0, &o->texts, "N", "texts to encode, the dataset's first", 1, 1000000},
       {"shape", 0, &o->shape, "NAME", "a model of random weights, such as llama-7b, instead of --model"},
       {"weights", 0, &o->weights, "NF4|Q4_0|Q4_1|Q8_0|Q4_K|Q6_K", "of --shape"},
       {"source", 0, &o->source, "PATH", "what to import; without it the default dataset's raw files"},
       memory_option(o->memory),
       {"json", 0, &o->json, "", "print JSON"}});
  return {
      {.name = "bench",
       .summary = "how fast each part of the job runs here, beside this machine's ceilings",
       .arguments = "[PART...]",
       .examples = "  quest bench\n  quest bench ops --rows 512 --kernels avx2\n  quest bench encode "
                   "train-prefix --json\n",
       .options = std::move(options),
       .run = [o](const std::vector<std::string>& parts) {
         for (const std::string& name : parts) {
           if (o->s.precision == "int8" && name.starts_with("train"))
             fail(Exit::usage,
                  "--precision int8 with %s: nothing is trained in 8 bits; leave one of them out",
                  name.c_str());
           if (std::ranges::count(Bench::parts(), name, [](auto& part) { return part.first; }) == 0)
             fail(Exit::usage,
                  "quest bench: expected ceilings, ops, encode, train-prefix, train-suffix, sample, import "
                  "or search, found '%s'",
                  name.c_str());
         }
         Bench(*o).run(parts);
         return 0;
       }}};
}

}  // namespace quest
