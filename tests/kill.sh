#!/bin/sh
# Kills a job with SIGKILL at moments uniform over its whole run (text pass, training, checkpoint write,
# index, result), resumes it each time, and compares prompt.safetensors, metrics.jsonl and result.json (but
# for its object "seconds") byte for byte with the run that nobody killed. A line of metrics.jsonl is a step
# done; those behind the checkpoint's step are repeated, and cost the run's own seconds a step: more than 30 s
# are a failure.
#
#   sh tests/kill.sh [KILLS [OPTION OF quest train...]]
#
# Without options: 20 kills of a job of about two minutes on two cores, with the default model and dataset.
# The whole takes an hour, so it is no part of make test. In short, with the model of the tests:
#
#   sh tests/kill.sh 5 --model tests/golden/tiny.gguf --min-positives 30 --test-queries 200 --ratio 0.1 \
#     --length 16 --steps 1000 --batch 16 --patience 1000
#
# QUEST=build/san/quest tries another program. The run folders runs/kill-N are removed when all went well.
set -u
quest=${QUEST:-./quest}
kills=${1:-20}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- --min-positives 12 --test-queries 200 --ratio 0.2 --length 24 --steps 80 \
  --batch 32 -K 4 --validate-every 20 --patience 100  # 21 TFLOP
[ -x "$quest" ] || { echo "$quest: expected the program, found none; run make first"; exit 4; }
log=$(mktemp) || exit 4
trap 'rm -f "$log"' EXIT

calc() { awk "BEGIN { printf \"%.2f\", $1 }"; }
now() { date +%s.%N; }
without_seconds() { sed '/^  "seconds": {$/,/^  }/d' "$1"; }
steps_done() { if [ -f "$1/metrics.jsonl" ]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }
steps_kept() {
  kept=$(head -c 4096 "$1/checkpoint.safetensors" 2>/dev/null | grep -ao '"step": "[0-9]*"' | tr -cd 0-9)
  echo "${kept:-0}"
}
give_up() { echo "$1"; tail -3 "$log"; exit 1; }

for i in $(seq 0 "$kills"); do rm -rf "runs/kill-$i"; done
start=$(now)
"$quest" train --name kill-0 "$@" >"$log" 2>&1 || give_up "the job failed:"
whole=$(calc "$(now) - $start")
steps=$(steps_done runs/kill-0)
training=$(sed -n '/^  "seconds": {$/,/^  }/s/^    "training": \([^,]*\),*$/\1/p' runs/kill-0/result.json)
echo "not killed: $whole s, $steps steps in $(calc "$training") s"
echo "kill  at second  done  kept  repeated s  result     the last that it said"

wrong=0 most=0
for i in $(seq 1 "$kills"); do
  run=runs/kill-$i
  at=$(calc "$whole * ($i - 0.5) / $kills")
  "$quest" train --name "kill-$i" "$@" >"$log" 2>&1 &
  child=$!
  sleep "$at"
  kill -9 "$child" 2>/dev/null
  wait "$child" 2>/dev/null
  said=$(tail -n 1 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-50)
  done=$(steps_done "$run") kept=$(steps_kept "$run")
  repeated=$(calc "($done - $kept) * $training / $steps")
  if [ -f "$run/config.json" ]; then  # otherwise there is nothing to resume yet
    "$quest" train --resume "$run" >"$log" 2>&1 || give_up "kill $i: the run did not resume:"
  else
    "$quest" train --name "kill-$i" "$@" >"$log" 2>&1 || give_up "kill $i: the run did not start again:"
  fi
  result=equal
  for file in prompt.safetensors metrics.jsonl; do
    cmp -s "$run/$file" "runs/kill-0/$file" || result=DIFFERENT
  done
  without_seconds "$run/result.json" >"$log"
  without_seconds runs/kill-0/result.json | cmp -s - "$log" || result=DIFFERENT
  [ $result = equal ] && [ "$(calc "$repeated <= 30")" = 1.00 ] || wrong=$((wrong + 1))
  most=$(awk "BEGIN { print ($repeated > $most) ? $repeated : $most }")
  printf '%4d  %9s  %4d  %4d  %10s  %-9s  %s\n' "$i" "$at" "$done" "$kept" "$repeated" "$result" "$said"
done
echo "$kills kills, $wrong wrong; at most $most s of training steps repeated"
[ $wrong -eq 0 ] || exit 1
for i in $(seq 0 "$kills"); do rm -rf "runs/kill-$i"; done
