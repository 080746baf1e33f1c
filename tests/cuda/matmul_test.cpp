// Every rung, format and direction of the GPU's matmul, executed on the CPU at all schedules over awkward shapes.
#ifdef QUEST_EMULATE
#define cuda_matmul matmul_of_this_file  // the program has another copy, for the op table
#define cuda_matmul_backward matmul_backward_of_this_file
#include "kernels/cuda/matmul.cu"
#endif

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <set>

#include "tests/cuda/matmul_check.h"

using namespace quest;
using emulator::Schedule;

namespace {

// What may vary beside kind, direction, rung and schedule: the number of levels of each factor.
constexpr int64_t row_counts[] = {1, 2, 17, 63, 64, 65, 127, 130}, output_counts[] = {1, 5, 31, 64, 97, 129, 200},
                  widths[] = {1, 2, 3, 5, 9}, odd_widths[] = {1, 7, 33, 66, 197}, groups[] = {32, 64, 128, 0};
constexpr int levels[] = {8, 7, 5, 4, 4, 16};
constexpr int factors = std::size(levels);
using Choice = std::array<int, factors + 4>;  // the factors; then kind, direction, rung, schedule

MatmulCase make(const Choice& c) {
  MatmulCase m{kinds[c[factors]], c[factors + 1] == 0, static_cast<Rung>(c[factors + 2]),
               static_cast<Schedule>(c[factors + 3]), row_counts[c[0]], output_counts[c[1]], 0};
  const int64_t block = format_of(m.kind.type).elements;
  m.inputs = m.kind.ragged ? odd_widths[c[2]] : block == 256 ? 256 * (1 + c[2] % 2) : 32 * widths[c[2]];
  m.x = c[3] % 2 ? Type::f32 : Type::bf16, m.aligned = c[3] / 2;
  m.y = c[4] % 2 ? Type::bf16 : Type::f32, m.into = c[4] / 2 ? Into::add : Into::set;
  m.form = {groups[c[5] % 4], c[5] / 4 % 2 == 1, c[5] / 8 == 1};
  return m;
}

// One case for every kind, direction, rung and schedule, so chosen that every pair of levels of any two factors is met:
// of many draws the one with most new pairs.
std::vector<Choice> pairwise() {
  std::vector<Choice> out;
  std::set<std::array<int, 4>> met;
  Random r(3);
  const auto pairs = [&](const Choice& c, auto&& f) {
    for (int a = 0; a < std::ssize(c); ++a)
      for (int b = a + 1; b < std::ssize(c); ++b) f(std::array<int, 4>{a, c[a], b, c[b]});
  };
  for (int kind = 0; kind < std::ssize(kinds); ++kind)
    for (int direction = 0; direction < 2; ++direction)
      for (int rung = 0; rung < 3; ++rung)
        for (int schedule = 0; schedule < 3; ++schedule) {
          Choice best{};
          int most = -1;
          for (int draw = 0; draw < 40; ++draw) {
            Choice c{};
            for (int f = 0; f < factors; ++f) c[f] = static_cast<int>(r.below(levels[f]));
            c[factors] = kind, c[factors + 1] = direction, c[factors + 2] = rung, c[factors + 3] = schedule;
            int fresh = 0;
            pairs(c, [&](const std::array<int, 4>& p) { fresh += !met.contains(p); });
            if (fresh > most) most = fresh, best = c;
          }
          pairs(best, [&](const std::array<int, 4>& p) { met.insert(p); });
          out.push_back(best);
        }
  return out;
}

// conflicts of ldmatrix so far
int64_t conflicts() { return emulator::machine().bank_conflicts; }

TEST(CudaMatmul, EveryRungFormatDirectionAndSchedule) {
  const int64_t conflicts_before = conflicts(), blocks_before = emulator::machine().blocks;
  int count = 0;
  for (const Choice& choice : pairwise()) {
    const MatmulCase c = make(choice);
    EXPECT_EQ(check(c, cuda_matmul, cuda_matmul_backward), "");
    std::printf("%s%s", count++ % 4 ? " | " : count > 1 ? "\n  " : "  ", c.name().c_str());
  }
  std::printf("\n  %d products, %ld blocks\n", count, static_cast<long>(emulator::machine().blocks - blocks_before));
  EXPECT_EQ(conflicts(), conflicts_before) << "ldmatrix: rows of a tile share banks";
}

#ifdef QUEST_EMULATE
// The chunks that eight neighbouring threads store at once stand in eight groups of banks.
TEST(CudaMatmul, TilesAreStoredWithoutBankConflicts) {
  const auto distinct = [](auto&& place_of) {
    for (int first = 0; first < 256; first += 8)
      for (int quarter = 0; quarter < 4; ++quarter) {
        std::set<int> banks;
        for (int t = first; t < first + 8; ++t) banks.insert(place_of(t, quarter) / 8 % 8);
        EXPECT_EQ(banks.size(), 8u) << first;
      }
  };
  using matmul_kernels::place;
  distinct([](int t, int quarter) { return place<8>(t / 8 + 32 * quarter, t % 8); });
  distinct([](int t, int quarter) { return place<8>(t / 2, 4 * (t % 2) + quarter); });
  distinct([](int t, int quarter) { return place<16>(t / 4, 4 * (t % 4) + quarter); });
  std::set<int> all;
  for (int row = 0; row < 64; ++row)
    for (int c = 0; c < 16; ++c) all.insert(place<16>(row, c));
  EXPECT_TRUE(all.size() == 1024 && *all.begin() == 0 && *all.rbegin() == 1023 * 8);
}
#endif

// Where the output stands among others, and how many there are, changes no bit of it.
TEST(CudaMatmul, BitsDependOnOneRowAlone) {
  for (const bool forward : {true, false})
    for (const Rung rung : {Rung::plain, Rung::tile, Rung::tensor}) {
      PackedWeight w(Kind{Type::nf4, "nf4"}, {}, 160, 96, 3);
      const int64_t inner = forward ? 96 : 160, outputs = forward ? 160 : 96;
      Random r(9);
      Matrix x(131, inner, forward ? Type::bf16 : Type::f32, 0), y(131, outputs, Type::f32, 0);
      x.random(r);
      const auto op = forward ? cuda_matmul : cuda_matmul_backward;
      op(rung, x.view(), w.view(), y.view(), Into::set, nullptr);
      wait_for_kernels();
      for (const int64_t row : {0, 15, 64, 127, 130}) {
        Matrix alone(1, outputs, Type::f32, 0);
        op(rung, rows_of(x.view(), row, 1), w.view(), alone.view(), Into::set, nullptr);
        wait_for_kernels();
        EXPECT_EQ(memcmp(alone.view().data, row_pointer(y.view(), row), static_cast<size_t>(outputs) * 4), 0);
      }
    }
}

TEST(CudaMatmul, NaNStaysInItsRowAndColumnAndIsNeverLost) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Rung rung : {Rung::plain, Rung::tile, Rung::tensor})
    for (const bool forward : {true, false}) {
      Random r(2);
      Matrix x(11, 51, Type::f32, 2), w(51, 51, Type::f32, 0), y(11, 51, Type::f32, 1);
      x.random(r).set(9, 50, nan);
      w.random(r).set(forward ? 50 : 3, forward ? 3 : 50, nan);  // column 50 of B
      (forward ? cuda_matmul : cuda_matmul_backward)(rung, x.view(), w.view(), y.view(), Into::set, nullptr);
      wait_for_kernels();
      for (int64_t i = 0; i < 11; ++i)
        for (int64_t j = 0; j < 51; ++j) EXPECT_EQ(std::isnan(y.at(i, j)), i == 9 || j == 50) << i << " " << j;
    }
}

// A value and key projection write column slices of one matrix.
TEST(CudaMatmul, SlicesOfAWiderMatrix) {
  PackedWeight w(Kind{Type::q4_1, "q4_1"}, {}, 40, 64, 3);
  Random r(4);
  Matrix x(9, 64, Type::bf16, 0), wide(9, 100, Type::bf16), alone(9, 40, Type::bf16);
  x.random(r), wide.fill(7);
  cuda_matmul(Rung::tensor, x.view(), w.view(), alone.view(), Into::set, nullptr);
  cuda_matmul(Rung::tensor, x.view(), w.view(), columns_of(wide.view(), 40, 40), Into::set, nullptr);
  wait_for_kernels();
  for (int64_t i = 0; i < 9; ++i)
    for (int64_t j = 0; j < 100; ++j) EXPECT_EQ(wide.at(i, j), j < 40 || j >= 80 ? 7 : alone.at(i, j - 40));
  EXPECT_TRUE(wide.padding_intact());
}

TEST(CudaMatmul, EmptyProductsAreZeroOrNothing) {
  PackedWeight none(Kind{Type::bf16, "bf16"}, {}, 3, 0, 1);
  Matrix x(2, 0, Type::bf16, 8), y(2, 3, Type::f32), nothing(0, 3, Type::f32);
  for (const Rung rung : {Rung::plain, Rung::tile, Rung::tensor}) {
    y.fill(2);
    cuda_matmul(rung, x.view(), none.view(), y.view(), Into::add, nullptr);
    wait_for_kernels();
    EXPECT_EQ(y.at(1, 2), 2);
    cuda_matmul(rung, x.view(), none.view(), y.view(), Into::set, nullptr);
    wait_for_kernels();
    EXPECT_EQ(y.at(1, 2), 0);
    cuda_matmul(rung, rows_of(x.view(), 0, 0), none.view(), nothing.view(), Into::set, nullptr);
  }
}

TEST(CudaMatmul, RefusesWhatItCannotDecode) {
  Matrix x(0, 32, Type::bf16, 0), y(0, 3, Type::f32);  // no rows are enough to know
  const View w{nullptr, Type::q5_0, 3, 32, 32};
  try {
    cuda_matmul(Rung::tensor, x.view(), w, y.view(), Into::set, nullptr);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::input);
    EXPECT_NE(std::string(e.what()).find("Q5_0"), std::string::npos);
  }
}

}  // namespace
