// Progress of a long step on stderr: share, rate, time left. On a terminal one line is rewritten; elsewhere a
// plain line appears at most every ten seconds and at the end.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "kernels/base/error.h"

namespace quest {

inline double now_seconds() {  // monotonic clock
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// 75 -> "1 min 15 s"
inline std::string human_seconds(double s) {
  if (s < 10) return format("%.1f s", s);
  const int t = static_cast<int>(std::min(s + 0.5, 1e9));
  if (t < 60) return format("%d s", t);
  if (t < 3600) return format("%d min %d s", t / 60, t % 60);
  return format("%d h %d min", t / 3600, t / 60 % 60);
}

class Progress {
 public:
  Progress(const std::string& label, double total, const std::string& unit)
      : label_(label), unit_(unit), total_(total) {}
  ~Progress() {  // the closing line, if there is memory for it
    try {
      print(true);
    } catch (const std::bad_alloc&) {
    }
  }
  void add(double amount, const std::string& note = "") {
    done_ += amount;
    note_ = note;
    const double now = now_seconds();
    if (now - printed_ < (terminal_ ? 0.2 : 10.0)) return;
    printed_ = now;
    print(false);
  }

 private:
  void print(bool last) {
    const double spent = now_seconds() - start_, rate = spent > 0 ? done_ / spent : 0;
    const std::string time = last       ? "took " + human_seconds(spent)
                             : rate > 0 ? human_seconds((total_ - done_) / rate) + " left"
                                        : "";
    fprintf(stderr, "%s%s: %.0f/%.0f %s, %.4g/s, %s%s%s%s", terminal_ ? "\r\033[K" : "", label_.c_str(),
            done_, total_, unit_.c_str(), rate, time.c_str(), note_.empty() ? "" : ", ", note_.c_str(),
            terminal_ && !last ? "" : "\n");
  }
  std::string label_, unit_, note_;
  double total_, done_ = 0, start_ = now_seconds(), printed_ = start_;
  bool terminal_ = isatty(2);
};

}  // namespace quest
