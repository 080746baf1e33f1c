#!/usr/bin/env python3
"""Speed beside PyTorch, in turn: quest, PyTorch, quest, PyTorch, ...

    python tests/peers/speed.py MODEL.gguf DATASET RAW.json.gz [--parts encode,train] [--rounds 5] [--texts 256]

encode: the first --texts training queries of DATASET (a folder of `quest data import`; RAW is the file that it was
imported from, whose titles and contents the peer reads), cut at 64 tokens, behind a prompt of 16 rows. PyTorch's plain
program runs the prompt's rows before every text; `shared` keeps the prompt's keys and values once for all texts. train: one
contrastive step of 64 pairs of texts of 64 tokens with PEFT's prompt tuning (the peer's with AdamW over 9,216 numbers). PyTorch's variants (bf16, fp32; in the order of
the texts, or sorted by length; batches of 32) run once each, the fastest then meets quest. Printed: the median of the ratios of
neighbouring rounds, with the least and the most, both medians, and quest's share of the ceiling that it measured itself.
"""
import argparse
import gzip
import json
import pathlib
import statistics
import subprocess
import sys
import time

from memory import LENGTH, ROWS, contrastive_step

BATCH = 32


def texts_of(raw, tokenizer, count):
    """Token ids of the first texts, as quest reads them."""
    ids = {}
    with (gzip.open if raw.endswith(".gz") else open)(raw, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            text = ". ".join(part for part in (row["title"], row.get("content", "")) if part)
            ids.setdefault(tuple(tokenizer(text)["input_ids"][:LENGTH]) or (0,))
            if len(ids) == count:
                break
    return [list(t) for t in ids]


def peer(options):
    """Answers lines of stdin, "encode KIND ORDER SHARED" or "train KIND", with amount per second."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModel, AutoTokenizer, DynamicCache
    path = pathlib.Path(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = texts_of(options.raw, tokenizer, options.texts)
    models = {}

    def model_of(kind):
        if kind not in models:
            models.clear()  # one at a time
            dtype = torch.float32 if kind == "f32" else torch.bfloat16
            models[kind] = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).eval()
        return models[kind]

    @torch.no_grad()
    def encode(kind, order, shared):
        model = model_of(kind)
        table = model.get_input_embeddings()
        prompt = table(torch.arange(1, ROWS + 1))
        todo = sorted(texts, key=len) if order == "sorted" else texts
        start = time.time()
        first = model(inputs_embeds=prompt[None], use_cache=True).past_key_values if shared else None
        for at in range(0, len(todo), BATCH):
            part = todo[at:at + BATCH]
            longest = max(map(len, part))
            ids = torch.tensor([t + [0] * (longest - len(t)) for t in part])
            mask = torch.tensor([[1] * (ROWS + len(t)) + [0] * (longest - len(t)) for t in part])
            if shared:
                cache = DynamicCache()
                for layer in range(model.config.num_hidden_layers):
                    k, v = first.layers[layer].keys, first.layers[layer].values
                    cache.update(k.expand(len(part), -1, -1, -1), v.expand(len(part), -1, -1, -1), layer)
                h = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state
            else:
                h = model(inputs_embeds=torch.cat([prompt.expand(len(part), -1, -1), table(ids)], 1), attention_mask=mask,
                          use_cache=False).last_hidden_state[:, ROWS:]
            torch.nn.functional.normalize(h[torch.arange(len(part)), torch.tensor([len(t) - 1 for t in part])].float())
        return sum(map(len, texts)) / (time.time() - start)

    trainers = {}

    def train(kind, pairs=64):
        if kind not in trainers:
            trainers.clear()
            model = get_peft_model(model_of(kind), PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=ROWS))
            models.clear()
            trainers[kind] = model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        model, optimiser = trainers[kind]
        ids = torch.randint(100, 49000, (2 * pairs, LENGTH))
        start = time.time()
        contrastive_step(model, optimiser, ids)
        return pairs / (time.time() - start)

    print("ready", len(texts), sum(map(len, texts)), flush=True)
    for line in sys.stdin:
        what, *how = line.split()
        print(encode(how[0], how[1], how[2] == "shared") if what == "encode" else train(how[0]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("raw")
    parser.add_argument("--parts", default="encode,train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--kinds", default="f32,bf16")
    parser.add_argument("--quest", default="./quest")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    command = [sys.executable, __file__, options.model, options.data, options.raw, "--texts", str(options.texts), "--peer"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ready = child.stdout.readline().split()
    print(f"{ready[1]} texts, {ready[2]} tokens")

    def ask(question):
        child.stdin.write(question + "\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    def quest(part):
        out = subprocess.run([options.quest, "bench", part, "--json", "--rounds", "1", "--model", options.model, "--data",
                              options.data, "--texts", str(options.texts), "--length", str(LENGTH), "--prompt-rows", str(ROWS),
                              "--batch", "64"], check=True, capture_output=True, text=True).stdout
        return json.loads(out)["results"][0]

    kinds = options.kinds.split(",")
    encoders = [f"encode {kind} {order}" for kind in kinds for order in ("padded", "sorted")]
    jobs = {"encode": [("PyTorch, prompt before every text", "encode", [f"{e} plain" for e in encoders]),
                       ("PyTorch, prompt's keys and values shared", "encode", [f"{e} shared" for e in encoders])],
            "train": [("PyTorch + PEFT, prefix", "train-prefix", [f"train {kind}" for kind in kinds]),
                      ("PyTorch + PEFT, prefix, beside our suffix", "train-suffix", [f"train {kind}" for kind in kinds])]}
    print("| peer | its best variant | quest | peer | ratio (least to most) | of the ceiling |\n|---|---|---|---|---|---|")
    for part in options.parts.split(","):
        for name, mine, variants in jobs[part]:
            first = {v: max(ask(v), ask(v)) for v in variants}
            best = max(first, key=first.get)
            ask(best)  # warm again
            ours, theirs = [], []
            for _ in range(options.rounds):
                ours.append(quest(mine))
                theirs.append(ask(best))
            rates = [o["median"] for o in ours]
            count, _, mean = ours[0]["how"].split()[:3] if part == "encode" else (ready[1], "", 0)
            if int(count) != int(ready[1]) or (mean and abs(float(mean) * int(count) / int(ready[2]) - 1) > 0.02):
                sys.exit(f"quest read {ours[0]['how']}, the peer {ready[1]} texts of {ready[2]} tokens in all")
            ratios = sorted(o / t for o, t in zip(rates, theirs))
            print(f"| {name} | {best} | {statistics.median(rates):.4g} {ours[0]['unit']} | {statistics.median(theirs):.4g} | "
                  f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | "
                  f"{100 * statistics.median(o['of_ceiling'] for o in ours):.0f} % |", flush=True)
    child.stdin.close()


if __name__ == "__main__":
    sys.exit(main())
