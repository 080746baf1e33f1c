#!/bin/sh
# projection.sh [M N K]: what the tensor-core kernels of kernels/cuda/matmul.cu execute, counted in their compiled code, and
# the time that a product [M,K] x [K,N] would take. From machine code where nvdisasm is found (NVDISASM=path), otherwise
# from PTX, whose instructions are not the machine's. Nothing is run: a lower bound by throughput, not a measurement.
#
# CARD='arch multiprocessors clock flops bytes cublas': FLOP a cycle and multiprocessor of mma.sync, bytes/s of DRAM, FLOP/s
# of cuBLAS; without it an RTX 3090: 71.2 TFLOP/s at 1.695 GHz, 936 GB/s, cuBLAS 64 TFLOP/s.
#
# The unit is a step of a tile: 128 x 128 outputs, 64 inner indices, 8 warps on a multiprocessor. Cycles:
#   tensor  8 warps * mma * 4096 FLOP / flops         (16x8x16)
#   issue   8 warps * instructions / 4 schedulers     (both ways of reading x, f32 and bf16, are counted)
#   shared  8 warps * bytes / 128                     (ldmatrix, stores and copies 512 bytes; loads 128 or 512)
#   dram    bytes of x, w and y, each once, shared among all steps of the product
# A step takes the largest. Time = rounds of a tile for each multiprocessor * steps * largest / clock. The last column:
# if no instruction were issued while the tensor cores work (tensor + issue).
cd "$(dirname "$0")/../.." || exit
set -- "${1:-2048}" "${2:-4096}" "${3:-4096}" ${CARD:-86 82 1.695e9 512 936e9 64e12}
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
nvdisasm=${NVDISASM:-$(command -v nvdisasm)}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
if [ "$nvdisasm" ]; then
  "$nvcc" -std=c++20 -O3 -I. -arch="sm_$4" -cubin -o "$out/code" kernels/cuda/matmul.cu && "$nvdisasm" -c "$out/code" >"$out/text"
else
  "$nvcc" -std=c++20 -O3 -I. -arch="sm_$4" -ptx -o "$out/text" kernels/cuda/matmul.cu
fi || exit
echo "from $([ "$nvdisasm" ] && echo "machine code of" || echo PTX for) sm_$4; M $1, N $2, K $3"
awk -v M="$1" -v N="$2" -v K="$3" -v multiprocessors="$5" -v clock="$6" -v flops="$7" -v bytes="$8" -v cublas_flops="$9" '
  function finish(   i, j, k, best, from, to, inside, text, count, kind, n, largest, rounds, ms, cublas, x_bytes, dram) {
    if (name !~ /tensor_product/ || !lines) return
    # The main loop: the shortest run from a label to a branch back to it that holds 64 mma.
    best = 1e9
    for (i = 1; i <= branches; ++i) {
      from = label[target[i]]; to = at[i]
      if (!from || from >= to) continue
      n = 0
      for (j = from; j <= to; ++j) n += code[j] ~ /HMMA|mma\.sync/
      if (n >= 64 && to - from < best) { best = to - from; first = from; last = to }
    }
    if (best == 1e9) return
    # Loops within it copy x element by element: for the edges, and where rows do not begin at 16 bytes.
    for (j in slow) delete slow[j]
    for (i = 1; i <= branches; ++i) {
      from = label[target[i]]; to = at[i]
      if (from > first && to < last && from < to) for (j = from; j <= to; ++j) slow[j] = 1
    }
    for (kind in count) delete count[kind]
    for (j = first; j <= last; ++j) {
      text = code[j]
      if (slow[j] || text == "") continue
      ++count["all"]
      if (text ~ /HMMA|mma\.sync/) ++count["mma"]
      else if (text ~ /LDSM|ldmatrix/) ++count["ldmatrix"]
      else if (text ~ /LDGSTS|cp\.async\.c[ag]/) ++count["copy"]
      else if (text ~ /STS\.128|st\.shared\.v4|st\.v4/) ++count["store"]
      else if (text ~ /(^| )LDS|ld\.shared/ && text !~ /!PT/) count["load"] += text ~ /\.128|\.v4/ ? 4 : 1
      else if (text ~ /LDG|ld\.global/) ++count["global"]
    }
    tensor = 8 * count["mma"] * 4096 / flops
    issue = 8 * count["all"] / 4
    shared = 8 * (count["ldmatrix"] * 4 + count["copy"] * 4 + count["store"] * 4 + count["load"])
    forward = name ~ /ELb1E/
    match(name, /GptqRunsILi[234]|Nf4Runs|Nf4Element|Q[0-9]_[0-9K]|PlainElementILN[^E]*E[012]/)
    kind = substr(name, RSTART, RLENGTH)
    bits = kind ~ /Gptq/ ? substr(kind, length(kind)) + 0.25 : kind ~ /Nf4/ ? 4.127 : kind ~ /Q4_1/ ? 5 : kind ~ /Q8/ ? 8.5 : \
           kind ~ /Q6/ ? 6.5625 : kind ~ /Q4/ ? 4.5 : kind ~ /E0$/ ? 32 : 16
    sub(/GptqRunsILi/, "gptq", kind); sub(/Nf4Runs/, "nf4", kind); sub(/Nf4Element/, "nf4 (any width)", kind)
    sub(/PlainElement.*E0/, "f32", kind); sub(/PlainElement.*E1/, "f16", kind); sub(/PlainElement.*E2/, "bf16", kind)
    x_bytes = forward ? 2 : 4
    steps = int((K + 63) / 64)
    rounds = int((int((M + 127) / 128) * int((N + 127) / 128) + multiprocessors - 1) / multiprocessors)
    dram = (M * K * x_bytes + N * K * bits / 8 + M * N * 4) / bytes * clock / (rounds * steps)
    largest = tensor
    if (issue > largest) largest = issue
    if (shared > largest) largest = shared
    if (dram > largest) largest = dram
    ms = rounds * steps * largest / clock * 1e3
    cublas = 2 * M * N * K / cublas_flops * 1e3
    printf "| %s | %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %.2f | %.2f | %.2f |\n", kind, forward ? "forward" : "dX", \
      count["mma"], count["ldmatrix"], count["store"] + count["load"] + count["copy"], count["all"], tensor, issue, shared, \
      dram, largest, ms, ms / cublas, ms / cublas / largest * (tensor + issue) | "sort"
  }
  function begin(called) {
    finish(); name = called; lines = branches = 0
    for (i in label) delete label[i]
  }
  BEGIN {
    print "| format | | mma | ldmatrix | other shared | instructions | tensor | issue | shared | dram | cycles | ms | of cuBLAS | no overlap |"
    print "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    fflush()
  }
  /^[ \t]*\.section[ \t]+\.text\./ { split($2, part, ","); begin(part[1]); next }
  /\.entry/ { begin($0); next }
  /^[ \t]*[.$]L[A-Za-z_0-9]*:/ { l = $1; sub(/:.*/, "", l); label[l] = ++lines; code[lines] = ""; next }
  /;/ {
    text = $0
    sub(/^[ \t]*\/\*[0-9a-f]*\*\/[ \t]*/, "", text); sub(/;.*/, "", text); gsub(/^[ \t]+|[ \t]+$/, "", text)
    if (text ~ /^\./ || text == "") next
    code[++lines] = text
    if (text ~ /BRA|bra/ && match(text, /[.$]L[A-Za-z_0-9]+/)) { at[++branches] = lines; target[branches] = substr(text, RSTART, RLENGTH) }
  }
  END { finish() }' "$out/text"
