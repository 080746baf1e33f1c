// What is proved here is the production graph: model/forward.cpp, backward.cpp, encode.cpp and train/step.cpp
// run over ref.h in complex numbers, and the prompt's gradient is compared with the complex step of the loss.
#include "train/step.h"
#include "tests/tiny_llama.h"

namespace quest {
namespace {

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
  int64_t K;

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
  Complex run(const Model& model, Bench& bench, Matrix& prompt, Matrix& mean, Matrix& gradient, int64_t micro,
              Keep keep) {
    std::vector<Text> texts;
    for (const auto& t : tokens) texts.push_back({t.data(), static_cast<int32_t>(t.size()), {}});
    const Encoder encoder{model, bench.context, placement, pooling, prompt.view()};
    StepBatch b;
    b.texts = texts.data(), b.count = 5, b.queries = queries, b.query_count = 3, b.labels = labels,
    b.label_count = 4;
    b.pairs = pairs, b.pair_count = 4, b.hidden = hidden.data(), b.temperature = 0.2;
    b.hidden_queries = symmetric ? hidden_queries.data() : nullptr;
    if (centred) b.mean = mean.view();
    Matrix loss(1, 1, bench.ops.accumulator);
    loss_and_gradient(encoder, b, micro, keep, loss.view(), gradient.view());
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
  for (const Type type : {Type::q4_1, Type::q8_0}) {
    TinyLlama tiny(11, type);
    Bench real(ref::ref_ops<double>()), complex(ref::ref_ops<Complex>());
    Random r(12);
    for (Case& k : all_cases()) {
      Matrix prompt = Matrix(k.K, 64, Type::ref_double, 0).random(r, 0.5);
      Matrix mean = Matrix(1, 64, Type::ref_double).random(r, 0.3), mean_c = mean.as(Type::ref_complex);
      Matrix gradient(k.K, 64, Type::ref_double), unused(k.K, 64, Type::ref_complex);
      k.run(tiny.model, real, prompt, mean, gradient, 100, Keep::all);
      expect_gradient_sampled(
          prompt, gradient, 12, r,
          [&](Matrix& p) { return k.run(tiny.model, complex, p, mean_c, unused, 100, Keep::all); }, k.name());
    }
  }
}

}  // namespace
}  // namespace quest
