#!/bin/sh
# Trains at ten budgets of --memory, from the least that quest names up, and looks at the process from outside:
# each runs under RLIMIT_DATA = budget + 64 MiB, and the kernel's count of its memory that no file holds (RssAnon)
# is read twenty times a second through the whole run. Fails when a run takes more than its budget, when its
# losses are not those of the run without a budget, or when a byte less than the least is not refused.
#
#   sh tests/memory.sh [OPTION OF quest train...]
#
# Without options: a small job of the default model and dataset, eleven times; about twenty minutes on two cores.
set -u
quest=${QUEST:-./quest}
[ $# -gt 0 ] || set -- --min-positives 30 --test-queries 50 --validation 0 --ratio 0.03 --steps 2
[ -x "$quest" ] || { echo "$quest: expected the program, found none; run make first"; exit 4; }
log=$(mktemp) || exit 4
trap 'rm -f "$log"' EXIT
wrong=0

mib() { awk "BEGIN { printf \"%.1f\", $1 / 1048576 }"; }

# Runs under a budget (0: none); prints its row of the table.
try() {
  budget=$1 name=memory-$1
  shift
  rm -rf "runs/$name"
  if [ "$budget" = 0 ]; then
    "$quest" train --name "$name" "$@" >"$log" 2>&1 &
  else
    prlimit --data=$((budget + 67108864)) "$quest" train --name "$name" --memory "$budget" "$@" >"$log" 2>&1 &
  fi
  child=$! peak=0
  while kill -0 "$child" 2>/dev/null; do
    now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$child/status" 2>/dev/null)
    [ "${now:-0}" -le "$peak" ] || peak=$now
    sleep 0.05
  done
  wait "$child" || { echo "--memory $budget: the run failed:"; tail -1 "$log"; wrong=$((wrong + 1)); return; }
  same=yes
  cmp -s runs/memory-0/metrics.jsonl "runs/$name/metrics.jsonl" || same=no
  [ "$budget" = 0 ] || [ "$same$((0 < peak && peak * 1024 <= budget))" = yes1 ] || wrong=$((wrong + 1))
  planned=$(sed -n 's/.*given, \([0-9.]* [GM]iB\) planned.*/\1/p' "$log")
  passes=$(sed -n 's/^memory: \(one pass.*\|.* passes of.*\)/\1/p' "$log" | head -1)
  seconds=$(sed -n '/^  "seconds": {$/,/^  }/s/^    "training": \([^,]*\),*$/\1/p' "runs/$name/result.json")
  pairs=$(awk "BEGIN { printf \"%.2f\", 64 * $(wc -l <"runs/$name/metrics.jsonl") / $seconds }")
  echo "| $([ "$budget" = 0 ] && echo none || mib "$budget") | ${passes:-one pass of 128 texts, all activations kept} |" \
    "$planned | $(mib $((peak * 1024))) | $pairs | $same |"
}

least=$("$quest" train --name memory-least --memory 1 "$@" 2>&1 | sed -n 's/.*give --memory \([0-9]*\).*/\1/p')
[ -n "$least" ] || { echo "expected a refusal of --memory 1 that names the least, found none"; exit 1; }
"$quest" train --name memory-least --memory $((least - 1)) "$@" >"$log" 2>&1
[ $? = 4 ] || { echo "--memory $((least - 1)), a byte less than the least, was not refused"; wrong=1; }
echo "| --memory, MiB | a step of 64 pairs | planned | RssAnon at most, MiB | pairs/s | same losses |"
echo "|---|---|---|---|---|---|"
try 0 "$@"
for tenths in 10 15 20 25 30 40 50 60 80 120; do
  try $((least / 10 * tenths + least % 10 * (tenths == 10))) "$@"
done
[ "$wrong" = 0 ] || { echo "$wrong wrong"; exit 1; }
rm -rf runs/memory-*
echo "no budget was exceeded, and no loss changed"
