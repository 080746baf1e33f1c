// Parity with PyTorch, without Python: tests/golden/tiny.json holds what transformers computes in double
// precision for the random LLaMA of tests/golden/tiny.gguf (made by tests/peers/make_golden.py, which
// documents the file).
#include <simdjson.h>

#include "kernels/base/file.h"
#include "model/tokenizer.h"
#include "tests/check.h"
#include "train/step.h"

namespace quest {
namespace {

using Json = simdjson::dom::element;

Matrix matrix(Json rows, Type type) {
  const simdjson::dom::array list = rows;
  Matrix m(static_cast<int64_t>(list.size()), static_cast<int64_t>(simdjson::dom::array(list.at(0)).size()),
           type, 0);
  int64_t i = 0;
  for (const auto row : list) {
    int64_t j = 0;
    for (const double x : simdjson::dom::array(row)) m.set(i, j++, x);
    ++i;
  }
  return m;
}

template <class T>
std::vector<T> numbers(Json list) {
  std::vector<T> out;
  for (const auto x : simdjson::dom::array(list)) {
    if (x.is_array())
      for (const T y : numbers<T>(x)) out.push_back(y);
    else
      out.push_back(static_cast<T>(int64_t{x}));
  }
  return out;
}

double norm_of(Matrix& a, Matrix* b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows(); ++i)
    for (int64_t j = 0; j < a.cols(); ++j) sum += std::pow(a.at(i, j) - (b ? b->at(i, j) : 0), 2);
  return std::sqrt(sum);
}

struct Golden {
  simdjson::dom::parser parser;
  Json json = parser.load(SOURCE_ROOT "/tests/golden/tiny.json");
  std::unique_ptr<Model> model = load_model(SOURCE_ROOT "/tests/golden/tiny.gguf");
};

// Every placement, pooling and direction of the loss: embeddings, loss, gradient, prompt after five steps.
void compare(Golden& g, const Ops& ops, const char* what, double tolerance, double prompt_tolerance) {
  Bench bench(ops);
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Text> texts;
  for (const Json t : simdjson::dom::array(g.json["texts"])) tokens.push_back(numbers<int32_t>(t));
  for (const auto& t : tokens) texts.push_back({t.data(), static_cast<int32_t>(t.size()), {}});
  const Json batch = g.json["batch"], o = g.json["adamw"];
  const auto queries = numbers<int32_t>(batch["query_texts"]),
             labels = numbers<int32_t>(batch["label_texts"]);
  const auto flat = numbers<int32_t>(batch["pairs"]);
  const auto hidden = numbers<uint8_t>(batch["hidden"]),
             hidden_queries = numbers<uint8_t>(batch["hidden_queries"]);
  std::vector<Pair> pairs;
  for (size_t i = 0; i < flat.size(); i += 2) pairs.push_back({flat[i], flat[i + 1]});
  const auto T = static_cast<int64_t>(texts.size());

  for (const Json c : simdjson::dom::array(g.json["cases"])) {
    const std::string placement{std::string_view(c["placement"])}, pooling{std::string_view(c["pooling"])};
    SCOPED_TRACE(std::string(what) + " " + placement + " " + pooling);
    const Json truth = c["float64"];
    Matrix want = matrix(truth["embeddings"], Type::ref_double), got(T, want.cols(), ops.accumulator);
    Matrix start(1, want.cols(), ops.accumulator);
    if (placement != "none") start = matrix(g.json["prompts"][placement], ops.accumulator);
    Matrix prompt = start;
    const Encoder e{*g.model, bench.context,
                    placement == "none"     ? Placement::none
                    : placement == "prefix" ? Placement::prefix
                                            : Placement::suffix,
                    pooling == "mean" ? Pooling::mean : Pooling::last,
                    placement == "none" ? View{} : prompt.view()};
    embed_texts(e, texts.data(), T, got.view());
    EXPECT_TRUE(norm_of(got, &want) <= tolerance * norm_of(want, nullptr))
        << norm_of(got, &want) / norm_of(want, nullptr);
    if (placement == "none") continue;
    for (const char* direction : {"one_way", "symmetric"}) {
      const Json d = truth[direction];
      prompt = start;
      Matrix m = start, v = start, gradient = start, loss(1, 1, ops.accumulator),
             length(1, 1, ops.accumulator);
      m.fill(0), v.fill(0);
      StepBatch b;
      b.texts = texts, b.pairs = pairs, b.queries = queries, b.labels = labels;
      b.hidden = hidden.data(), b.hidden_queries = direction[0] == 's' ? hidden_queries.data() : nullptr;
      b.temperature = double{batch["temperature"]};
      for (int64_t step = 1; step <= int64_t{o["steps"]}; ++step) {
        const Encoder now{*g.model, bench.context, e.placement, e.pooling, prompt.view()};
        loss_and_gradient(now, b, {}, loss.view(), gradient.view());
        if (step == 1) {
          Matrix golden = matrix(d["gradient"], Type::ref_double);
          EXPECT_TRUE(std::abs(loss.at(0, 0) - double{d["loss"]}) <= tolerance * double{d["loss"]})
              << loss.at(0, 0);
          EXPECT_TRUE(norm_of(gradient, &golden) <= tolerance * norm_of(golden, nullptr))
              << norm_of(gradient, &golden) / norm_of(golden, nullptr);
        }
        bench.ops.norm(bench.context, gradient.view(), length.view());
        bench.ops.adamw(bench.context, prompt.view(), gradient.view(), m.view(), v.view(), length.view(),
                        double{o["clip"]},
                        {double{o["rate"]}, double{o["beta1"]}, double{o["beta2"]}, double{o["epsilon"]},
                         double{o["decay"]}, step});
      }
      Matrix last = matrix(d["prompt"], Type::ref_double);
      EXPECT_TRUE(norm_of(prompt, &last) <= prompt_tolerance * norm_of(last, &start))
          << norm_of(prompt, &last) / norm_of(last, &start);
    }
  }
}

// The double reference and PyTorch in double differ by rounding alone; fp32 by 2^-24 grown over two layers.
// AdamW divides by sqrt(v), so where a gradient is near zero its sign decides: the prompt's tolerance is
// wider.
TEST(Golden, ReferenceEqualsPyTorch) {
  Golden g;
  compare(g, ref::ref_ops<double>(), "double", 1e-10, 1e-8);
}

TEST(Golden, Fp32EqualsPyTorch) {
  Golden g;
  compare(g, cpu_ops(nullptr, Type::f32), "fp32", 2e-5, 1e-4);
}

TEST(Golden, Bf16IsCloseToPyTorch) {
  Golden g;
  compare(g, cpu_ops(nullptr, Type::bf16), "bf16", 5e-2, 0.5);
}

TEST(Golden, Tokens) {
  Golden g;
  const Tokenizer tokenizer(read_vocabulary(g.model->path));
  for (const Json t : simdjson::dom::array(g.json["tokenizer"])) {
    std::vector<int32_t> ids;
    tokenizer.encode(std::string_view(t["text"]), ids);
    EXPECT_EQ(ids, numbers<int32_t>(t["ids"])) << std::string_view(t["text"]);
  }
}

}  // namespace
}  // namespace quest
