// Progress of a long step on stderr: share, rate, time left. On a terminal one line is rewritten; elsewhere a
// plain line appears at most every ten seconds and at the end.
#pragma once
#include <cstdint>
#include <string>

namespace quest {

double now_seconds();  // monotonic clock

class Progress {
 public:
  Progress(const std::string& label, double total, const std::string& unit);
  ~Progress();  // prints the closing line
  void add(double amount, const std::string& note = "");

 private:
  void print(bool last);
  std::string label_, unit_, note_;
  double total_, done_ = 0, start_ = now_seconds(), printed_ = start_;
  bool terminal_;
};

// 75 -> "1 min 15 s"
std::string human_seconds(double seconds);

}  // namespace quest
