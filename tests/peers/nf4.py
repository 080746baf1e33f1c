#!/usr/bin/env python3
"""NF4 of every linear layer of a model, by quest and by bitsandbytes on the CPU:

    make build/tools/nf4
    python tests/peers/nf4.py MODEL.gguf [build/tools/nf4]        needs torch >= 2, bitsandbytes, gguf

Codes and fp32 absmax (compress_statistics=False) must be equal to the bit. Of the nested level, whose offset is summed
and whose codes are searched differently: the offset within 2 ulp, at most 0.5 % of the codes another one, and each of
those within 2^-15 of the boundary between the two. Exits with 1 when a limit is exceeded.
"""
import subprocess
import sys

import bitsandbytes
import bitsandbytes.functional as F
import gguf
import numpy as np
import torch


def by_quest(tool, w):
    out = subprocess.run([tool], input=w.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    blocks, at, parts = -(-w.size // 64), 0, []
    for count, kind in (((w.size + 1) // 2, np.uint8), (blocks, np.float32), (blocks, np.uint8),
                        (-(-blocks // 256), np.float32), (1, np.float32)):
        parts.append(np.frombuffer(out, kind, count, at))
        at += parts[-1].nbytes
    assert at == len(out)
    return parts


def main():
    model, tool = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "build/tools/nf4"
    matrices = elements = blocks = other = bad = 0
    worst_ulp = worst_boundary = 0.0
    for t in gguf.GGUFReader(model).tensors:
        if not t.name.startswith("blk.") or len(t.shape) != 2:
            continue
        w = np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), np.float32)
        codes, absmax, scale_codes, nested, offset = by_quest(tool, w)
        packed, plain = F.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4", compress_statistics=False)
        _, state = F.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4", compress_statistics=True)
        if not np.array_equal(packed.numpy().ravel(), codes) or not np.array_equal(plain.absmax.numpy(), absmax):
            print(f"{t.name}: codes or absmax differ: {(packed.numpy().ravel() != codes).sum()} bytes, "
                  f"{(plain.absmax.numpy() != absmax).sum()} absmax")
            bad += 1
        ulp = abs(float(state.offset) - float(offset[0])) / float(np.spacing(offset[0]))
        worst_ulp = max(worst_ulp, ulp)
        theirs, table = state.absmax.numpy(), np.sort(state.state2.code.numpy().astype(np.float64))
        differ = np.flatnonzero(theirs != scale_codes)
        x = (absmax[differ].astype(np.float64) - float(offset[0])) / nested[differ // 256]
        a, b = table[scale_codes[differ]], table[theirs[differ]]
        if len(differ):
            worst_boundary = max(worst_boundary, float(np.abs(x - (a + b) / 2).max()))
        matrices, elements, blocks, other = matrices + 1, elements + w.size, blocks + len(absmax), other + len(differ)
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}: {matrices} matrices, {elements:,} weights: "
          f"codes and fp32 absmax of {matrices - bad} equal to the bit")
    print(f"nested level: offset within {worst_ulp:.0f} ulp (limit 2); {other} of {blocks:,} scale codes differ "
          f"({100 * other / blocks:.3f} %, limit 0.5), at most {worst_boundary:.2e} from the boundary (limit {2**-15:.2e})")
    good = not bad and matrices and worst_ulp <= 2 and other <= 0.005 * blocks and worst_boundary <= 2**-15
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
