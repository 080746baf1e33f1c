// One product on the GPU's kernels against ref.h: weights of any format from a seed, awkward shapes and strides, poison
// and canaries around the output.
#pragma once
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/matmul.cuh"
#include "kernels/nf4.h"
#include "tests/check.h"
#include "tests/cuda/hardware.h"
#include "tests/kernels/encode.h"

namespace quest {

// What a weight may be beside its type; the last three of GPTQ alone.
struct Kind {
  Type type;
  const char* name;
  bool absmax = false;  // nf4 without nested scales
  bool ragged = false;  // any number of columns
};
constexpr Kind kinds[] = {{Type::f32, "f32", false, true},
                          {Type::f16, "f16", false, true},
                          {Type::bf16, "bf16", false, true},
                          {Type::q4_0, "q4_0"},
                          {Type::q4_1, "q4_1"},
                          {Type::q8_0, "q8_0"},
                          {Type::q4_k, "q4_k"},
                          {Type::q6_k, "q6_k"},
                          {Type::nf4, "nf4"},
                          {Type::nf4, "nf4 (absmax)", true},
                          {Type::nf4, "nf4 (any width)", false, true},
                          {Type::gptq2, "gptq2"},
                          {Type::gptq3, "gptq3"},
                          {Type::gptq4, "gptq4"}};

struct GptqForm {
  int64_t group = 32;  // 0: the whole column
  bool zeros = false, order = false;
};

// A weight [rows, cols] of a seed. Holds what its view points to.
class PackedWeight {
 public:
  PackedWeight(const Kind& kind, GptqForm form, int64_t rows, int64_t cols, uint64_t seed)
      : type_(kind.type), rows_(rows), cols_(cols) {
    Random r(seed);
    if (type_ >= Type::gptq2 && type_ <= Type::gptq4) {
      make_gptq(r, form);
    } else if (type_ == Type::nf4) {
      std::vector<float> w(static_cast<size_t>(rows * cols));
      for (size_t i = 0; i < w.size(); ++i)
        w[i] = static_cast<float>(r.normal() * (i / 16384 % 2 ? 4 : 1));  // so that nested scales differ
      nf4_matrix_ = quantize_nf4(w.data(), std::ssize(w), &absmax_);
      *nf4_ = nf4_matrix_.view();
      nf4_->book = book_.data();
      if (kind.absmax) nf4_->absmax = absmax_.data(), nf4_->nested = nullptr, nf4_->scale_codes = nullptr;
    } else if (format_of(type_).elements == 1) {
      std::vector<float> w(static_cast<size_t>(rows * cols));
      for (float& x : w) x = static_cast<float>(r.normal());
      bytes_ = encode(type_, w.data(), rows * cols);
    } else {
      bytes_ = random_blocks(type_, rows * cols, static_cast<uint32_t>(seed));
    }
    bytes_.resize((bytes_.size() + 15) / 16 * 16, 0xff);  // may be read, must not matter
  }
  PackedWeight(const PackedWeight&) = delete;

  View view() {
    void* data = type_ == Type::nf4                               ? static_cast<void*>(nf4_.get())
                 : type_ >= Type::gptq2 && type_ <= Type::gptq4 ? static_cast<void*>(gptq_.get())
                                                                  : bytes_.data();
    return {data, type_, rows_, cols_, cols_};
  }
  int64_t input(int64_t place) const { return order_.empty() ? place : order_[place]; }  // column of x for one of w
  // As ref.h decodes it, rounded to bf16, its columns those of x.
  Matrix operand() {
    Matrix m(rows_, cols_, Type::f32, 0);
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j)
        m.set(i, input(j), round_bf16(static_cast<float>(ref::weight(view(), i, j))));
    return m;
  }

 private:
  void make_gptq(Random& r, GptqForm form) {
    const int64_t bits = static_cast<int>(type_) - static_cast<int>(Type::gptq2) + 2;
    const int64_t group = form.group ? form.group : cols_, groups = (cols_ + group - 1) / group;
    codes_.resize(static_cast<size_t>(rows_ * cols_ / 32 * bits));
    for (uint32_t& word : codes_) word = static_cast<uint32_t>(r.uniform() * 0x1p32);
    scales_.resize(static_cast<size_t>(rows_ * groups));
    for (uint16_t& s : scales_) s = to_f16(static_cast<float>(0.02 + 0.1 * r.uniform()));
    zeros_.resize(form.zeros ? scales_.size() : 0);
    for (uint8_t& z : zeros_) z = static_cast<uint8_t>(r.below((1 << bits) + 1));
    if (form.order) {
      order_.resize(static_cast<size_t>(cols_));
      std::iota(order_.begin(), order_.end(), 0);
      for (int64_t i = cols_ - 1; i > 0; --i) std::swap(order_[i], order_[r.below(i + 1)]);
    }
    *gptq_ = {codes_.data(), scales_.data(), zeros_.empty() ? nullptr : zeros_.data(),
             order_.empty() ? nullptr : order_.data(), static_cast<int32_t>(group)};
  }
  Type type_;
  int64_t rows_, cols_;
  std::vector<uint8_t> bytes_;
  Nf4Matrix nf4_matrix_;
  std::vector<float> absmax_;
  std::vector<float> book_{nf4_book, nf4_book + 16};
  std::vector<uint32_t> codes_;
  std::vector<uint16_t> scales_;
  std::vector<uint8_t> zeros_;
  std::vector<int32_t> order_;
  const std::unique_ptr<Nf4> nf4_ = std::make_unique<Nf4>();  // on the heap, which a card sees
  const std::unique_ptr<Gptq> gptq_ = std::make_unique<Gptq>();
};

struct MatmulCase {
  Kind kind;
  bool forward;
  Rung rung;
  emulator::Schedule schedule;
  int64_t rows, outputs, inputs;  // x [rows, inputs], w [outputs, inputs]
  Type x = Type::bf16, y = Type::f32;
  Into into = Into::set;
  bool aligned = true;  // rows of x begin at 16 bytes
  GptqForm form{};

  std::string name() const {
    std::string s = std::string(kind.name) + (forward ? " forward " : " backward ") +
                    (rung == Rung::plain ? "plain " : rung == Rung::tile ? "tile " : "tensor ") + name_of(schedule) +
                    " " + std::to_string(rows) + "x" + std::to_string(outputs) + "x" + std::to_string(inputs) +
                    (x == Type::bf16 ? " bf16" : " f32") + (aligned ? "" : "+") + (y == Type::bf16 ? ">bf16" : ">f32") +
                    (into == Into::add ? "+=" : "=");
    if (kind.type >= Type::gptq2)
      s += " group " + std::to_string(form.group) + (form.zeros ? " zeros" : "") + (form.order ? " order" : "");
    return s;
  }
};

using MatmulOp = void (*)(Rung, View, View, View, Into, Stream);

// "" or what is wrong. The truth is ref.h's product over the rounded operands, in double. The bound: a rounding of each
// of the sums (inner + 1 with the old y), then the output's own. And to the bit: the sum in fp32, places of the weight
// ascending, which is what each rung says that it computes (of the tensor cores: as they are emulated; a card's own cut off
// what they add, at least 24 bits below the largest term, and know no order: twice the error, and no bits. Fasi et al. 2021,
// Numerical behavior of NVIDIA tensor cores).
inline std::string check(const MatmulCase& c, MatmulOp forward, MatmulOp backward) {
  const int64_t inner = c.forward ? c.inputs : c.outputs, outputs = c.forward ? c.outputs : c.inputs;
  PackedWeight packed(c.kind, c.form, c.outputs, c.inputs, 11 + static_cast<uint64_t>(c.inputs));
  Matrix w = packed.operand();
  Random r(5);
  const int64_t padding = c.aligned ? 8 - inner % 8 : (inner % 2 ? 2 : 3);  // a row's distance: odd, or by 8
  Matrix x(c.rows, inner, c.x, padding), y(c.rows, outputs, c.y, 5);
  x.random(r);
  if (c.into == Into::add) y.random(r, 3);
  Matrix rounded = x.as(Type::bf16), exact = rounded.as(Type::ref_double), want(c.rows, outputs, Type::ref_double);
  (c.forward ? ref::Over<double>::matmul : ref::Over<double>::matmul_backward)(exact.view(), w.view(), want.view(),
                                                                               Into::set);
  Matrix before = y;
  emulator::machine().schedule = c.schedule;
  try {
    (c.forward ? forward : backward)(c.rung, x.view(), packed.view(), y.view(), c.into, nullptr);
    wait_for_kernels();
  } catch (const emulator::Failure& e) {
    return c.name() + ": " + e.what();
  }
  if (!y.padding_intact()) return c.name() + ": wrote beside its output";
  const auto* ws = static_cast<const float*>(w.view().data);
  for (int64_t i = 0; i < c.rows; ++i) {
    const auto* xs = static_cast<const uint16_t*>(row_pointer(rounded.view(), i));
    for (int64_t j = 0; j < outputs; ++j) {
      float sum = 0;
      double size = 0;
      for (int64_t place = 0; place < inner; ++place) {
        const int64_t k = c.forward ? packed.input(place) : place;
        const float product = from_bf16(xs[k]) * (c.forward ? ws[j * c.inputs + k] : ws[k * c.inputs + j]);
        sum += product, size += std::fabs(static_cast<double>(product));
      }
      const float old = c.into == Into::add ? static_cast<float>(before.at(i, j)) : 0.0f;
      const double truth = want.at(i, j) + old, got = y.at(i, j);
      const bool cut_off = on_hardware && c.rung == Rung::tensor;
      const double bound = 1.01 * (static_cast<double>(inner + 1) * eps32 * (cut_off ? 2 : 1) * (size + std::fabs(old)) +
                                   (c.y == Type::bf16 ? eps16 : 0) * (std::fabs(truth) + size * eps32));
      float bits = c.into == Into::add ? old + sum : sum;
      if (c.y == Type::bf16) bits = round_bf16(bits);
      if (!(std::fabs(got - truth) <= bound) || !(cut_off || static_cast<float>(got) == bits))
        return c.name() + " [" + std::to_string(i) + "," + std::to_string(j) + "]: got " + std::to_string(got) +
               ", want " + std::to_string(truth) + " +- " + std::to_string(bound) + ", to the bit " +
               std::to_string(bits);
    }
  }
  return "";
}

}  // namespace quest
