# From what ptxas -v says: a line for each kernel and architecture; fails when one spills or takes more than 99 KiB of
# static shared memory, or when nothing was compiled.
/Compiling entry function/ { split($0, part, "'"); kernel = part[2]; arch = part[4] }
/bytes stack frame/ { spills = $5 + $9; stack = $1 }
/Used [0-9]+ registers/ {
  shared = 0
  for (i = 2; i <= NF; ++i) if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
  for (i = 2; i <= NF; ++i) if ($(i + 1) ~ /^registers/) registers = $i
  printf "%s  %3d registers  %5d bytes shared  %3d stack  %d spilled  %s\n", arch, registers, shared, stack, spills, kernel
  ++kernels
  if (spills || shared > 99 * 1024) { printf "%s: %s spills %d bytes\n", arch, kernel, spills; ++bad }
}
END {
  printf "%d kernels, %d of them spill or take too much\n", kernels, bad
  exit bad > 0 || kernels == 0
}
