#!/bin/sh
# gpu-check.sh [STAGE...]: what only a GPU can show, on a machine that has nvcc, g++ and this checkout: build, test, sanitize,
# kernels, step, peers; without a name all of them. Each takes less than nine minutes, needs only `build` before it, prints its
# table and leaves it with the numbers (STAGE.txt, STAGE.json) in build/gpu-check, or in $OUT.
#   gpu-check.sh deps DIR    copies the libraries and headers of this machine to DIR, for a machine that can install nothing
#   DEPS_DIR=DIR             builds with them
cd "$(dirname "$0")/.." || exit 4
out=${OUT:-build/gpu-check} scratch=$(mktemp -d) limit=500
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"

fact() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -1; }
# What stands before the numbers of every stage: {"stage": ..., and no end.
begin() {
  printf '{"stage": "%s", "card": "%s", "driver": "%s", "date": "%s", "commit": "%s"' "$1" "$(fact name)" \
    "$(fact driver_version)" "$(date -u +%F)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
}
now() { date +%s; }

build() {
  start=$(now)
  make CUDA=1 DEPS=0 DEPS_DIR="$DEPS_DIR" build/tests/gpu quest >"$out/build.txt" 2>&1
  status=$?
  tail -3 "$out/build.txt"
  (begin build && printf ', "seconds": %d, "status": %d}\n' $(($(now) - start)) $status) >"$out/build.json"
  return $status
}

# Every kernel, rung and format against ref.h, the graph's gradient against the CPU's, equal bits, quest train.
run_tests() {
  start=$(now)
  timeout $limit build/tests/gpu >"$scratch/test.txt" 2>&1
  status=$?
  grep -v '^ .* | ' "$scratch/test.txt" >"$out/test.txt"
  tail -30 "$out/test.txt"
  (begin test && printf ', "seconds": %d, "status": %d, "result": "%s"}\n' $(($(now) - start)) $status \
    "$(tail -1 "$out/test.txt" | tr -d '"\\')") >"$out/test.json"
  return $status
}

# memcheck and racecheck over the kernels' tests. The tests' matrices lie in one block: what goes from one into the next
# their canaries see, and memcheck does not; shared memory, alignment and races are its part.
sanitize() {
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [ "$tool" ] || { echo "sanitize: no compute-sanitizer here" | tee "$out/sanitize.txt"; return 0; }
  (begin sanitize; : >"$out/sanitize.txt"
    for check in memcheck racecheck; do
      timeout $((limit / 2)) "$tool" --tool $check --error-exitcode 9 build/tests/gpu \
        --gtest_filter='CudaMatmul.*:CudaOps.Attention*:CudaOps.Rms*:CudaOps.Contrast*:CudaTrain.Gradient*' >"$scratch/$check" 2>&1
      printf ', "%s": %d' $check $?
      { echo "$check"; grep -v '^ .* | ' "$scratch/$check" | tail -8; } >>"$out/sanitize.txt"
    done
    echo '}') >"$out/sanitize.json"
  cat "$out/sanitize.txt"
  ! grep -q 'check": [1-9]' "$out/sanitize.json"
}

# bench STAGE ARGUMENTS: a run of quest bench on the card: a line of the table for each of its results, its JSON to the
# stage's list. What fails leaves its last sentence there, and the rest goes on.
bench() {
  name=$1 && shift
  echo "quest bench $*" >>"$out/$name.txt"
  timeout 240 ./quest bench --device "${DEVICE:-gpu}" --json "$@" >"$scratch/part.json" 2>"$scratch/part.log" || {
    echo "  failed with status $?: $(tail -1 "$scratch/part.log")" >>"$out/$name.txt"
    failures=1
    return
  }
  grep cuBLAS "$scratch/part.log" >>"$out/$name.txt"
  awk -F'": ' '{ value = $2; sub(/,$/, "", value); gsub(/"/, "", value); sub(/ *"/, "", $1) }
    $1 == "name" { what = value; share = "" } $1 == "unit" { unit = value } $1 == "median" { median = value }
    $1 == "least" { least = value } $1 == "most" { most = value } $1 == "how" { how = "  " value }
    $1 == "of_ceiling" { share = sprintf("%3.0f %% of the ceiling", 100 * value) }
    /^    }/ { printf "  %-40s %10.5g %s (%.5g to %.5g) %s%s\n", what, median, unit, least, most, share, how; how = "" }
  ' "$scratch/part.json" >>"$out/$name.txt"
  { printf ', ' && cat "$scratch/part.json"; } >>"$scratch/$name"
}
# measure STAGE FUNCTION: the stage's table and JSON.
measure() {
  : >"$out/$1.txt" >"$scratch/$1"
  failures=0
  $2
  (begin "$1" && printf ', "runs": [null' && cat "$scratch/$1" && echo ']}') >"$out/$1.json"
  cat "$out/$1.txt"
  return $failures
}

# Fused products at LLaMA-7B's shapes beside cuBLAS and the card's ceilings; every format at one size.
kernels() {
  for rows in 128 512 2048 8192; do bench kernels ceilings ops --rounds 5 --shape llama-7b --weights NF4 --rows $rows; done
  for type in Q4_0 Q4_1 Q8_0 Q4_K Q6_K; do
    bench kernels ops --rounds 3 --shape llama-7b --weights $type --rows 2048
  done
}

# Steps of LLaMA-7B's shape within two budgets of the card's memory.
step() {
  for memory in 24GiB 6GiB; do
    bench step train-prefix --rounds 5 --shape llama-7b --weights NF4 --length 64 --prompt-rows 16 --batch 64 --memory $memory
    bench step train-prefix --rounds 1 --shape llama-7b --weights NF4 --length 64 --prompt-rows 16 --batch 1024 --memory $memory
  done
}

# The same steps by PyTorch and PEFT, where there are such.
peers() {
  python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "peers: no PyTorch with CUDA here" | tee "$out/peers.txt"; return 0; }
  timeout $limit python3 tests/peers/gpu.py --json "$out/peers.json" >"$out/peers.txt" 2>&1
  status=$?
  cat "$out/peers.txt"
  return $status
}

deps() {
  mkdir -p "$1/include" "$1/lib"
  for header in zlib.h zconf.h simdjson.h utf8proc.h hnswlib gtest; do
    cp -rT "/usr/include/$header" "$1/include/$header" || exit 4
  done
  for library in z simdjson utf8proc gtest; do
    cp -L "$(${CXX:-g++} -print-file-name=lib$library.a | grep / || ${CXX:-g++} -print-file-name=lib$library.so)" "$1/lib/" || exit 4
  done
  for file in "$1"/lib/*.so; do ln -sf "$(basename "$file")" "$(objdump -p "$file" | sed -n "s,.*SONAME *,$1/lib/,p")"; done
  du -sh "$1"
}

[ "$1" = deps ] && { deps "${2:?gpu-check.sh deps DIR}"; exit; }
failed=
for stage in ${*:-build test sanitize kernels step peers}; do
  echo "== $stage"
  case $stage in
    test) run_tests ;;
    kernels | step) measure $stage $stage ;;
    build | sanitize | peers) $stage ;;
    *) echo "gpu-check: expected build, test, sanitize, kernels, step or peers, found '$stage'" >&2; exit 2 ;;
  esac || failed="$failed $stage"
done
[ ! "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
