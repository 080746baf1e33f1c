#include "kernels/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "kernels/base/error.h"

namespace quest {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string human_seconds(double s) {
  if (s < 10) return format("%.1f s", s);
  const int t = static_cast<int>(std::min(s + 0.5, 1e9));
  if (t < 60) return format("%d s", t);
  if (t < 3600) return format("%d min %d s", t / 60, t % 60);
  return format("%d h %d min", t / 3600, t / 60 % 60);
}

Progress::Progress(const std::string& label, double total, const std::string& unit)
    : label_(label), unit_(unit), total_(total), terminal_(isatty(2)) {}

void Progress::add(double amount, const std::string& note) {
  done_ += amount;
  note_ = note;
  const double now = now_seconds();
  if (now - printed_ < (terminal_ ? 0.2 : 10.0)) return;
  printed_ = now;
  print(false);
}

void Progress::print(bool last) {
  const double spent = now_seconds() - start_, rate = spent > 0 ? done_ / spent : 0;
  const std::string time = last       ? "took " + human_seconds(spent)
                           : rate > 0 ? human_seconds((total_ - done_) / rate) + " left"
                                      : "";
  fprintf(stderr, "%s%s: %.0f/%.0f %s, %.4g/s, %s%s%s%s", terminal_ ? "\r\033[K" : "", label_.c_str(), done_,
          total_, unit_.c_str(), rate, time.c_str(), note_.empty() ? "" : ", ", note_.c_str(),
          terminal_ && !last ? "" : "\n");
}

Progress::~Progress() { print(true); }

}  // namespace quest
