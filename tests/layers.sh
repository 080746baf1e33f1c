#!/bin/sh
# layers.sh [ROOT]: the dependency rule of the design. Prints every line that breaks it, and fails if there is one.
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$here/..}" || exit
export LC_ALL=C
find kernels model sampling index train tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | sort |
  xargs awk -f "$here/strip.awk" | awk '
  BEGIN {
    knows["kernels/base"] = "kernels/base"
    knows["kernels"] = "kernels kernels/base"
    knows["kernels/cuda"] = "kernels/cuda kernels kernels/base"
    knows["index"] = "index kernels kernels/base"
    knows["sampling"] = "sampling kernels/base"
    knows["model"] = "model kernels kernels/base"
    knows["train"] = "train model sampling index kernels kernels/base"
    knows["tools"] = "tools train model sampling index kernels kernels/base"
    # No allocation hides in what a step runs: kernels (not kernels/base), forward, backward, the step.
    # ref.h is the reference of the tests, nf4 quantises while a model is loaded; no step runs them.
    bare = "^(kernels/[^/]*|model/(forward|backward)\\.[a-z]*|train/step\\.[a-z]*)$"
    device = "^kernels/cuda/device\\.h$"  # nvcc, or the emulator of the tests: the only place that knows
    # Files with instruction-set flags: an inline function from elsewhere would be compiled with those flags.
    tile = "^kernels/(tile_[^/]*|[^/]*avx[^/]*)\\.cpp$"
    c_headers = "<(immintrin|stdint|stddef|string|math|float)\\.h>"
  }
  function broken(rule) { print file ":" line ": " rule ":" code; ++errors }
  {
    split($0, part, ":"); file = part[1]; line = part[2]
    code = substr($0, length(file) + length(line) + 3)
    folder = file; sub("/[^/]*$", "", folder)
    if (code ~ /^[ \t]*#[ \t]*include[ \t]*"/) {
      split(code, quoted, "\"")
      target = quoted[2]; if (!sub("/[^/]*$", "", target)) target = "?"
      if (index(" " knows[folder] " ", " " target " ") == 0 && !(file ~ device && target == "tests/cuda"))
        broken(folder " must not include " target)
    }
    if (code ~ /#[ \t]*include/ && file ~ tile && code !~ c_headers && code !~ "\"kernels/tile[a-z_]*\\.h\"")
      broken("a tile file includes only intrinsics and C headers")
    if (code ~ /#[ \t]*include/ && code ~ /hnswlib\.h/ && ++hnswlib > 1) broken("only one file includes hnswlib.h")
    if (code ~ /^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else)/ && file != "kernels/backend.cpp" && file !~ device)
      broken("no conditional compilation outside kernels/backend.cpp and kernels/cuda/device.h")
    if (file ~ bare && file !~ "^kernels/(ref|nf4)\\." && code ~ /std::(vector|string|function)[^_a-z]|<(vector|string|functional)>/)
      broken("no std::vector, std::string or std::function in what a step runs")
  }
  END {
    if (NR == 0) print "layers: no source files found"
    exit errors > 0 || NR == 0
  }'
