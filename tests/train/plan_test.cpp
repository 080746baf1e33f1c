// The plan against the run: a step takes to the byte what its rehearsal said, writes all of it and nothing
// beside it, and gives the bits of a step that has all the memory it wants.
#include "train/plan.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>

#include "index/exact.h"
#include "kernels/matmul.h"
#include "tests/tiny_llama.h"

static std::atomic<int64_t> taken_from_heap = 0;  // by operator new, of the whole test program

[[gnu::noinline]] void* operator new(size_t bytes) {
  ++taken_from_heap;
  if (void* p = malloc(bytes ? bytes : 1)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { free(p); }

namespace quest {
namespace {

// Fills what is allocated with NaN and the gap behind it with canaries; looks at both when it is freed.
struct Canaries : Witness {
  struct Live {
    const char* name;
    std::byte* at;
    size_t offset, bytes, room;
  };
  std::vector<Live> live;
  int checked = 0;

  Canaries() { gap = 64; }
  void allocated(const What& what, std::byte* base, size_t offset, size_t bytes) override {
    const size_t room = (bytes + 63) / 64 * 64 + gap;
    memset(base + offset, 0xff, bytes);
    memset(base + offset + bytes, 0xc5, room - bytes);
    live.push_back({what.name, base + offset, offset, bytes, room});
  }
  void released(size_t mark) override {
    for (; !live.empty() && live.back().offset >= mark; live.pop_back()) {
      const Live& l = live.back();
      for (size_t i = l.bytes; i < l.room; ++i)
        EXPECT_EQ(l.at[i], std::byte{0xc5})
            << l.name << ": written " << i - l.bytes << " bytes behind its end";
      // These are as large as a tile, not as the matrix.
      const std::string name = l.name;
      const bool tile =
          name == "scratch/packed rows" || name == "scratch/weight panels" || name == "scratch/sums";
      EXPECT_TRUE(tile || l.bytes == 0 || l.at[l.bytes - 1] != std::byte{0xff})
          << name << ": its end is not used";
      ++checked;
    }
  }
};

struct Config {
  StepShape shape;
  Policy policy;
  Type activation = Type::bf16, weights = Type::q4_1;
  int64_t layers = 2;
  int threads = 1;

  explicit Config(Random& r) {
    const auto from = [&](int64_t least, int64_t most) { return least + r.below(most - least + 1); };
    shape.placement = from(0, 1) ? Placement::prefix : Placement::suffix;
    shape.pooling = from(0, 1) ? Pooling::last : Pooling::mean;
    shape.symmetric = from(0, 1), shape.cached = from(0, 1);
    shape.prompt_rows = from(1, 5), shape.pairs = from(2, 6), shape.length = from(1, 12),
    shape.rows = from(1, 40);
    layers = from(2, 7), threads = static_cast<int>(from(1, 3));
    policy = {from(1, 2 * shape.pairs + 1), from(0, 4), from(1, layers + 1)};
    activation = from(0, 2) ? Type::bf16 : Type::f32;
    weights = std::array{Type::q4_1, Type::q8_0, Type::f32, Type::nf4}[from(0, 3)];
  }
  std::string name() const {
    return format(
        "%s %s%s, %ld pairs of %ld tokens, prompt %ld, %ld layers, %d threads%s; micro %ld held %ld spacing "
        "%ld",
        shape.placement == Placement::prefix ? "prefix" : "suffix",
        shape.pooling == Pooling::last ? "last" : "mean", shape.symmetric ? " symmetric" : "", shape.pairs,
        shape.length, shape.prompt_rows, layers, threads, shape.cached ? ", cached" : "", policy.micro,
        policy.held, policy.spacing);
  }
};

// Loss and gradient, to the bit, of the step in this arena.
std::vector<uint32_t> run_step(const Config& k, const Model& model, const Policy& policy, Arena& arena,
                               int threads, bool watched = false) {
  const Ops ops = cpu_ops(nullptr, k.activation);
  Threads pool(threads);
  const Context c{&ops, &pool, &arena};
  const int64_t B = k.shape.pairs, K = k.shape.prompt_rows, d = model.width, T = 2 * B,
                length = k.shape.length;
  std::vector<int32_t> tokens(static_cast<size_t>(T * length));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((i * i * 7 + i / 3) % 20);
  Scratch scope(arena);
  View prompt = new_acc(c, K, d, "prompt/rows"), gradient = new_acc(c, K, d, "prompt/gradient");
  View loss = new_acc(c, 1, 1, "loss/loss");
  Random r(5);
  for (int64_t i = 0; i < K * d; ++i)
    static_cast<float*>(prompt.data)[i] = static_cast<float>(0.5 * r.normal());
  const BatchArrays a(arena, B, k.shape.symmetric);
  const Encoder encoder{model, c, k.shape.placement, k.shape.pooling, prompt, k.shape.rows};
  const int64_t row = key_value_bytes(model, k.activation), text_bytes = length * row * model.layers;
  std::vector<std::byte> cache(static_cast<size_t>(T * text_bytes));
  for (int64_t t = 0; t < T; ++t) {
    a.texts[t] = {tokens.data() + t * length, static_cast<int32_t>(length), {}};
    a.numbers[t] = static_cast<int32_t>(t);
    Arena beside(size_t{1} << 26);
    const Context apart{&ops, &pool, &beside};
    const Encoder other{model, apart, k.shape.placement, k.shape.pooling, prompt, k.shape.rows};
    if (k.shape.cached && k.shape.placement == Placement::suffix)
      text_pass(other, a.texts + t, 1, {cache.data() + t * text_bytes, length * row, length}, {}, {});
  }
  for (int32_t i = 0; i < B; ++i)
    a.queries[i] = i, a.labels[i] = static_cast<int32_t>(B) + i, a.pairs[i] = {i, i};
  std::fill_n(a.hidden, B * B, uint8_t{0});
  if (a.hidden_queries) std::fill_n(a.hidden_queries, B * B, uint8_t{0});
  const int64_t before = taken_from_heap;
  loss_and_gradient(encoder, a.batch(T, B, B, B), policy, loss, gradient);
  EXPECT_TRUE(taken_from_heap == before || watched) << taken_from_heap - before << " times from the heap";
  const auto* bits = static_cast<const uint32_t*>(gradient.data);
  std::vector<uint32_t> out(bits, bits + K * d);
  out.push_back(*static_cast<const uint32_t*>(loss.data));
  EXPECT_TRUE(*static_cast<const float*>(loss.data) > 0);
  return out;
}

TEST(Plan, IsWhatAStepTakes) {
  constexpr uint64_t seed = 40;
  Random r(seed);
  for (int i = 0; i < 40; ++i) {
    const Config k(r);
    SCOPED_TRACE(format("seed %lu, config %d: %s", seed, i, k.name().c_str()));
    TinyLlama tiny(100 + i, k.weights, k.layers);
    Arena all(size_t{1} << 28);
    const auto want = run_step(k, tiny.model, {}, all, 2);

    const Plan plan =
        plan_step(tiny.model, cpu_ops(nullptr, k.activation), k.threads, k.shape, k.policy, true);
    Arena exact(plan.peak);
    EXPECT_EQ(run_step(k, tiny.model, k.policy, exact, k.threads), want);
    EXPECT_EQ(exact.peak(), plan.peak);
    EXPECT_EQ(exact.used(), 0u);
    Arena less(plan.peak - 1);
    EXPECT_THROW(run_step(k, tiny.model, k.policy, less, k.threads), Error);

    Canaries canaries;
    Arena watched(size_t{1} << 28, false, &canaries);
    EXPECT_EQ(run_step(k, tiny.model, k.policy, watched, 1, true), want);
    EXPECT_GT(canaries.checked, 50);

    // The entries say when they live, and those that live at once do not overlap.
    size_t top = 0;
    for (const PlanEntry& e : plan.entries) {
      EXPECT_LT(e.first, e.last) << e.name;
      top = std::max(top, (e.offset + e.bytes + 63) / 64 * 64);
      for (const PlanEntry& f : plan.entries)
        if (&e != &f && e.times == 1 && f.times == 1 && e.first < f.last && f.first < e.last) {
          EXPECT_TRUE(e.offset + e.bytes <= f.offset || f.offset + f.bytes <= e.offset)
              << e.name << ", " << f.name;
        }
    }
    EXPECT_EQ(top, plan.peak);
  }
}

// The kernel's own count of this process' memory that no file holds, in bytes.
int64_t anonymous_memory() {
  std::ifstream status("/proc/self/status");
  int64_t kib = -1;
  for (std::string line; std::getline(status, line);)
    if (sscanf(line.c_str(), "RssAnon: %ld kB", &kib) == 1) break;
  return kib * 1024;
}

TEST(Plan, AThousandStepsTakeNoMoreThanTheSecond) {
  Random r(40);
  Config k(r);
  k.shape = {.placement = Placement::prefix, .pairs = 4, .length = 8, .rows = 40}, k.policy = {3, 1, 1};
  TinyLlama tiny(1, k.weights, k.layers);
  const Plan plan = plan_step(tiny.model, cpu_ops(nullptr, k.activation), k.threads, k.shape, k.policy);
  const int64_t before = anonymous_memory();
  Arena exact(plan.peak);
  run_step(k, tiny.model, k.policy, exact, k.threads);
  run_step(k, tiny.model, k.policy, exact, k.threads);
  const int64_t second = anonymous_memory();
  for (int i = 2; i < 1000; ++i) run_step(k, tiny.model, k.policy, exact, k.threads);
  EXPECT_TRUE(before > 0 && second - before <= int64_t(plan.peak) + (1 << 20)) << second - before;
  EXPECT_LE(anonymous_memory() - second, 1 << 18);
}

TEST(Plan, EncodingAndSearchingTakeNothingFromTheHeap) {
  TinyLlama tiny(3, Type::q4_1, 3);
  const Ops ops = cpu_ops(nullptr, Type::bf16);
  Threads pool(2);
  for (const Placement placement : {Placement::none, Placement::prefix, Placement::suffix}) {
    Arena arena(size_t{1} << 26);
    const Context c{&ops, &pool, &arena};
    const View prompt = new_acc(c, 2, tiny.model.width, "prompt/rows");
    ops.zero(c, prompt);
    const View e = new_acc(c, 30, tiny.model.width, "embeddings");
    const std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6, 7};
    std::vector<Text> texts(30);
    for (int i = 0; i < 30; ++i) texts[i] = {tokens.data(), 1 + i % 7, {}};
    const Encoder encoder{tiny.model, c, placement, Pooling::last, prompt, 20};
    const int64_t before = taken_from_heap;
    embed_texts(encoder, texts.data(), 30, e);
    EXPECT_EQ(taken_from_heap, before);
    const Vectors rows{static_cast<const float*>(e.data), 30, tiny.model.width};
    const Ranked lists = exact_top_k(rows, rows, 5, pool);
    EXPECT_EQ(taken_from_heap - before, 2) << "only for the lists that it returns";
    EXPECT_EQ(lists.queries, 30);
  }
}

TEST(Plan, TheFastestPolicyFitsAndMoreMemoryIsNeverSlower) {
  TinyLlama tiny(7, Type::q4_1, 6);
  const Ops ops = cpu_ops(nullptr, Type::bf16);
  for (const Placement placement : {Placement::prefix, Placement::suffix}) {
    StepShape s;
    s.placement = placement, s.prompt_rows = 4, s.pairs = 12, s.length = 20;
    size_t least = SIZE_MAX;
    for (const int64_t spacing : {1, 2, 3, 6})
      least = std::min(least, plan_step(tiny.model, ops, 2, s, {1, 0, spacing}).peak);
    const size_t most = plan_step(tiny.model, ops, 2, s, {}).peak;
    EXPECT_LT(2 * least, most);
    double before = INFINITY;
    const auto cost = [&](const Policy& p) {
      return step_cost(tiny.model, s, p, plan_step(tiny.model, ops, 2, s, p));
    };
    for (int i = 0; i <= 9; ++i) {
      const size_t bytes = least + (most - least) * i / 9;
      const auto [policy, fits] = choose_policy(tiny.model, ops, 2, s, bytes, 0, 0);
      ASSERT_TRUE(fits) << bytes;
      EXPECT_LE(plan_step(tiny.model, ops, 2, s, policy).peak, bytes);
      EXPECT_LE(cost(policy), before);
      before = cost(policy);
    }
    EXPECT_EQ(before, cost({}));
    EXPECT_FALSE(choose_policy(tiny.model, ops, 2, s, least - 1, 0, 0).fits);
    const Policy half = choose_policy(tiny.model, ops, 2, s, most, 5, 3).policy;  // as asked for
    EXPECT_EQ(half.micro, 5);
    EXPECT_EQ(half.spacing, 3);
    EXPECT_EQ(half.held, 5);
    EXPECT_FALSE(choose_policy(tiny.model, ops, 2, s, least, 24, 6).fits);
  }
}

// LLaMA-7B by hand: 32 layers of width 4096 and MLP 11008, vocabulary 32,000.
TEST(Plan, Llama7bByHand) {
  const auto model = load_shape("llama-7b", true);
  size_t weights = 0;
  for (const PlanEntry& e : weights_of(*model)) weights += e.bytes;
  const size_t attention = 4096 * 4096, mlp = 4096 * 11008;
  // 4 bits a weight, a byte for 64 of them, 4 bytes for 64 * 256 of them
  const auto nf4 = [](size_t n) { return n / 2 + n / 64 + n / 64 / 256 * 4; };
  EXPECT_EQ(weights,
            32 * (4 * nf4(attention) + 3 * nf4(mlp)) + 32000 * 4096 * 2 + 65 * 4096 * 4 + 2048 * 128 * 4);

  StepShape s;
  s.placement = Placement::prefix, s.prompt_rows = 5, s.pairs = 8, s.length = 64;
  const auto bytes = [&](const Policy& policy, const std::string& group) {
    size_t sum = 0;
    for (const PlanEntry& e : plan_step(*model, cpu_ops(nullptr, Type::bf16), 1, s, policy, true).entries)
      if (e.group == group && e.rows == 16 * 64) sum += e.bytes;
    return sum;
  };
  // Layer inputs: 0.52 MB a token. What one layer's backward needs besides: q, keys and values, middle, gate,
  // up.
  const size_t tokens = 16 * 64, inputs = 32 * 4096 * 4,
               one = 4096 * 2 + 2 * 4096 * 2 + 4096 * 4 + 2 * 11008 * 2;
  EXPECT_EQ(bytes({.micro = 16, .held = 1, .spacing = 1}, "activations"), tokens * (inputs + one));
  // All: the last layer has only the 16 pooled rows of q, middle, gate and up.
  EXPECT_EQ(bytes({}, "activations"), tokens * (inputs + 31 * one + 2 * 4096 * 2));

  // The README's example: 1,024 pairs in passes of 32 texts, of which two are held while a third runs.
  s.pairs = 1024;
  auto peak = plan_step(*model, cpu_ops(nullptr, Type::bf16), 1, s, {32, 2, 32}, true).at_peak;
  const size_t d = 4096, M = 11008, R = 32 * 64, Q = 32, K = 5;
  const size_t layer =
      d * 4 + d * 2 + 2 * d * 2 + d * 4 + 2 * M * 2;  // input, q, keys and values, middle, gate and up
  const size_t last = R * (d * 4 + 2 * d * 2) + Q * (d * 2 + d * 4 + 2 * M * 2);
  EXPECT_EQ(layer, 101376u);
  EXPECT_EQ(peak["activations"],
            3 * (31 * R * layer + last + Q * d * 4) + K * (31 * (layer - 2 * d * 2) + d * 4));
  EXPECT_EQ(peak["gradients"],
            K * 32 * 2 * d * 4 + R * (4 * d + 2 * d + d + d + 3 * M) * 4 - 2 * R * d * 4 + 2 * Q * d * 4);
  EXPECT_EQ(peak["loss"], 2 * 2048 * d * 4 + 64);  // what is smaller takes 64 bytes
  EXPECT_EQ(peak["prompt"], K * (2 * d * 4 + 32 * 2 * d * 2));
  EXPECT_EQ(peak["batch"], 2048 * (sizeof(Text) + 4) + 1024 * (4 + 4 + 8 + 1024));
  // 2 FLOP a weight and row: all layers of a pass forward and backward, in the last one keys and values of
  // all rows but the rest of the pooled ones; all passes but the held ones forward twice; the prompt's pass
  // once each way.
  const Plan plan = plan_step(*model, cpu_ops(nullptr, Type::bf16), 1, s, {32, 2, 32});
  const double whole = 2.0 * (4 * d * d + 3 * d * M), some = 2.0 * 2 * d * d;
  const double pass = R * (31 * whole + some) + Q * (whole - some), prompt = K * (31 * whole + some);
  EXPECT_DOUBLE_EQ(plan.flops, 2 * (64 * pass + prompt));
  EXPECT_DOUBLE_EQ(plan.again, 62 * pass);
  // Every layer's input kept: all but the last again, without the product with down.
  EXPECT_DOUBLE_EQ(plan_step(*model, cpu_ops(nullptr, Type::bf16), 1, s, {2048, 1, 1}).again,
                   (64 * R + K) * 31 * (whole - 2.0 * d * M));
  EXPECT_EQ(peak["activations"], 19'531'219'968u);
  EXPECT_EQ(peak["gradients"], 478'150'656u);
}

TEST(Plan, AbsurdSizesAreRefused) {
  const auto model = load_shape("llama-2-70b", false);
  const Ops ops = cpu_ops(nullptr, Type::bf16);
  StepShape s;
  s.pairs = 1'000'000, s.length = 4000;
  EXPECT_FALSE(choose_policy(*model, ops, 1, s, size_t{1} << 34, 0, 0).fits);
  // All activations of the batch are more than there are addresses; in passes of one text it fits.
  s = {.placement = Placement::prefix, .pairs = 500, .length = 8000};
  EXPECT_TRUE(choose_policy(*model, ops, 1, s, size_t{1} << 38, 1, 80).fits);
  EXPECT_THROW(load_shape("llama-8b", false), Error);
}

}  // namespace
}  // namespace quest
