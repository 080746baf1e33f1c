#!/usr/bin/env python3
"""The default model in every other GGUF type, by llama.cpp's own quantiser, for parity.py --embeddings:

    pip install --no-deps llama-cpp-cffi       (a built llama.cpp; any library that exports llama_model_quantize will do)
    python tests/peers/requantise.py MODEL.gguf OUT
    for f in OUT/*.gguf; do python tests/peers/parity.py $f --embeddings --texts 32; done

Where the system's libstdc++ is older than the one it was built with ("undefined symbol: __cxa_call_terminate"), preload
a library that defines that symbol. The model is first written as F16, then from there in each type. Its width of 576 is no multiple of 256, so llama.cpp
keeps K types to the down projections (1536 inputs) and falls back to Q5_0, Q5_1 or Q8_0 elsewhere; the types of each
file are printed.
"""
import collections
import ctypes
import glob
import importlib.util
import pathlib
import sys

import gguf

TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q4_K_S": 14,
         "Q5_K_S": 16, "Q6_K": 18}  # enum llama_ftype


class Parameters(ctypes.Structure):
    """llama_model_quantize_params, and room for what later versions add."""
    _fields_ = [("threads", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_type", ctypes.c_int),
                ("embedding_type", ctypes.c_int), ("allow_requantize", ctypes.c_bool), ("rest", ctypes.c_byte * 95)]


def library():
    folder = pathlib.Path(importlib.util.find_spec("llama").origin).parent
    lib = ctypes.CDLL(glob.glob(str(folder / "*cpu*.so"))[0])
    lib.llama_model_quantize_default_params.restype = Parameters
    lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    lib.llama_model_quantize.restype = ctypes.c_uint32
    lib.llama_backend_init()
    return lib


def main():
    model, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    lib = library()
    for name, ftype in TYPES.items():
        source, to = model if name == "F16" else str(out / "F16.gguf"), out / f"{name}.gguf"
        if name == "F32":
            source = model
        p = lib.llama_model_quantize_default_params()
        p.threads, p.ftype, p.allow_requantize = 2, ftype, True
        if lib.llama_model_quantize(source.encode(), str(to).encode(), ctypes.byref(p)):
            sys.exit(f"{to}: llama_model_quantize failed")
        types = collections.Counter(t.tensor_type.name for t in gguf.GGUFReader(to).tensors)
        print(f"{to}: {to.stat().st_size:,} bytes; " + ", ".join(f"{n} {k}" for k, n in types.items()), flush=True)


if __name__ == "__main__":
    main()
