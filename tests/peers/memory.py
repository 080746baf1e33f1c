#!/usr/bin/env python3
"""Memory and speed of one contrastive training step beside PyTorch + PEFT prompt tuning.

    make
    python tests/peers/memory.py MODEL.gguf [--batches 64,256,1024] [--memory 1.5e9] [--limit GIB] [--steps 3]

SmolLM2-135M, texts of 64 tokens, prefix prompt of 16 rows, in-batch contrastive loss, one step = forward, backward and
(of the peer) AdamW over 2 x batch texts. PyTorch: bf16, fp32, and 4-bit NF4 by bitsandbytes; each in a child of its own under a limit on its
data (RLIMIT_DATA; what is available, at most 24 GiB), so that what is too large says so instead of taking the machine down.
quest: without a limit, and within --memory. Memory is the most of RssAnon, read ten times a second, and of the whole
resident set, in which quest's weights are pages of the file. Speed: the median step (PyTorch: after a first one that does
not count); quest's batches above 64 are one step.
"""
import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

LENGTH, ROWS = 64, 16


def contrastive_step(model, optimiser, ids):
    """One step of PyTorch: the first half of the texts ids [2 * batch, length] are queries, the others their labels."""
    import torch
    batch = len(ids) // 2
    h = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, -1].float()
    h = torch.nn.functional.normalize(h, dim=-1)
    loss = torch.nn.functional.cross_entropy(h[:batch] @ h[batch:].T / 0.05, torch.arange(batch))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def peer(path, kind, batch, steps):
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModel, BitsAndBytesConfig
    torch.manual_seed(0)
    path = pathlib.Path(path)
    model = AutoModel.from_pretrained(path.parent, gguf_file=path.name,
                                      dtype=torch.float32 if kind == "f32" else torch.bfloat16)
    if kind == "nf4":
        folder = pathlib.Path(tempfile.gettempdir()) / "memory-peer-bf16"
        if not folder.exists():
            del model.config.quantization_config  # it came out of a GGUF file
            plain = AutoModel.from_config(model.config, dtype=torch.bfloat16)
            plain.load_state_dict(model.state_dict())
            plain.save_pretrained(folder)
        quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                       bnb_4bit_compute_dtype=torch.bfloat16)
        model = AutoModel.from_pretrained(folder, quantization_config=quantised, dtype=torch.bfloat16)
    model = get_peft_model(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=ROWS))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(100, 49000, (2 * batch, LENGTH))
    times = []
    for _ in range(steps + 1):
        start = time.time()
        contrastive_step(model, optimiser, ids)
        times.append(time.time() - start)
    rates = sorted(batch / t for t in times[1:] or times)
    print(json.dumps({"median": rates[len(rates) // 2], "least": rates[0], "most": rates[-1]}))


def watched(command, limit):
    """Runs a child; returns the JSON that it printed, or None, with what it took at most."""
    def limits():
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limits)
    most = {"RssAnon": 0, "VmHWM": 0}
    while child.poll() is None:
        try:
            for line in pathlib.Path(f"/proc/{child.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]) * 1024)
        except (OSError, IndexError):
            pass
        time.sleep(0.1)
    out, err = child.communicate()
    return (json.loads(out[out.index("{"):]) if child.returncode == 0 else None), most, err.strip().splitlines()[-1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", default="64,256,1024")
    parser.add_argument("--memory", type=float, default=1.5e9)
    parser.add_argument("--limit", type=float, help="GiB of a child; without it what is available, at most 24")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kinds", default="bf16,f32,nf4,quest")
    parser.add_argument("--quest", default="./quest")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options.model, options.peer[0], int(options.peer[1]), options.steps)
    available = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable")) * 1024
    limit = int(min(available * 0.97, 24 * 2**30) if not options.limit else options.limit * 2**30)
    print(f"limit of a child: {limit / 2**30:.1f} GiB")
    print("| | batch | RssAnon, MB | resident, MB | pairs/s (slowest to fastest step) | |\n|---|---|---|---|---|---|")

    def row(name, batch, result, most, said):
        memory = f"{most['RssAnon'] / 1e6:.0f} | {most['VmHWM'] / 1e6:.0f}"
        if result is None:
            print(f"| {name} | {batch} | {memory} | does not fit | {' '.join(said)[:90]} |", flush=True)
        else:
            speed = f"{result['median']:.2f} ({result['least']:.2f} to {result['most']:.2f})"
            print(f"| {name} | {batch} | {memory} | {speed} | {result.get('how', '')} |", flush=True)

    for kind in options.kinds.split(","):
        for batch in map(int, options.batches.split(",")):
            if kind != "quest":
                command = [sys.executable, __file__, options.model, "--peer", kind, str(batch), "--steps", str(options.steps)]
                row(f"PyTorch + PEFT, {kind}", batch, *watched(command, limit))
                continue
            for memory in (0, int(options.memory)):
                if memory == 0 and batch > 64:
                    continue  # more than there is, or much of it: what quest is for
                steps = options.steps if batch <= 64 else 1
                command = [options.quest, "bench", "train-prefix", "--json", "--model", options.model, "--batch", str(batch),
                           "--length", str(LENGTH), "--prompt-rows", str(ROWS), "--rounds", str(steps)]
                command += ["--memory", str(memory or int(0.9 * limit))]
                result, *rest = watched(command, limit)
                row("quest" + (f", {memory / 1e9:.2f} GB" if memory else ""), batch, result and result["results"][0], *rest)


if __name__ == "__main__":
    sys.exit(main())
