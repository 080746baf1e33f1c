#!/bin/sh
# gpu-check.sh [STAGE...]: what only a GPU can show, on a machine that has nvcc, g++ and this checkout: build, test, sanitize,
# kernels, step, peers; without a name all of them. Each takes less than nine minutes, needs only `build` before it, prints its
# table and leaves it with the numbers (STAGE.txt, STAGE.json) in build/gpu-check, or in $OUT.
#   gpu-check.sh deps DIR    copies the libraries and headers of this machine to DIR, for a machine that can install nothing
#   DEPS_DIR=DIR             builds with them
cd "$(dirname "$0")/.." || exit 4
out=${OUT:-build/gpu-check} limit=520
mkdir -p "$out"

fact() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -1; }
# What stands before the numbers of every stage: {"stage": ..., and no end.
begin() {
  printf '{"stage": "%s", "card": "%s", "driver": "%s", "date": "%s", "commit": "%s"' "$1" "$(fact name)" \
    "$(fact driver_version)" "$(date -u +%F)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
}
seconds() { date +%s; }

build() {
  start=$(seconds)
  make CUDA=1 DEPS_DIR="$DEPS_DIR" build/tests/gpu quest >"$out/build.log" 2>&1
  status=$?
  tail -3 "$out/build.log"
  (begin build && printf ', "seconds": %d, "status": %d}\n' $(($(seconds) - start)) $status) >"$out/build.json"
  return $status
}

# Every kernel, rung and format against ref.h, the graph's gradient against the CPU's, equal bits, quest train.
run_tests() {
  start=$(seconds)
  timeout $limit build/tests/gpu >"$out/test.txt" 2>&1
  status=$?
  grep -v '^ .* | ' "$out/test.txt" | tail -30
  (begin test && printf ', "seconds": %d, "status": %d, "result": "%s"}\n' $(($(seconds) - start)) $status \
    "$(tail -1 "$out/test.txt")") >"$out/test.json"
  return $status
}

# memcheck and racecheck over the kernels' tests.
sanitize() {
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [ "$tool" ] || { echo "sanitize: no compute-sanitizer here" | tee "$out/sanitize.txt"; return 0; }
  (begin sanitize; : >"$out/sanitize.txt"
    for check in memcheck racecheck; do
      timeout $((limit / 2)) "$tool" --tool $check --error-exitcode 9 build/tests/gpu \
        --gtest_filter='CudaMatmul.*:CudaOps.Attention*:CudaOps.Rms*:CudaOps.Contrast*:CudaTrain.Gradient*' >"$out/$check.log" 2>&1
      printf ', "%s": %d' $check $?
      { echo "$check"; grep -v '^ .* | ' "$out/$check.log" | tail -8; } >>"$out/sanitize.txt"
    done
    echo '}') >"$out/sanitize.json"
  cat "$out/sanitize.txt"
  ! grep -q 'check": [1-9]' "$out/sanitize.json"
}

# A run of quest bench on the card: a line of the table for each of its results, its JSON to the stage's list.
bench() {
  name=$1 && shift
  echo "quest bench $*" >>"$out/$name.txt"
  ./quest bench --device "${DEVICE:-gpu}" --rounds 5 --json "$@" >"$out/part.json" 2>"$out/part.log" || {
    tail -1 "$out/part.log" >>"$out/$name.txt"
    return 1
  }
  awk -F'": ' '{ value = $2; sub(/,$/, "", value); gsub(/"/, "", value); sub(/ *"/, "", $1) }
    $1 == "name" { what = value; share = "" } $1 == "unit" { unit = value } $1 == "median" { median = value }
    $1 == "least" { least = value } $1 == "most" { most = value } $1 == "how" { how = "  " value }
    $1 == "of_ceiling" { share = sprintf("%3.0f %% of the ceiling", 100 * value) }
    /^    }/ { printf "  %-40s %10.5g %s (%.5g to %.5g) %s%s\n", what, median, unit, least, most, share, how; how = "" }
  ' "$out/part.json" >>"$out/$name.txt"
  { printf ', ' && cat "$out/part.json"; } >>"$out/$name.list"
}

# Fused products at LLaMA-7B's shapes beside cuBLAS and the card's ceilings; every format at one size.
kernels() {
  : >"$out/kernels.txt" >"$out/kernels.list"
  bench kernels ceilings ops --shape llama-7b --weights NF4 --rows 128 || return 1
  for rows in 512 2048 8192; do bench kernels ops --shape llama-7b --weights NF4 --rows $rows || return 1; done
  for type in Q4_0 Q4_1 Q8_0 Q4_K Q6_K; do bench kernels ops --shape llama-7b --weights $type --rows 2048 || return 1; done
  (begin kernels && printf ', "runs": [null' && cat "$out/kernels.list" && echo ']}') >"$out/kernels.json"
  cat "$out/kernels.txt"
  command -v nvdisasm >/dev/null && sh tests/cuda/projection.sh
  return 0
}

# Steps of LLaMA-7B's shape within two budgets of the card's memory.
step() {
  : >"$out/step.txt" >"$out/step.list"
  for memory in 24GiB 6GiB; do
    for batch in 64 1024; do
      bench step train-prefix --shape llama-7b --weights NF4 --length 64 --prompt-rows 16 --batch $batch --memory $memory || return 1
    done
  done
  bench step train-suffix --shape llama-7b --weights NF4 --length 64 --prompt-rows 16 --batch 64 --memory 24GiB || return 1
  (begin step && printf ', "runs": [null' && cat "$out/step.list" && echo ']}') >"$out/step.json"
  cat "$out/step.txt"
}

# The same steps by PyTorch and PEFT, where there are such.
peers() {
  python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
    echo "peers: no PyTorch with CUDA here" | tee "$out/peers.txt"; return 0; }
  timeout $limit python3 tests/peers/gpu.py --json "$out/peers.json" | tee "$out/peers.txt"
}

deps() {
  mkdir -p "$1/include" "$1/lib"
  for header in zlib.h zconf.h simdjson.h utf8proc.h hnswlib gtest; do
    cp -r "/usr/include/$header" "$1/include/" || exit 4
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
    build | sanitize | kernels | step | peers) $stage ;;
    *) echo "gpu-check: expected build, test, sanitize, kernels, step or peers, found '$stage'" >&2; exit 2 ;;
  esac || failed="$failed $stage"
done
[ ! "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
