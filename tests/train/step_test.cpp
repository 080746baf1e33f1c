// What is proved here is the production graph: model/forward.cpp, backward.cpp, encode.cpp and train/step.cpp
// run over ref.h in complex numbers, and the prompt's gradient is compared with the complex step of the loss.
// Then the same graph over the CPU backend: how close it comes to the reference, and that its bits depend on
// nothing that should not matter.
#include "train/step.h"

#include <algorithm>

#include "kernels/matmul.h"
#include "tests/tiny_llama.h"

namespace quest {
namespace {

// Keys and values of suffix texts, computed one text at a time and the last one first, as a cache may have
// them.
struct TextCache {
  std::vector<std::vector<std::byte>> memory;
  void fill(const Encoder& e, std::vector<Text>& texts) {
    const int64_t row = key_value_bytes(e.model, e.context.ops->activation);
    for (size_t t = texts.size(); t--;) {
      const int64_t bytes = texts[t].count * row;
      memory.emplace_back(static_cast<size_t>(bytes * e.model.layers));
      text_pass(e, &texts[t], 1, {memory.back().data(), bytes, texts[t].count}, {}, {});
    }
  }
};

// Five texts of unequal length, one of a single token; four pairs; a label that is a duplicate of another,
// and a second known positive of query 0, both hidden; text 1 is a query and a label.
struct Case {
  std::vector<std::vector<int32_t>> tokens = {
      {3, 7, 1, 12, 5}, {9}, {4, 4, 18}, {11, 2, 6, 19, 0, 13, 8}, {4, 4, 17}};
  int32_t queries[3] = {0, 1, 3}, labels[4] = {2, 1, 4, 0};
  Pair pairs[4] = {{0, 0}, {2, 1}, {0, 2}, {1, 3}};
  std::vector<uint8_t> hidden, hidden_queries;
  Placement placement;
  Pooling pooling;
  bool symmetric, centred;
  int64_t K, pass_rows = 1024;

  Case(Placement p, Pooling pool, bool sym, bool mean)
      : hidden(16),
        hidden_queries(12),
        placement(p),
        pooling(pool),
        symmetric(sym),
        centred(mean),
        K(p == Placement::prefix ? 3 : 2) {
    hidden[0 * 4 + 2] = 1;  // pair 0: label 2 is another positive of query 0
    hidden[2 * 4 + 0] = 1;  // and the other way round
    hidden[1 * 4 + 3] = 1;  // pair 1: label 3 counts as a duplicate of its target
    hidden_queries[0 * 3 + 1] = 1;
  }
  std::string name() const {
    return std::string(placement == Placement::prefix ? "prefix" : "suffix") +
           (pooling == Pooling::last ? " last" : " mean") + (symmetric ? " symmetric" : "") +
           (centred ? " centred" : "");
  }

  // Loss and gradient at `prompt`, in the types of the bench's ops.
  Complex run(const Model& model, Bench& bench, Matrix& prompt, Matrix& mean, Matrix& gradient,
              const Policy& policy = {}, bool cached = false) {
    std::vector<Text> texts;
    for (const auto& t : tokens) texts.push_back({t.data(), static_cast<int32_t>(t.size()), {}});
    const Encoder encoder{model, bench.context, placement, pooling, prompt.view(), pass_rows};
    TextCache cache;
    if (cached) cache.fill(encoder, texts);
    StepBatch b;
    b.texts = {texts.data(), 5}, b.queries = {queries, 3}, b.labels = {labels, 4}, b.pairs = {pairs, 4};
    b.hidden = hidden.data(), b.temperature = 0.2;
    b.hidden_queries = symmetric ? hidden_queries.data() : nullptr;
    if (centred) b.mean = mean.view();
    Matrix loss(1, 1, bench.ops.accumulator);
    loss_and_gradient(encoder, b, policy, loss.view(), gradient.view());
    EXPECT_EQ(bench.arena.used(), 0u);
    EXPECT_TRUE(gradient.padding_intact());
    return loss.get(0, 0);
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const auto placement : {Placement::prefix, Placement::suffix})
    for (const auto pooling : {Pooling::last, Pooling::mean})
      for (const bool symmetric : {false, true}) cases.emplace_back(placement, pooling, symmetric, symmetric);
  return cases;
}

TEST(Step, GradientOfTheWholeGraphByComplexStep) {
  for (const Type type : {Type::q4_1, Type::q8_0, Type::nf4}) {
    TinyLlama tiny(11, type);
    tiny.model.turns.halves = type == Type::nf4;
    Bench real(ref::ref_ops<double>()), complex(ref::ref_ops<Complex>());
    Random r(12);
    for (Case& k : all_cases()) {
      Matrix prompt = Matrix(k.K, 64, Type::ref_double, 0).random(r, 0.5);
      Matrix mean = Matrix(1, 64, Type::ref_double).random(r, 0.3), mean_c = mean.as(Type::ref_complex);
      Matrix gradient(k.K, 64, Type::ref_double), unused(k.K, 64, Type::ref_complex);
      k.run(tiny.model, real, prompt, mean, gradient);
      expect_gradient_sampled(
          prompt, gradient, 12, r, [&](Matrix& p) { return k.run(tiny.model, complex, p, mean_c, unused); },
          k.name());
    }
  }
}

// ---- the CPU backend

std::vector<uint32_t> bits_of(Matrix& m) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < m.rows(); ++i)
    for (int64_t j = 0; j < m.cols(); ++j)
      bits.push_back(std::bit_cast<uint32_t>(static_cast<float>(m.at(i, j))));
  return bits;
}

// Loss and gradient, to the bit.
std::vector<uint32_t> bits_of_step(Case& k, const Model& model, Bench& bench, Matrix& prompt, Matrix& mean,
                                   const Policy& policy, bool cached) {
  bench.arena.poison();
  Matrix gradient(k.K, 64, Type::f32);
  const double loss = k.run(model, bench, prompt, mean, gradient, policy, cached).real();
  EXPECT_TRUE(std::isfinite(loss) && loss > 0);
  EXPECT_TRUE(largest(gradient) > 1e-3);
  std::vector<uint32_t> bits = bits_of(gradient);
  bits.push_back(std::bit_cast<uint32_t>(static_cast<float>(loss)));
  return bits;
}

void expect_same_bits(const char* path, Type activation, const Model& model) {
  Bench one(cpu_ops(path, activation), 1), two(cpu_ops(path, activation), 2),
      seven(cpu_ops(path, activation), 7);
  const bool best = path == kernel_paths()[0].name;
  Random r(13);
  for (Case& k : all_cases()) {
    Matrix prompt = Matrix(k.K, 64, Type::f32, 0).random(r, 0.5),
           mean = Matrix(1, 64, Type::f32).random(r, 0.3);
    const auto want = bits_of_step(k, model, two, prompt, mean, {}, false);
    for (Bench* bench : {&one, &two, &seven})
      for (const int64_t spacing : {int64_t{1}, int64_t{2}, int64_t{3}, keep_all})
        for (const int64_t micro : {1, 2, 3, 100})
          for (const int64_t held : {0, 1, 100})
            for (const bool cached : {false, true}) {
              if (cached && (k.placement != Placement::suffix || held == 1)) continue;
              k.pass_rows = micro == 3 ? 4 : 1024;  // of the pass that computes missing keys and values
              const bool some =
                  micro == 2 && spacing == 2 && held == 1;  // of the paths and thread counts besides
              if (!some && (!best || bench != &two)) continue;
              EXPECT_EQ(bits_of_step(k, model, *bench, prompt, mean, {micro, held, spacing}, cached), want)
                  << k.name() << " on " << path << ", " << bench->threads.count() << " threads, micro "
                  << micro << ", held " << held << ", spacing " << spacing << (cached ? ", cached" : "");
            }
  }
}

TEST(Step, BitsDependOnNothingElse) {
  TinyLlama tiny(14, Type::q4_1, 5);
  for (const KernelPath& path : kernel_paths())
    for (const Type activation : {Type::f32, Type::bf16}) expect_same_bits(path.name, activation, tiny.model);
}

double relative_error(Matrix& got, Matrix& want) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < want.rows(); ++i)
    for (int64_t j = 0; j < want.cols(); ++j) {
      error += std::pow(got.at(i, j) - want.at(i, j), 2);
      size += std::pow(want.at(i, j), 2);
    }
  return std::sqrt(error / size);
}

// Two layers are about 50 ops deep (there and back), each with a relative rounding error of up to
// (n/16 + 6) eps32 = 7e-7 at n = 96; independent errors add up like sqrt(50) * 7e-7 = 5e-6. With bf16 a store
// or a rounded operand has 2^-8 / sqrt(12), 1e-3, in the mean: 8e-3, and the temperature of 0.2 makes it
// more.
TEST(Step, CloseToTheReference) {
  TinyLlama tiny(15);
  Bench exact(ref::ref_ops<double>());
  for (const KernelPath& path : kernel_paths())
    for (const Type activation : {Type::f32, Type::bf16}) {
      Bench bench(cpu_ops(path.name, activation));
      Random r(16);
      const double tolerance = activation == Type::f32 ? 1e-5 : 5e-2;
      for (Case& k : all_cases()) {
        Matrix prompt = Matrix(k.K, 64, Type::f32, 0).random(r, 0.5),
               mean = Matrix(1, 64, Type::f32).random(r, 0.3);
        Matrix prompt_d = prompt.as(Type::ref_double), mean_d = mean.as(Type::ref_double);
        Matrix got(k.K, 64, Type::f32), want(k.K, 64, Type::ref_double);
        const double loss = k.run(tiny.model, bench, prompt, mean, got, {2, 1, 1}).real();
        const double loss_d = k.run(tiny.model, exact, prompt_d, mean_d, want).real();
        EXPECT_TRUE(relative_error(got, want) <= tolerance) << k.name() << " on " << path.name;
        EXPECT_TRUE(std::abs(loss - loss_d) <= tolerance * loss_d) << k.name() << " on " << path.name;
      }
    }
}

// ---- embeddings

// Texts of 1 to 33 tokens, and what encodes them.
struct Embedding {
  std::vector<std::vector<int32_t>> tokens = {{3, 7, 1, 12, 5},         {9}, {4, 4, 18},
                                              {11, 2, 6, 19, 0, 13, 8}, {},  {4}};
  const Model& model;
  Placement placement;
  Pooling pooling;
  Matrix prompt;

  Embedding(const Model& m, Placement p, Pooling pool, Random& r)
      : model(m), placement(p), pooling(pool), prompt(Matrix(3, 64, Type::f32, 0).random(r, 0.5)) {
    for (int32_t i = 0; i < 33; ++i) tokens[4].push_back(i * 7 % 20);
  }
  // Row t: text order[t], embedded in passes of about `rows` rows.
  Matrix run(Bench& bench, const std::vector<size_t>& order, int64_t rows, bool cached = false) {
    Matrix in = prompt.as(bench.ops.accumulator);
    const Encoder encoder{
        model, bench.context, placement, pooling, placement == Placement::none ? View{} : in.view(), rows};
    std::vector<Text> texts;
    for (const size_t t : order)
      texts.push_back({tokens[t].data(), static_cast<int32_t>(tokens[t].size()), {}});
    TextCache cache;
    if (cached) cache.fill(encoder, texts);
    const auto n = static_cast<int64_t>(order.size());
    Matrix e(n, model.width, bench.ops.accumulator);
    embed_texts(encoder, texts.data(), n, e.view());
    EXPECT_EQ(bench.arena.used(), 0u);
    EXPECT_TRUE(e.padding_intact());
    return e;
  }
};

const std::vector<size_t> in_order = {0, 1, 2, 3, 4, 5}, reversed = {5, 4, 3, 2, 1, 0};

void expect_same_embeddings(Embedding& k, Bench& bench, const Bench& exact) {
  bench.arena.poison();
  Matrix want = k.run(bench, in_order, 1000);
  const auto bits = bits_of(want);
  Matrix truth = k.run(const_cast<Bench&>(exact), in_order, 1000);
  EXPECT_TRUE(relative_error(want, truth) <= (bench.ops.activation == Type::f32 ? 1e-5 : 2e-2));
  for (const int64_t rows : {1, 7, 40}) {
    Matrix e = k.run(bench, in_order, rows);
    EXPECT_EQ(bits_of(e), bits) << "passes of " << rows << " rows";
  }
  if (k.placement == Placement::suffix) {
    Matrix e = k.run(bench, in_order, 7, true);
    EXPECT_EQ(bits_of(e), bits) << "from cached keys and values";
  }
  Matrix backwards = k.run(bench, reversed, 1000), alone(6, 64, Type::f32), turned = alone;
  for (size_t t = 0; t < 6; ++t) {
    Matrix one = k.run(bench, {t}, 1000);
    for (int64_t j = 0; j < 64; ++j) {
      alone.set(static_cast<int64_t>(t), j, one.at(0, j));
      turned.set(static_cast<int64_t>(t), j, backwards.at(5 - static_cast<int64_t>(t), j));
    }
  }
  EXPECT_EQ(bits_of(alone), bits) << "alone";
  EXPECT_EQ(bits_of(turned), bits) << "in reversed order";
}

TEST(Encode, AnEmbeddingDependsOnItsTextOnly) {
  TinyLlama tiny(17);
  Bench exact(ref::ref_ops<double>());
  Random r(18);
  for (const KernelPath& path : kernel_paths())
    for (const Type activation : {Type::f32, Type::bf16}) {
      Bench bench(cpu_ops(path.name, activation));
      for (const Placement placement : {Placement::none, Placement::prefix, Placement::suffix})
        for (const Pooling pooling : {Pooling::last, Pooling::mean}) {
          SCOPED_TRACE(std::string(path.name) + ", placement " + std::to_string(static_cast<int>(placement)));
          Embedding k(tiny.model, placement, pooling, r);
          expect_same_embeddings(k, bench, exact);
        }
    }
}

// What text_pass gives besides keys and values is what embed_texts gives without a prompt.
TEST(Encode, TextPassEmbedsWithoutPrompt) {
  TinyLlama tiny(19);
  Random r(20);
  for (const KernelPath& path : kernel_paths())
    for (const Type activation : {Type::f32, Type::bf16}) {
      Bench bench(cpu_ops(path.name, activation));
      Embedding last(tiny.model, Placement::none, Pooling::last, r),
          mean(tiny.model, Placement::none, Pooling::mean, r);
      Matrix want_last = last.run(bench, in_order, 1000), want_mean = mean.run(bench, in_order, 1000);
      std::vector<Text> texts;
      int64_t rows = 0;
      for (const auto& t : last.tokens) {
        texts.push_back({t.data(), static_cast<int32_t>(t.size()), {}});
        rows += texts.back().count;
      }
      const int64_t row = key_value_bytes(tiny.model, activation);
      const Encoder encoder{tiny.model, bench.context, Placement::suffix, Pooling::last, {}, 7};
      std::vector<std::byte> first, memory(static_cast<size_t>(rows * row * 2));
      for (const int asked : {0, 1, 2, 3}) {  // bit 0: last, bit 1: mean
        Matrix a(6, 64, Type::f32), b = a;
        std::fill(memory.begin(), memory.end(), std::byte{0xff});
        text_pass(encoder, texts.data(), 6, {memory.data(), rows * row, rows}, asked & 1 ? a.view() : View{},
                  asked & 2 ? b.view() : View{});
        EXPECT_TRUE(!(asked & 1) || bits_of(a) == bits_of(want_last)) << asked;
        EXPECT_TRUE(!(asked & 2) || bits_of(b) == bits_of(want_mean)) << asked;
        if (asked == 0) first = memory;
        EXPECT_TRUE(memory == first) << "keys and values depend on what is pooled";
        EXPECT_EQ(bench.arena.used(), 0u);
      }
      std::byte* at = memory.data();
      for (const Text& t : texts) {
        EXPECT_EQ(t.kv.data, at);
        EXPECT_EQ(t.kv.rows, t.count);
        EXPECT_EQ(t.kv.layer_bytes, rows * row);
        at += t.count * row;
      }
    }
}

}  // namespace
}  // namespace quest
