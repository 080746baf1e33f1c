// The whole graph over the CUDA backend's table, executed by the emulator: the prompt's gradient beside the CPU's
// and the reference's, its bits for every policy and schedule, the plan against the arena, and quest train end to
// end.
#include <signal.h>

#include <filesystem>

#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"
#include "kernels/nf4.h"
#include "model/plan.h"
#include "sampling/import.h"
#include "tests/sampling/dataset_files.h"
#include "tests/cuda/hardware.h"
#include "tests/tiny_llama.h"
#include "train/job.h"
#include "train/plan.h"

namespace quest {
namespace {

// An emulated GPU with its arena, and a model whose weights are there.
struct OnGpu {
  std::shared_ptr<Device> device;
  Threads threads{2};
  Ops ops = cuda_ops(Type::bf16);
  std::unique_ptr<Arena> arena;
  static constexpr size_t host_bytes = size_t{1} << 28;
  Arena host{host_bytes};
  HostOnly host_only{{host.array<std::byte>(0, "test/start"), host_bytes}};
  Model model;
  Context context;

  OnGpu(const Model& m, size_t bytes) : model(m) {
    emulator::gpu() = {.present = true};
    emulator::machine().schedule = emulator::Schedule::forward;
    device = Device::open(true);
    arena = arena_on(*device, bytes);
    fill_nan(arena->array<std::byte>(0, "test/start"), bytes);
    context = {&ops, &threads, arena.get(), nullptr, nullptr, &host, device.get()};
    bring_weights(context, model);
  }
};

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(got[i] - want[i], 2);
    size += std::pow(want[i], 2);
  }
  return std::sqrt(error / size);
}

// Five texts of unequal length, three queries, four labels; a hidden positive on each side.
struct Case {
  Placement placement;
  Pooling pooling;
  bool symmetric;
  std::vector<std::vector<int32_t>> tokens = {
      {3, 7, 1, 12, 5}, {9}, {4, 4, 18}, {11, 2, 6, 19, 0, 13, 8}, {4, 4, 17}};
  int32_t queries[3] = {0, 1, 3}, labels[4] = {2, 1, 4, 0};
  Pair pairs[4] = {{0, 0}, {2, 1}, {0, 2}, {1, 3}};
  std::vector<uint8_t> hidden = std::vector<uint8_t>(16), hidden_queries = std::vector<uint8_t>(12);
  int64_t K = 3;

  Case(Placement p, Pooling pool, bool sym) : placement(p), pooling(pool), symmetric(sym) {
    hidden[0 * 4 + 2] = hidden[2 * 4 + 0] = hidden_queries[0 * 3 + 1] = 1;
  }
  std::string name() const {
    return std::string(placement == Placement::prefix ? "prefix" : "suffix") +
           (pooling == Pooling::last ? " last" : " mean") + (symmetric ? " symmetric" : "");
  }
  // The gradient, and the loss behind it; matrices of the host, brought where the ops see them.
  std::vector<double> run(const Model& model, const Context& c, const Policy& policy = {}) {
    Random r(13);
    const Type acc = c.ops->accumulator;
    Matrix prompt = Matrix(K, 64, Type::f32, 0).random(r, 0.5).as(acc), gradient(K, 64, acc, 0);
    Matrix mean = Matrix(1, 64, Type::f32, 0).random(r, 0.3).as(acc), loss(1, 1, acc, 0);
    std::vector<Text> texts;
    for (const auto& t : tokens) texts.push_back({t.data(), static_cast<int32_t>(t.size()), {}});
    Scope scope(c);
    const View p = bring(c, prompt.view(), "prompt"), g = bring(c, gradient.view(), "gradient"),
               l = bring(c, loss.view(), "loss");
    const Encoder encoder{model, c, placement, pooling, p, 7};
    StepBatch b;
    b.texts = {texts.data(), 5}, b.queries = {queries, 3}, b.labels = {labels, 4}, b.pairs = {pairs, 4};
    b.hidden = hidden.data(), b.temperature = 0.2;
    b.hidden_queries = symmetric ? hidden_queries.data() : nullptr;
    if (symmetric) b.mean = bring(c, mean.view(), "mean");
    loss_and_gradient(encoder, b, policy, l, g);
    fetch(c, g, gradient.view()), fetch(c, l, loss.view());
    std::vector<double> out;
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < 64; ++j) out.push_back(gradient.at(i, j));
    out.push_back(loss.at(0, 0));
    return out;
  }
};

// As for the CPU (step_test.cpp): about 50 ops, each with 2^-8 / sqrt(12) of rounding to bf16 in the mean, 8e-3, and
// the temperature makes it more. What the two backends round alike leaves them no further apart than that either.
TEST(CudaTrain, GradientIsThatOfTheCpuAndTheReference) {
  for (const Type type : {Type::q4_1, Type::q8_0, Type::nf4}) {
    TinyLlama tiny(15, type);
    tiny.model.turns.halves = type == Type::nf4;
    Bench exact(ref::ref_ops<double>()), cpu(cpu_ops(nullptr, Type::bf16));
    OnGpu gpu(tiny.model, 64 << 20);
    const size_t used = gpu.arena->used();
    for (const auto placement : {Placement::prefix, Placement::suffix})
      for (const bool other : {false, true}) {
        Case k(placement, other ? Pooling::mean : Pooling::last, other);
        SCOPED_TRACE(k.name() + ", weights " + format_of(type).name);
        const auto got = k.run(gpu.model, gpu.context), want = k.run(tiny.model, exact.context),
                   beside = k.run(tiny.model, cpu.context);
        EXPECT_TRUE(relative_error(got, want) <= 5e-2) << relative_error(got, want);
        EXPECT_TRUE(relative_error(got, beside) <= 5e-2) << relative_error(got, beside);
        EXPECT_TRUE(std::abs(got.back() - want.back()) <= 5e-2 * want.back()) << got.back();
      }
    EXPECT_EQ(gpu.arena->used(), used);
    EXPECT_EQ(gpu.host.used(), 0u);
    gpu.device.reset();
    EXPECT_TRUE(emulator::gpu().intact) << "wrote beside the arena";
  }
}

TEST(CudaTrain, BitsDependOnNothingElse) {
  TinyLlama tiny(14, Type::q4_1, 3);
  OnGpu gpu(tiny.model, 64 << 20);
  for (const auto placement : {Placement::prefix, Placement::suffix}) {
    Case k(placement, Pooling::last, false);
    const auto want = k.run(gpu.model, gpu.context);
    EXPECT_EQ(k.run(gpu.model, gpu.context), want) << "the same again";
    for (const Policy& policy : {Policy{2, 1, 1}, Policy{3, 0, 2}})
      EXPECT_EQ(k.run(gpu.model, gpu.context, policy), want)
          << k.name() << ", micro " << policy.micro << ", held " << policy.held << ", spacing " << policy.spacing;
    const auto other =
        placement == Placement::prefix ? emulator::Schedule::random : emulator::Schedule::reverse;
    emulator::machine().schedule = other;
    EXPECT_EQ(k.run(gpu.model, gpu.context), want) << emulator::name_of(other);
    emulator::machine().schedule = emulator::Schedule::forward;
  }
}

// Launches of a layer, counted over the difference that one layer makes; a pass whose last layer has fewer rows.
TEST(CudaTrain, LaunchesOfALayer) {
  int64_t launches[2], index = 0;
  for (const int64_t layers : {3, 4}) {
    TinyLlama tiny(14, Type::q4_1, layers);
    OnGpu gpu(tiny.model, 64 << 20);
    Case k(Placement::prefix, Pooling::last, false);
    k.run(gpu.model, gpu.context);
    launches[index++] = gpu.device->launches;
  }
  // A layer of the texts' pass and one of the prompt's pass, there and back.
  EXPECT_LE(launches[1] - launches[0], 4 * 15) << launches[0] << ", " << launches[1];
}

// What a step takes of the arena is what plan_step says, to the byte; a byte less is refused.
TEST(CudaTrain, ThePlanIsWhatAStepTakes) {
  TinyLlama tiny(40, Type::nf4, 3);
  const Ops ops = cuda_ops(Type::bf16);
  size_t weights = 0;
  for (const PlanEntry& e : brought_weights(ops, tiny.model)) weights += e.bytes;
  for (const auto placement : {Placement::prefix, Placement::suffix})
    for (const Policy& policy : {Policy{}, Policy{3, 1, 1}}) {
      StepShape s;
      s.placement = placement, s.pairs = 2, s.length = 5, s.prompt_rows = 3, s.rows = 20;
      s.symmetric = s.centred = placement == Placement::prefix, s.cached = false;
      const Plan plan = plan_step(tiny.model, ops, 2, s, policy);
      std::vector<int32_t> tokens(4 * 5);
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((i * i * 7 + i / 3) % 20);
      const auto step = [&](size_t bytes) {
        OnGpu gpu(tiny.model, bytes);
        EXPECT_EQ(gpu.arena->used(), weights);
        Random r(3);
        const Context& c = gpu.context;
        Matrix prompt = Matrix(3, 64, Type::f32, 0).random(r, 0.5), other = prompt, number(1, 1, Type::f32, 0);
        Scope scope(c);
        const BatchArrays a(c.bookkeeping(), 2, s.symmetric);
        const View p = bring(c, prompt.view(), "prompt"), g = bring(c, other.view(), "gradient"),
                   l = bring(c, number.view(), "loss");
        bring(c, other.view(), "m"), bring(c, other.view(), "v");
        View mean = rows_of(other.view(), 0, s.centred);
        mean = s.centred ? bring(c, mean, "mean") : View{};
        bring(c, number.view(), "norm");
        for (int32_t t = 0; t < 4; ++t) a.texts[t] = {tokens.data() + t * 5, 5, {}};
        for (int32_t i = 0; i < 2; ++i) a.queries[i] = i, a.labels[i] = 2 + i, a.pairs[i] = {i, i};
        std::fill_n(a.hidden, 4, uint8_t{0});
        if (a.hidden_queries) std::fill_n(a.hidden_queries, 4, uint8_t{0});
        StepBatch b = a.batch(4, 2, 2, 2);
        b.mean = mean;
        loss_and_gradient({gpu.model, c, s.placement, s.pooling, p, s.rows}, b, policy, l, g);
        fetch(c, l, number.view());
        EXPECT_TRUE(number.at(0, 0) > 0);
        EXPECT_EQ(gpu.arena->peak(), weights + plan.peak);
      };
      step(weights + plan.peak);
      EXPECT_THROW(step(weights + plan.peak - 1), Error);
    }
}

// README, "Where every byte is": what a GPU holds of LLaMA-7B's weights in NF4.
TEST(CudaTrain, WeightsOfLlama7bByHand) {
  size_t weights = 0;
  for (const PlanEntry& e : brought_weights(cuda_ops(Type::bf16), *load_shape("llama-7b", true))) weights += e.bytes;
  // 4 bits a weight, a byte for 64 of them, 4 bytes for 64 * 256 of them, and 1,152 bytes of tables
  const auto nf4 = [](size_t n) { return n / 2 + n / 64 + n / 64 / 256 * 4 + 1152; };
  EXPECT_EQ(weights, 32 * (4 * nf4(4096 * 4096) + 3 * nf4(4096 * 11008)) + 65 * 4096 * 4 + 2048 * 128 * 4);
}

// ---- quest train

std::string field(const std::string& json, const std::string& name) {
  const size_t at = json.find("\"" + name + "\": ");
  EXPECT_NE(at, json.npos) << name << " in " << json;
  return at == json.npos ? "" : json.substr(at + name.size() + 4, json.find_first_of(",}\n", at) - at - name.size() - 4);
}

struct JobFolder {
  TemporaryFolder here;
  Settings settings;

  JobFolder() {
    std::string tsv;
    const char* const words[] = {"river", "stone", "engine", "paper", "garden", "music", "winter", "letter"};
    for (int i = 0; i < 40; ++i)
      tsv += format("about %s and %s\t%s\t%s\n", words[i % 8], words[i * 3 % 7], words[i % 8], words[i * 3 % 7]);
    put_file(here / "mine.tsv", tsv);
    import_dataset(here / "mine.tsv", here / "data", {.name = "mine", .progress = false});
    settings.model = SOURCE_ROOT "/tests/golden/tiny.gguf", settings.data = here / "data";
    settings.length = 8, settings.batch = 4, settings.prompt_rows = 2, settings.steps = 3;
    settings.validation = 0.2, settings.validate_every = 3, settings.threads = 2, settings.rows = 256;
  }
  // Lines of metrics.jsonl.
  std::vector<std::string> train(const std::string& name, const std::string& device, size_t memory) {
    sigset_t before;
    sigprocmask(SIG_SETMASK, nullptr, &before);
    Settings s = settings;
    s.device = device;
    EXPECT_TRUE(run_jobs({{s, here / name, "{}\n"}}, memory));
    sigprocmask(SIG_SETMASK, &before, nullptr);  // run_jobs() holds interrupts for good
    std::vector<std::string> lines;
    const std::string text = read_file(here / (name + "/metrics.jsonl"));
    for (size_t at = 0, end; (end = text.find('\n', at)) != text.npos; at = end + 1)
      lines.push_back(text.substr(at, end - at));
    EXPECT_EQ(lines.size(), static_cast<size_t>(s.steps));
    return lines;
  }
  std::string prompt(const std::string& name) { return read_file(here / (name + "/prompt.safetensors")); }
};

TEST(CudaTrain, QuestTrainFromEndToEnd) {
  for (const char* placement : {"suffix", "prefix"}) {
    JobFolder job;
    job.settings.placement = placement;
    emulator::gpu() = {.present = true};
    const auto gpu = job.train("gpu", "gpu", 64 << 20);
    emulator::gpu() = {.present = true};
    const auto again = job.train("again", "auto", 16 << 20);  // another plan
    EXPECT_TRUE(emulator::gpu().intact);
    const auto cpu = job.train("cpu", "cpu", 0);
    EXPECT_EQ(gpu, again);
    EXPECT_EQ(job.prompt("gpu"), job.prompt("again"));
    for (size_t i = 0; i < gpu.size(); ++i) {
      const double loss = std::stod(field(gpu[i], "loss")), want = std::stod(field(cpu[i], "loss"));
      EXPECT_TRUE(std::abs(loss - want) <= 5e-2 * want) << gpu[i] << "\n" << cpu[i];
    }
    EXPECT_TRUE(field(read_file(job.here / "gpu/result.json"), "kernels").starts_with("\"cuda sm_"));
  }
}

#ifdef QUEST_EMULATE
// A GPU that fails in the middle of a run: one sentence, and the run goes on from its last checkpoint to the same
// prompt.
TEST(CudaTrain, ALostDeviceDamagesNoCheckpoint) {
  JobFolder job;
  job.settings.validate_every = 1;
  emulator::gpu() = {.present = true};
  job.train("whole", "gpu", 64 << 20);
  // Waits: one at the beginning; for results 2 of the probe, 2 of the text pass, 2 of a validation; 5 and 2 of the first step.
  emulator::gpu() = {.present = true, .fails = "cudaStreamSynchronize", .fails_after = 1 + 2 + 2 + 2 + 7 + 3};
  const std::string said = sentence_of(Exit::machine, [&] { job.train("lost", "gpu", 64 << 20); });
  expect_contains(said, "--resume");
  EXPECT_TRUE(exists(job.here / "lost/checkpoint.safetensors")) << "the first step's";
  EXPECT_FALSE(exists(job.here / "lost/result.json"));
  emulator::gpu() = {.present = true};
  job.train("lost", "gpu", 64 << 20);
  EXPECT_EQ(job.prompt("lost"), job.prompt("whole"));
  emulator::gpu() = {};
}
#endif

}  // namespace
}  // namespace quest
