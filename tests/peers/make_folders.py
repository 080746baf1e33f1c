#!/usr/bin/env python3
"""Hugging Face folders for parity.py --embeddings, saved by transformers:

    python tests/peers/make_folders.py MODEL.gguf tokenizer.model OUT

OUT/smollm2    the default model, bfloat16, in several shards
OUT/llama32    random numbers in a small Llama 3.2: llama3 rope scaling, grouped heads, tied embeddings
OUT/llama2     random numbers in a small LLaMA 2 with SentencePiece's tokenizer.model, float16, a head of its own
"""
import pathlib
import shutil
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import reference
from tokenizer import reference as library_tokenizer


def main():
    gguf, spm, out = sys.argv[1:]
    out = pathlib.Path(out)
    torch.manual_seed(1)
    tokenizer = library_tokenizer(gguf, "smollm")
    model = reference.load(gguf)
    model.to(torch.bfloat16).save_pretrained(out / "smollm2", max_shard_size="100MB")
    tokenizer.save(str(out / "smollm2" / "tokenizer.json"))
    shape = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8)
    config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, rope_theta=500000.0, tie_word_embeddings=True,
                         max_position_embeddings=4096, rope_scaling={
                             "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64}, initializer_range=0.06, **shape)
    LlamaForCausalLM(config).save_pretrained(out / "llama32")
    library_tokenizer(gguf, "llama3").save(str(out / "llama32" / "tokenizer.json"))
    config = LlamaConfig(vocab_size=32000, num_key_value_heads=8, initializer_range=0.06, **shape)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(out / "llama2")
    shutil.copy(spm, out / "llama2" / "tokenizer.model")


if __name__ == "__main__":
    main()
