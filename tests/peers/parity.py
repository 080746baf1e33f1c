#!/usr/bin/env python3
"""Compares quest with transformers on a real model: embeddings, loss, prompt gradient and training.

    make build/tools/tokenize build/tools/parity
    python tests/peers/parity.py MODEL.gguf [--data ../shared/data/foldoc] [--tools build/tools] [--work build/parity]
    python tests/peers/parity.py MODEL --embeddings           those only, also of a Hugging Face folder
    python tests/peers/parity.py MODEL.gguf --self-check      the reference alone: padding, batches, double precision

256 documents of DATA (title and content, cut at 64 tokens by quest's own tokenizer), prefix prompt K=16 and suffix
K=8, last and mean pooling. transformers computes in fp32 (kept in WORK/reference for the next time),
quest in fp32 and bf16. Measured, with its limit (exit status 1 when one is exceeded, or not a number):

    embeddings  |a - b| / |b - mean b|, Frobenius          1e-3 fp32, 5e-2 bf16
    loss        |a - b| / |b|                              1e-4 fp32; one way and symmetric
    gradient    |a - b| / |b|, of the prompt               1e-4 fp32; one way and symmetric
    prompt      |a - b| / |b - start| after 20 steps       1e-2 fp32; AdamW on one batch of 16 queries, one way, at
                                                           the paper's rate of 1e-3. (--rate 1e-2 is chaotic with a
                                                           prefix prompt: the loss jumps at step 6, and a difference of
                                                           5e-3 after the first step has grown to 0.29 by the last.)

Interface: `parity FOLDER` reads FOLDER/request.json and these files, and writes its results beside them. All arrays are
raw, little endian, row by row. T texts, K prompt rows, d width, S steps, B pairs, U queries, L labels.
    request.json        model (path), precision "f32"|"bf16", placement "prefix"|"suffix", pooling "last"|"mean",
                        texts T, prompt_rows K, width d, steps S; when S > 0 also pairs B, queries U, labels L,
                        temperature, symmetric (bool), rate, beta1, beta2, epsilon, decay, clip
    offsets.bin         int32 [T+1]   text t is tokens[offsets[t]..offsets[t+1])
    tokens.bin          int32 [offsets[T]]
    prompt.bin          f32   [K,d]
  when S > 0 (one and the same batch in every step):
    query_texts.bin     int32 [U]     indices of texts; a text may be query and label, or be neither
    label_texts.bin     int32 [L]
    pairs.bin           int32 [B,2]   row of the queries, row of the labels
    hidden.bin          uint8 [B,L]   1: left out of the pair's denominator
    hidden_queries.bin  uint8 [B,U]   the same for the other direction, used when symmetric
  results:
    embeddings.bin      f32   [T,d]   with the prompt as given; pooled after the final norm, not normalised
  when S > 0:
    losses.bin          f64   [S]     before each step
    gradient.bin        f32   [K,d]   of the first loss, not clipped
    prompts.bin         f32   [S,K,d] after each step
The tokens come from `tokenize MODEL` (texts on stdin, each closed by NUL; a line of ids each).
"""
import argparse
import gzip
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import time

import numpy as np
import torch

import reference

TEXTS, CUT, QUERIES, STEPS = 256, 64, 16, 20
PROMPT_ROWS = {"prefix": 16, "suffix": 8}
TEMPERATURE = 0.05
ADAMW = {"rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "decay": 0.0, "clip": 1.0}
LIMITS = {"embeddings f32": 1e-3, "embeddings bf16": 5e-2, "loss f32": 1e-4, "gradient f32": 1e-4, "prompt f32": 1e-2}
INPUTS = {"offsets": np.int32, "tokens": np.int32, "prompt": np.float32, "query_texts": np.int32,
          "label_texts": np.int32, "pairs": np.int32, "hidden": np.uint8, "hidden_queries": np.uint8}
RESULTS = {"embeddings": np.float32, "losses": np.float64, "gradient": np.float32, "prompts": np.float32}


def read_lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def tokenize(options, texts):
    if options.self_check:  # no quest needed: any tokens will do
        rng = np.random.default_rng(1)
        return [rng.integers(17, 49152, n).tolist() for n in rng.integers(1, CUT + 1, len(texts))]
    blob = b"".join(text.replace("\0", " ").encode() + b"\0" for text in texts)
    out = subprocess.run([options.tools / "tokenize", options.model], input=blob, stdout=subprocess.PIPE, check=True)
    lines = out.stdout.decode().splitlines()
    assert len(lines) == len(texts)
    return [[int(i) for i in line.split()][:CUT] for line in lines]


def documents(options, count):
    """Token ids of `count` documents spread evenly over the file, and the records themselves."""
    records = read_lines(options.data / "trn.json.gz")
    records = [records[i * len(records) // count] for i in range(count)]
    return tokenize(options, [f"{r['title']}\n{r['content']}" for r in records]), records


def make_batch(options, ids, records):
    """texts and batch: the first documents that have labels, with up to two labels each, one of them given twice."""
    titles = [r["title"] for r in read_lines(options.data / "lbl.json.gz")]
    chosen = [i for i, r in enumerate(records) if r["target_ind"] and ids[i]][:QUERIES]
    labels = list(dict.fromkeys(l for i in chosen for l in records[i]["target_ind"][:2]))
    pairs = [(q, labels.index(l)) for q, i in enumerate(chosen) for l in records[i]["target_ind"][:2]]
    labels.append(labels[0])  # another label with the same text: hidden
    positives = {(q, j) for q, i in enumerate(chosen) for j, l in enumerate(labels) if l in records[i]["target_ind"]}
    texts = [ids[i] for i in chosen] + tokenize(options, [titles[l] for l in labels])
    queries, answers = list(range(len(chosen))), list(range(len(chosen), len(texts)))
    hidden, hidden_queries = reference.hidden_masks(texts, queries, answers, pairs, positives)
    return texts, {"query_texts": queries, "label_texts": answers, "pairs": torch.tensor(pairs), "hidden": hidden,
                   "hidden_queries": hidden_queries, "temperature": TEMPERATURE}


def start_prompt(model, rows):
    """Rows of the embedding table, which start at the scale that the model knows."""
    table = model.get_input_embeddings().weight
    return table[torch.from_numpy(np.random.default_rng(rows).integers(17, len(table), rows))].detach().clone()


def request(options, texts, prompt, placement, pooling, precision, batch=None, symmetric=False, steps=0):
    """What is asked of both sides: header (request.json) and arrays."""
    header = {"model": str(options.model), "precision": precision, "placement": placement, "pooling": pooling,
              "texts": len(texts), "prompt_rows": len(prompt), "width": prompt.shape[1], "steps": steps}
    arrays = {"offsets": np.cumsum([0] + [len(t) for t in texts]), "tokens": np.concatenate(texts),
              "prompt": prompt.numpy()}
    if steps:
        header.update(pairs=len(batch["pairs"]), queries=len(batch["query_texts"]), labels=len(batch["label_texts"]),
                      temperature=batch["temperature"], symmetric=symmetric, **(ADAMW | {"rate": options.rate}))
        arrays.update({name: np.asarray(batch[name]) for name in INPUTS if name in batch})
    return header, {name: np.ascontiguousarray(a, INPUTS[name]) for name, a in arrays.items()}


def shapes(header):
    S, K, d = header["steps"], header["prompt_rows"], header["width"]
    result = {"embeddings": (header["texts"], d)}
    return {**result, "losses": (S,), "gradient": (K, d), "prompts": (S, K, d)} if S else result


def write_request(folder, header, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.bin"):
        old.unlink()
    (folder / "request.json").write_text(json.dumps(header, indent=2) + "\n")
    for name, array in arrays.items():
        array.tofile(folder / f"{name}.bin")


def read_request(folder):
    header = json.loads((folder / "request.json").read_text())
    read = lambda name: np.fromfile(folder / f"{name}.bin", INPUTS[name])
    offsets, tokens = read("offsets"), read("tokens")
    texts = [tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    prompt, batch = torch.from_numpy(read("prompt").reshape(header["prompt_rows"], header["width"])), None
    if header["steps"]:
        B = header["pairs"]
        batch = {"query_texts": read("query_texts").tolist(), "label_texts": read("label_texts").tolist(),
                 "pairs": torch.from_numpy(read("pairs").reshape(B, 2)), "temperature": header["temperature"],
                 "hidden": torch.from_numpy(read("hidden").reshape(B, -1)).bool(),
                 "hidden_queries": torch.from_numpy(read("hidden_queries").reshape(B, -1)).bool()}
    return header, texts, prompt, batch


def answer(folder, model):
    """The results of a request by transformers, written as quest's side writes them."""
    header, texts, prompt, batch = read_request(folder)
    with torch.no_grad():
        result = {"embeddings": reference.embed(model, texts, prompt, header["placement"], header["pooling"])}
    if header["steps"]:
        arguments = model, texts, prompt, header["placement"], header["pooling"], batch, header["symmetric"]
        result["gradient"] = reference.loss_and_gradient(*arguments)[1]
        result["losses"], result["prompts"] = reference.train(*arguments, header["steps"], header)
    for name, value in result.items():
        value.numpy().astype(RESULTS[name]).tofile(folder / f"{name}.bin")


def read_results(folder, header):
    """Results by name; a missing file or a wrong size stops."""
    return {name: np.fromfile(folder / f"{name}.bin", RESULTS[name]).reshape(shape).astype(np.float64)
            for name, shape in shapes(header).items()}


def digest(header, arrays):
    model = pathlib.Path(header["model"])
    size = sum(f.stat().st_size for f in model.glob("*.safetensors")) if model.is_dir() else model.stat().st_size
    key = {**header, "model": [model.name, size], "precision": ""}
    h = hashlib.sha256(json.dumps(key).encode())
    for array in arrays.values():
        h.update(array.tobytes())
    return h.hexdigest()[:16]


def by_reference(options, model, header, arrays):
    folder = options.work / "reference" / digest(header, arrays)
    if not (folder / "done").exists():
        start = time.time()
        write_request(folder, header, arrays)
        answer(folder, model)
        (folder / "done").touch()
        print(f"  (transformers: {time.time() - start:.0f} s)", file=sys.stderr)
    return read_results(folder, header)


def by_quest(options, header, arrays):
    folder = options.work / "quest"
    write_request(folder, header, arrays)
    subprocess.run([options.tools / "parity", folder], check=True)
    return read_results(folder, header)


def distance(a, b):
    return float(np.linalg.norm(a - b))


def measure(ours, theirs, prompt):
    """Every error that the results allow, by name."""
    b = theirs["embeddings"]
    errors = {"embeddings": distance(ours["embeddings"], b) / distance(b, b.mean(0))}
    if "losses" in theirs:
        errors["loss"] = abs(ours["losses"][0] - theirs["losses"][0]) / abs(theirs["losses"][0])
        errors["gradient"] = distance(ours["gradient"], theirs["gradient"]) / distance(theirs["gradient"], 0)
    if len(theirs.get("prompts", ())) == STEPS:
        end = theirs["prompts"][-1]
        errors["prompt"] = distance(ours["prompts"][-1], end) / distance(end, prompt)
    return errors


def compare(options, model, texts, prompt, placement, pooling, batch=None, symmetric=False, steps=0):
    """Prints one row for each error; returns how many exceed their limit."""
    bad = 0
    for precision in ("f32", "bf16"):
        header, arrays = request(options, texts, prompt, placement, pooling, precision, batch, symmetric, steps)
        theirs = by_reference(options, model, header, arrays)
        for name, error in measure(by_quest(options, header, arrays), theirs, arrays["prompt"]).items():
            if steps and name == "embeddings":
                continue  # measured with all texts
            limit = LIMITS.get(f"{name} {precision}", math.inf)
            good = error <= limit  # False for NaN
            bad += not good
            way = ("symmetric" if symmetric else "one way") if name in ("loss", "gradient") else ""
            print(f"| {placement} | {pooling} | {precision} | {name} {way} | {error:.2e} | "
                  f"{'' if limit == math.inf else f'{limit:.0e}'} | {'' if good else 'FAILED'} |", flush=True)
    return bad


def parity(options):
    model = reference.load(options.model)
    ids, records = documents(options, options.texts)
    ids = [i or [0] for i in ids]
    texts, batch = make_batch(options, ids, records)
    print(f"{len(ids)} texts, {sum(map(len, ids))} tokens; batch of {len(batch['query_texts'])} queries, "
          f"{len(batch['label_texts'])} labels, {len(batch['pairs'])} pairs, {int(batch['hidden'].sum())} hidden\n")
    print("| prompt | pooling | precision | what | error | limit | |\n|---|---|---|---|---|---|---|")
    bad = 0
    for placement in reference.PLACEMENTS:
        prompt = start_prompt(model, PROMPT_ROWS[placement])
        for pooling in reference.POOLINGS:
            bad += compare(options, model, ids, prompt, placement, pooling)
            if options.embeddings:
                continue
            bad += compare(options, model, texts, prompt, placement, pooling, batch, True, 1)
            bad += compare(options, model, texts, prompt, placement, pooling, batch, False, options.steps)
    print(f"\n{bad} of the limits exceeded" if bad else "\nall within the limits")
    return 1 if bad else 0


def self_check(options):
    """The reference against itself: what padding, batching and float32 change, on a few texts of random tokens."""
    model = reference.load(options.model)
    ids, records = documents(options, 24)
    texts, batch = make_batch(options, ids, records)
    texts = [t[:24] for t in texts[:4]] + [t[:8] for t in texts[4:]]
    double, worst = None, 0.0
    for placement in reference.PLACEMENTS:
        prompt = start_prompt(model, PROMPT_ROWS[placement])
        for pooling in reference.POOLINGS:
            with torch.no_grad():
                alone = reference.embed(model, ids, prompt, placement, pooling, rows=1).numpy()
                padded = reference.embed(model, ids, prompt, placement, pooling, rows=4096).numpy()
            error = distance(alone, padded) / distance(alone, alone.mean(0))
            print(f"{placement} {pooling}: one by one against one padded batch, fp32: {error:.1e}", flush=True)
            worst = max(worst, error)
    double = reference.load(options.model, torch.float64)
    for placement in reference.PLACEMENTS:
        prompt = start_prompt(model, PROMPT_ROWS[placement])
        wide = prompt.double()
        with torch.no_grad():
            a, b = [reference.embed(m, ids[:8], p, placement, "last").double().numpy()
                    for m, p in ((model, prompt), (double, wide))]
        (la, ga), (lb, gb) = [reference.loss_and_gradient(m, texts, p, placement, "last", batch, True)
                              for m, p in ((model, prompt), (double, wide))]
        errors = distance(a, b) / distance(b, b.mean(0)), abs(la - lb) / lb, (ga - gb).norm() / gb.norm()
        print(f"{placement} last: fp32 against double: embeddings {errors[0]:.1e}, loss {errors[1]:.1e}, gradient "
              f"{errors[2]:.1e}", flush=True)
        worst = max(worst, *map(float, errors))
    return 0 if worst <= 1e-4 else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default="../shared/data/foldoc")
    parser.add_argument("--tools", type=pathlib.Path, default="build/tools", help="folder of tokenize and parity")
    parser.add_argument("--work", type=pathlib.Path, default="build/parity")
    parser.add_argument("--rate", type=float, default=ADAMW["rate"], help="of AdamW")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS, help="of AdamW; fewer are not held against the limit")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--self-check", action="store_true")
    options = parser.parse_args()
    return self_check(options) if options.self_check else parity(options)


if __name__ == "__main__":
    sys.exit(main())
