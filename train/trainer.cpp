#include "train/trainer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <numbers>

#include "index/exact.h"
#include "index/metrics.h"
#include "kernels/base/error.h"
#include "kernels/base/random.h"

namespace quest {

namespace {

constexpr uint64_t epoch_stream = 101;      // random.h streams
constexpr int64_t validation_limit = 1500;  // labels ranked against during training

// Appends one line to a file by a single write().
class LineFile {
 public:
  explicit LineFile(const std::string& path)
      : path_(path), fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail(Exit::machine, "%s: cannot be opened for writing: %s", path.c_str(), strerror(errno));
  }
  LineFile(const LineFile&) = delete;
  ~LineFile() { close(fd_); }
  void add(const std::string& line) const {
    const std::string text = line + "\n";
    if (write(fd_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      fail(Exit::machine, "%s: write failed: %s; free space, then --resume", path_.c_str(), strerror(errno));
  }
  void sync() const {
    if (fsync(fd_) != 0)
      fail(Exit::machine, "%s: fsync failed: %s; free space, then --resume", path_.c_str(), strerror(errno));
  }

 private:
  std::string path_;
  int fd_;
};

// Cuts metrics.jsonl back to the lines of the first `steps` steps.
void cut_metrics(const std::string& path, int64_t steps) {
  if (!exists(path)) return;
  const std::string text = read_file(path);
  size_t end = 0;
  for (size_t line = 0; line < text.size();) {
    const size_t next = text.find('\n', line);
    long long step = 0;
    if (next == std::string::npos || sscanf(text.c_str() + line, "{\"step\": %lld,", &step) != 1 ||
        step > steps)
      break;
    end = line = next + 1;
  }
  write_file(path, std::string_view(text).substr(0, end));
}

}  // namespace

int64_t planned_steps(const Settings& s, int64_t pairs) {
  const int64_t per_epoch = std::max<int64_t>(1, pairs / s.batch);
  const int64_t epochs = s.epochs > 0 ? s.epochs : (99 + per_epoch) / per_epoch;
  return pairs == 0 ? 0 : s.steps > 0 ? s.steps : epochs * per_epoch;
}

Trainer::Trainer(Engine& engine, const Settings& settings, const Dataset& data, const Selection& selection,
                 const JobTexts& job, const TextCache* cache, const std::vector<DrawnPair>& pairs,
                 std::string folder)
    : engine_(engine),
      settings_(settings),
      data_(data),
      selection_(selection),
      job_(job),
      cache_(cache),
      pairs_(pairs),
      folder_(std::move(folder)) {
  const auto n = static_cast<int64_t>(pairs.size());
  per_epoch_ = std::max<int64_t>(1, n / settings.batch);
  steps_ = planned_steps(settings, n);

  // Labels to rank the validation queries against: their own ones, then those of smallest hash.
  const Truth truth = truth_of(data.train, selection.validation, selection);
  std::vector<uint8_t> wanted(selection.labels.size());
  for (const int32_t l : truth.columns) wanted[static_cast<size_t>(l)] = 1;
  std::vector<int32_t> all(selection.labels.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  const auto rank = [&](int32_t l) {
    return std::pair(!wanted[static_cast<size_t>(l)], random_bits(0, 3, static_cast<uint64_t>(l)));
  };
  std::sort(all.begin(), all.end(), [&](int32_t a, int32_t b) { return rank(a) < rank(b); });
  const size_t positives = static_cast<size_t>(std::count(wanted.begin(), wanted.end(), 1));
  all.resize(std::min(all.size(), std::max<size_t>(validation_limit, positives)));
  std::sort(all.begin(), all.end());
  validation_labels_ = all;
}

View Trainer::mean() const { return state.mean.empty() ? View{} : view_of(state.mean, engine_.model->width); }

Encoder Trainer::encoder(const std::vector<float>& prompt) const {
  return engine_.encoder(settings_.placement == "prefix" ? Placement::prefix : Placement::suffix,
                         settings_.pooling == "mean" ? Pooling::mean : Pooling::last,
                         view_of(prompt, engine_.model->width));
}

std::vector<Text> Trainer::texts(const std::vector<int32_t>& numbers) const {
  std::vector<Text> out;
  for (const int32_t t : numbers) out.push_back(cache_ ? cache_->text(t) : job_.corpus.text(t));
  return out;
}

std::vector<float> Trainer::embed(const std::vector<float>& prompt, const std::vector<int32_t>& numbers,
                                  const char* label) {
  engine_.stop_if_asked();
  return embed_all(engine_, encoder(prompt), texts(numbers), mean(), label);
}

// Vocabulary rows of the start text: its last K tokens before a text's end, its first K before a text's
// start.
std::vector<float> Trainer::start_prompt() const {
  std::vector<int32_t> ids;
  engine_.tokenizer->encode(settings_.init, ids);
  const auto K = static_cast<size_t>(settings_.prompt_rows);
  std::vector<int32_t> chosen;
  for (size_t k = 0; k < K; ++k) {
    const size_t from_end = K - 1 - k;
    chosen.push_back(settings_.placement == "prefix" ? ids[k % ids.size()]
                                                     : ids[ids.size() - 1 - from_end % ids.size()]);
  }
  std::vector<float> prompt(K * static_cast<size_t>(engine_.model->width));
  engine_.ops.embed(engine_.context, engine_.model->embedding, chosen.data(),
                    view_of(prompt, engine_.model->width));
  return prompt;
}

void Trainer::start() {
  const double work = engine_.flops;
  state = {};
  state.prompt = state.best = start_prompt();
  state.m.assign(state.prompt.size(), 0);
  state.v.assign(state.prompt.size(), 0);
  if (settings_.centre) {
    std::vector<int32_t> sample = job_.of_validation;
    for (const int32_t l : validation_labels_) sample.push_back(job_.of_label[static_cast<size_t>(l)]);
    const auto chosen = texts(sample);
    std::vector<float> e(chosen.size() * static_cast<size_t>(engine_.model->width));
    const int64_t d = engine_.model->width;
    embed_texts(encoder(state.prompt), chosen.data(), static_cast<int64_t>(chosen.size()), view_of(e, d));
    state.mean.assign(static_cast<size_t>(d), 0);
    for (int64_t j = 0; j < d; ++j) {
      double sum = 0;
      for (size_t i = 0; i < chosen.size(); ++i)
        sum += e[i * static_cast<size_t>(d) + static_cast<size_t>(j)];
      state.mean[static_cast<size_t>(j)] = static_cast<float>(sum / static_cast<double>(chosen.size()));
    }
  }
  start_score = state.best_score = validate(state.prompt);
  state.flops = engine_.flops - work;
}

double Trainer::validate(const std::vector<float>& prompt) {
  if (selection_.validation.empty()) return 0;
  std::vector<int32_t> label_texts, number(selection_.labels.size(), -1);
  for (const int32_t l : validation_labels_) {
    number[static_cast<size_t>(l)] = static_cast<int32_t>(label_texts.size());
    label_texts.push_back(job_.of_label[static_cast<size_t>(l)]);
  }
  Truth truth = truth_of(data_.train, selection_.validation, selection_);
  for (int32_t& l : truth.columns) l = number[static_cast<size_t>(l)];
  std::vector<int32_t> own = own_labels(data_.train, selection_.validation, selection_);
  for (int32_t& l : own) l = l < 0 ? -1 : number[static_cast<size_t>(l)];
  const int64_t d = engine_.model->width;
  const auto q = embed_all(engine_, encoder(prompt), texts(job_.of_validation), mean(), "validation queries"),
             l = embed_all(engine_, encoder(prompt), texts(label_texts), mean(), "validation labels");
  const Vectors queries{q.data(), static_cast<int64_t>(job_.of_validation.size()), d};
  const Vectors labels{l.data(), static_cast<int64_t>(label_texts.size()), d};
  const Ranked lists = drop_own(exact_top_k(queries, labels, {}, 101, engine_.threads), own, 100);
  const std::vector<int64_t> counts(label_texts.size(), 1);
  return evaluate(lists, truth.view(), counts, 100).percent[6];  // R@10
}

bool Trainer::positive(int64_t pair, int32_t text) const {
  const DrawnPair& p = pairs_[static_cast<size_t>(pair)];
  if (text == job_.of_pair_query[static_cast<size_t>(pair)]) return true;
  const auto is = [&](int32_t label) {
    const int32_t n = label < 0 ? -1 : selection_.number[static_cast<size_t>(label)];
    return n >= 0 && job_.of_label[static_cast<size_t>(n)] == text;
  };
  const auto row = data_.train.labels.row(p.query);
  return is(data_.train.own(p.query)) || std::any_of(row.begin(), row.end(), is);
}

double Trainer::step(std::vector<float>& gradient) {
  const int64_t epoch = state.step / per_epoch_,
                B = std::min<int64_t>(settings_.batch, static_cast<int64_t>(pairs_.size()));
  if (epoch != order_epoch_) {  // a new order of the sample in every epoch
    order_.resize(pairs_.size());
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int32_t>(i);
    const auto key = [&](int32_t i) {
      return random_bits(static_cast<uint64_t>(settings_.seed), epoch_stream + static_cast<uint64_t>(epoch),
                         pairs_[static_cast<size_t>(i)].id());
    };
    std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
    order_epoch_ = epoch;
  }
  const int32_t* chosen = order_.data() + state.step % per_epoch_ * B;

  std::vector<int32_t> numbers, queries,
      labels;  // distinct texts; which of them are query rows and label rows
  const auto place = [](std::vector<int32_t>& list, int32_t x) {
    const auto at = std::find(list.begin(), list.end(), x);
    if (at == list.end()) return list.push_back(x), static_cast<int32_t>(list.size()) - 1;
    return static_cast<int32_t>(at - list.begin());
  };
  std::vector<Pair> pairs;
  for (int64_t i = 0; i < B; ++i) {
    const DrawnPair& p = pairs_[static_cast<size_t>(chosen[i])];
    const int32_t label = selection_.number[static_cast<size_t>(p.label)];
    const int32_t query_text = place(numbers, job_.of_pair_query[static_cast<size_t>(chosen[i])]);
    const int32_t label_text = place(numbers, job_.of_label[static_cast<size_t>(label)]);
    pairs.push_back({place(queries, query_text), place(labels, label_text)});
  }
  const size_t L = labels.size(), U = queries.size();
  std::vector<uint8_t> hidden(pairs.size() * L), hidden_queries(settings_.symmetric ? pairs.size() * U : 0);
  for (size_t i = 0; i < pairs.size(); ++i) {
    for (size_t j = 0; j < L; ++j)
      hidden[i * L + j] = static_cast<int32_t>(j) != pairs[i].label &&
                          positive(chosen[i], numbers[static_cast<size_t>(labels[j])]);
    for (size_t k = 0; k < pairs.size() && settings_.symmetric; ++k)
      if (pairs[k].query != pairs[i].query &&
          positive(chosen[k], numbers[static_cast<size_t>(labels[static_cast<size_t>(pairs[i].label)])]))
        hidden_queries[i * U + static_cast<size_t>(pairs[k].query)] = 1;
  }
  const std::vector<Text> batch_texts = texts(numbers);
  StepBatch b;
  b.texts = batch_texts.data(), b.count = static_cast<int64_t>(batch_texts.size());
  b.queries = queries.data(), b.query_count = static_cast<int64_t>(U);
  b.labels = labels.data(), b.label_count = static_cast<int64_t>(L);
  b.pairs = pairs.data(), b.pair_count = B;
  b.hidden = hidden.data(), b.hidden_queries = settings_.symmetric ? hidden_queries.data() : nullptr;
  b.temperature = settings_.temperature;
  b.mean = mean();
  float loss = 0;
  loss_and_gradient(encoder(state.prompt), b, b.count, settings_.recompute ? Keep::inputs : Keep::all,
                    {&loss, Type::f32, 1, 1, 1}, view_of(gradient, engine_.model->width));
  return loss;
}

void Trainer::checkpoint() const {
  const int64_t d = engine_.model->width;
  TensorFile f;
  f.tensors = {{"prompt", view_of(state.prompt, d)},
               {"m", view_of(state.m, d)},
               {"v", view_of(state.v, d)},
               {"best", view_of(state.best, d)}};
  if (!state.mean.empty()) f.tensors["mean"] = view_of(state.mean, d);
  f.metadata = {{"step", std::to_string(state.step)},
                {"best_step", std::to_string(state.best_step)},
                {"stale", std::to_string(state.stale)},
                {"finished", state.finished ? "1" : "0"},
                {"best_score", format("%.17g", state.best_score)},
                {"start_score", format("%.17g", start_score)},
                {"flops", format("%.17g", state.flops)},
                {"kernels", engine_.ops.path},
                {"precision", settings_.precision},
                {"model", engine_.model->sha256},
                {"data", data_.sha256}};
  write_tensors(folder_ + "/checkpoint.safetensors", f);
}

TensorFile Trainer::open_checkpoint(const std::string& folder, const Engine& engine, const Settings& settings,
                                    const Dataset& data) {
  const std::string path = folder + "/checkpoint.safetensors";
  TensorFile f = read_tensors(path);
  const auto same = [&](const char* what, const std::string& now, const char* advice) {
    if (f.text(what) != now)
      fail(Exit::input, "%s: expected %s %s, as the run was started with, found %s; %s", path.c_str(), what,
           f.text(what).c_str(), now.c_str(), advice);
  };
  same("kernels", engine.ops.path,
       "give --kernels with those, on a machine that has them, or start a new run");
  same("precision", settings.precision, "start a new run");
  same("model", engine.model->sha256, "give the model that the run was started with");
  same("data", data.sha256, "give the dataset that the run was started with");
  return f;
}

bool Trainer::resume() {
  const std::string path = folder_ + "/checkpoint.safetensors";
  if (!exists(path)) return false;
  const TensorFile f = open_checkpoint(folder_, engine_, settings_, data_);
  const auto read = [&](const char* name, int64_t rows) {
    const View v = f.matrix(name, rows, engine_.model->width);
    const auto* x = static_cast<const float*>(v.data);
    return std::vector<float>(x, x + v.rows * v.cols);
  };
  state.prompt = read("prompt", settings_.prompt_rows), state.m = read("m", settings_.prompt_rows);
  state.v = read("v", settings_.prompt_rows), state.best = read("best", settings_.prompt_rows);
  state.mean = settings_.centre ? read("mean", 1) : std::vector<float>();
  state.step = static_cast<int64_t>(f.number("step")),
  state.best_step = static_cast<int64_t>(f.number("best_step"));
  state.stale = static_cast<int64_t>(f.number("stale")), state.finished = f.number("finished") != 0;
  state.best_score = f.number("best_score"), start_score = f.number("start_score"),
  state.flops = f.number("flops");
  if (state.step < 0 || state.step > steps_)
    fail(Exit::input, "%s: expected a step of 0 to %lld, found %lld; it belongs to another run", path.c_str(),
         static_cast<long long>(steps_), static_cast<long long>(state.step));
  return true;
}

bool Trainer::run(Interrupt& interrupt) {
  const std::string metrics_path = folder_ + "/metrics.jsonl";
  cut_metrics(metrics_path, state.step);
  const LineFile metrics(metrics_path);
  const int64_t d = engine_.model->width;
  const auto warm = static_cast<double>(
      std::max<int64_t>(1, static_cast<int64_t>(settings_.warmup * static_cast<double>(steps_))));
  std::vector<float> gradient(state.prompt.size());
  Progress progress("training", static_cast<double>(steps_ - state.step), "steps");
  double saved = now_seconds();
  while (state.step < steps_ && !state.finished) {
    const double work = engine_.flops;
    const double loss = step(gradient);
    const double turn = static_cast<double>(state.step + 1) / static_cast<double>(steps_);
    const double rate = settings_.rate * std::min(1.0, static_cast<double>(state.step + 1) / warm) *
                        (0.05 + 0.95 * 0.5 * (1 + std::cos(std::numbers::pi * turn)));
    float norm = 0;
    const View norm_view{&norm, Type::f32, 1, 1, 1};
    engine_.ops.norm(engine_.context, view_of(gradient, d), norm_view);
    if (!std::isfinite(loss) || !std::isfinite(norm))
      fail(Exit::input, "%s: the loss of step %lld is not finite; lower --rate, or check the model file",
           folder_.c_str(), static_cast<long long>(state.step + 1));
    ++state.step;
    engine_.ops.adamw(engine_.context, view_of(state.prompt, d), view_of(gradient, d), view_of(state.m, d),
                      view_of(state.v, d), norm_view, settings_.clip,
                      {rate, 0.9, 0.999, 1e-8, settings_.decay, state.step});
    JsonWriter line(true);
    line.object()
        .field("step", state.step)
        .field("loss", loss)
        .field("gradient_norm", double{norm})
        .field("rate", rate);
    const bool validated = state.step % settings_.validate_every == 0 || state.step == steps_;
    if (validated) {
      const double score = validate(state.prompt);
      line.field("validation_R@10", score);
      if (score > state.best_score || selection_.validation.empty()) {  // without queries: the last prompt
        state.best = state.prompt, state.best_score = score, state.best_step = state.step, state.stale = 0;
      } else if (++state.stale >= settings_.patience) {
        state.finished = true;
      }
    }
    state.flops += engine_.flops - work;
    metrics.add(line.end().text());
    progress.add(1, format("loss %.3f, best R@10 %.1f at step %lld", loss, state.best_score,
                           static_cast<long long>(state.best_step)));
    const bool stop = interrupt.requested();
    if (validated || stop || now_seconds() - saved > 10) {
      metrics.sync();
      checkpoint();
      saved = now_seconds();
    }
    if (stop) return false;
  }
  return true;
}

}  // namespace quest
