#!/bin/sh
# run.sh SECONDS [TARGET...]: runs build/fuzz/tools/fuzz so long on each target, from its seeds and what tests/fuzz/corpus
# keeps. Prints one line a target; an input that breaks something is left in build/fuzz/TARGET and named.
set -u
cd "$(dirname "$0")/../.." || exit
seconds=$1; shift
[ $# -gt 0 ] || set -- gguf safetensors folder tokenizer_json sentencepiece raw sparse tsv json_lines gzip dataset hnsw \
  prompt peft checkpoint run_config npy
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0 QUEST_FUZZ QUEST_SEEDS
echo "target           executions  coverage  corpus  result"
status=0
for QUEST_FUZZ; do
  QUEST_SEEDS=build/fuzz/corpus/$QUEST_FUZZ
  mkdir -p "$QUEST_SEEDS" "build/fuzz/$QUEST_FUZZ"
  kept=tests/fuzz/corpus/$QUEST_FUZZ
  [ -d "$kept" ] || kept=
  log=build/fuzz/$QUEST_FUZZ.log result=clean
  build/fuzz/tools/fuzz -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$QUEST_FUZZ/" "$QUEST_SEEDS" $kept >"$log" 2>&1 || { result="BROKEN, see $log"; status=1; }
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  last=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | tr -cd 0-9)
  printf '%-15s  %10s  %8s  %6s  %s\n' "$QUEST_FUZZ" "${runs:-?}" "${last:-?}" "$(ls "$QUEST_SEEDS" | wc -l)" "$result"
done
exit $status
