#!/bin/sh
# size.sh [ROOT]: lines of code by folder, without tests, blank lines and comments. The goals of the first two stages,
# 5000 and 6200, were missed (5708, 7463), and so were 7400 (8659) and, with the CUDA backend, 8800. This fails above a
# ratchet, today's size, and when a line of code is longer
# than 110 columns.
goal=8800 ratchet=10907
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$here/..}" || exit
export LC_ALL=C
code=$(mktemp) long=$(mktemp)
trap 'rm -f "$code" "$long"' EXIT
find kernels model sampling index train tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | sort |
  xargs awk -v limit=110 -f "$here/strip.awk" >"$code" 2>"$long"
awk -F: -v goal=$goal -v most=$ratchet '
  { folder = $1; sub("/[^/]*$", "", folder); lines[folder]++; total++ }
  END {
    count = split("kernels/base kernels kernels/cuda model sampling index train tools", order, " ")
    for (i = 1; i <= count; ++i) printf "%6d  %s\n", lines[order[i]], order[i]
    printf "%6d  in all; the goal is %d, %d to go\n", total, goal, (total > goal ? total - goal : 0)
    exit total > most
  }' "$code"
status=$?
scripts=$(cat Makefile .ci/run tools/*.sh 2>/dev/null | grep -vc '^[[:space:]]*\(#.*\)\?$')
echo "       (and $scripts in Makefile and scripts)"
[ "$status" = 0 ] || echo "size: more than $ratchet lines of code" >&2
[ ! -s "$long" ] || { echo "size: lines of code over 110 columns:"; cat "$long"; status=1; } >&2
exit $status
