// --memory: how a job divides the bytes that its process may take. Beside the arena stand the program, the
// heap of what is loaded already, and by formula what the results will take; the arena is what they leave.
#pragma once
#include "train/plan.h"
#include "train/task.h"

namespace quest {

// Bytes of the heap that a job's results take from the text pass on, when most of them are there at once; and
// its metrics, from TF-IDF's on.
size_t results_bytes(const Task&, const Corpus&, int64_t width, int threads);
size_t metrics_bytes(const Task&);

struct Division {
  int64_t rows;   // tokens of a pass over texts
  size_t cache;   // bytes for keys and values of texts
  size_t peak;    // of passes and steps, beside the cache
  double slower;  // work of a step, as a multiple of that with all the memory it could use
};
// Of the divisions tried, the fastest of the bytes that are left when results take `beside`. pair_tokens: of
// the texts that steps read. Throws Error(machine) when nothing fits, with the least that would.
Division divide(const Engine&, const Task&, const Corpus&, int64_t pair_tokens, size_t beside);

// Makes the arena for embedding texts; as many tokens a pass, up to the encoder's, as there is memory for
// when results take `beside`. Throws Error(machine).
void reserve_for(Engine&, Encoder&, const std::vector<Text>&, size_t beside);

}  // namespace quest
