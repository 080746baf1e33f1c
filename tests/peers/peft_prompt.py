#!/usr/bin/env python3
"""Prompts of quest in PEFT, and PEFT's in quest: the same embeddings.

    python tests/peers/peft_prompt.py FOLDER [--quest ./quest] [--run RUN]

FOLDER is a Hugging Face folder (make_folders.py). A prompt made and saved by PEFT is read by `quest embed --prompt`; with
--run also the prompt of a run (--placement prefix, of the model in FOLDER), which `quest export` writes, is loaded by
PEFT. Last token after the final norm, unit vectors, fp32; |a - b| / |b - mean b| must be at most 1e-3.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer

import reference

TEXTS = ["a fast web server", "Gödel, Escher, Bach", "the quick brown fox jumps over 13 lazy dogs", "x",
         "lossless compression of sparse matrices by delta coding"]


def by_peft(model, tokenizer, texts):
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            h = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        rows.append((h[0, -1] / h[0, -1].norm()).numpy())
    return np.stack(rows)


def by_quest(options, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "e.npy"
        subprocess.run([options.quest, "embed", *arguments, "--precision", "f32", "--out", out, *TEXTS], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return np.load(out)


def compare(what, ours, theirs):
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - theirs.mean(0))
    print(f"{what}: {error:.2e} (limit 1e-3)")
    return not error <= 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--quest", default="./quest")
    parser.add_argument("--run")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=7, prompt_tuning_init="RANDOM")
        model = get_peft_model(reference.load(options.model), config).eval()
        model.save_pretrained(folder)
        bad += compare("a prompt by PEFT, read by quest",
                       by_quest(options, "--model", options.model, "--prompt", folder), by_peft(model, tokenizer, TEXTS))
        if options.run:
            made = pathlib.Path(folder) / "from-quest"
            subprocess.run([options.quest, "export", options.run, made], check=True, stdout=subprocess.DEVNULL)
            model = PeftModel.from_pretrained(reference.load(options.model), str(made)).eval()
            bad += compare("a prompt by quest, loaded by PEFT",
                           by_quest(options, "--model", options.model, "--prompt", f"{options.run}/prompt.safetensors"),
                           by_peft(model, tokenizer, TEXTS))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
