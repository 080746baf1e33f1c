#!/usr/bin/env python3
"""One contrastive training step of LLaMA-7B's shape by PyTorch + PEFT on a GPU, under budgets of its memory.

    python tests/peers/gpu.py [--budgets 24,6] [--batches 64,32,16,8,4,2,1] [--json FILE]

Random weights, made on the device: NF4 with double quantisation where bitsandbytes can be had, otherwise bf16, which the
table says. Texts of 64 tokens, prefix prompt of 16 rows, in-batch loss, AdamW. For each budget (GiB; enforced by
torch.cuda.set_per_process_memory_fraction) the largest of the batches that fits, each in a child of its own: the median of
--steps steps after two that do not count, and the most that PyTorch's allocator held. `quest bench train-prefix --shape
llama-7b` is the other side (make gpu-check STAGE=step).
"""
import argparse
import json
import subprocess
import sys
import time

LENGTH, ROWS = 64, 16
SHAPES = {"llama-7b": (32, 4096, 11008, 32, 32000), "tiny": (2, 64, 128, 4, 1000)}  # layers, width, MLP, heads, vocabulary


def random_llama(shape, kind, device):
    """LlamaModel of random weights, never whole in any other type than its own."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    layers, width, mlp, heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
                         vocab_size=vocabulary, max_position_embeddings=2048)
    with torch.device("meta"):
        model = LlamaModel(config)

    def numbers(*size):
        return torch.randn(*size, device=device, dtype=torch.bfloat16) * 0.02

    def fill(module):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and kind == "nf4":
                import bitsandbytes as bnb
                linear = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False, quant_type="nf4",
                                           compute_dtype=torch.bfloat16, compress_statistics=True)
                values = numbers(child.out_features, child.in_features)
                linear.weight = bnb.nn.Params4bit(values.cpu(), requires_grad=False, quant_type="nf4",
                                                  compress_statistics=True)
                setattr(module, name, linear.to(device))
                continue
            for part, p in child.named_parameters(recurse=False):
                child._parameters[part] = nn.Parameter(numbers(*p.shape) if p.dim() == 2 else torch.ones_like(
                    p, device=device, dtype=torch.bfloat16))
            fill(child)

    fill(model)
    model.rotary_emb = LlamaRotaryEmbedding(config=config).to(device)
    return model


def peer(o):
    import torch
    from peft import PromptTuningConfig, get_peft_model
    torch.manual_seed(0)
    if o.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(o.budgets) * 2**30 / total))
    model = random_llama(o.shape, o.kind, o.device)
    model = get_peft_model(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=ROWS)).to(o.device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = int(o.batches)
    ids = torch.randint(100, SHAPES[o.shape][-1], (2 * batch, LENGTH), device=o.device)
    times = []
    for _ in range(o.steps + 2):
        start = time.time()
        h = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, -1].float()
        h = torch.nn.functional.normalize(h, dim=-1)
        loss = torch.nn.functional.cross_entropy(h[:batch] @ h[batch:].T / 0.05, torch.arange(batch, device=o.device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # waits
        times.append(time.time() - start)
    rates = sorted(batch / t for t in times[2:])
    peak = torch.cuda.max_memory_reserved() if o.device == "cuda" else 0
    print(json.dumps({"median": rates[len(rates) // 2], "least": rates[0], "most": rates[-1], "peak_bytes": peak,
                      "loss": loss.item()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", default="24,6")
    parser.add_argument("--batches", default="64,32,16,8,4,2,1")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--shape", default="llama-7b", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kind", choices=["nf4", "bf16"])
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.peer:
        return peer(o)
    if not o.kind:
        o.kind = "nf4" if subprocess.run([sys.executable, "-c", "import bitsandbytes"], capture_output=True).returncode == 0 else "bf16"
    print(f"PyTorch + PEFT, {o.shape}, weights in {o.kind}\n| budget, GiB | batch | pairs/s | peak, GiB |\n|---|---|---|---|")
    results = []
    for budget in o.budgets.split(","):
        for batch in o.batches.split(","):
            child = subprocess.run([sys.executable, __file__, "--peer", "--budgets", budget, "--batches", batch, "--steps", str(o.steps),
                                    "--shape", o.shape, "--device", o.device, "--kind", o.kind], capture_output=True, text=True)
            if child.returncode == 0:
                r = json.loads(child.stdout[child.stdout.index("{"):])
                results.append({"budget_gib": float(budget), "batch": int(batch), "kind": o.kind, **r})
                print(f"| {budget} | {batch} | {r['median']:.2f} ({r['least']:.2f} to {r['most']:.2f}) | {r['peak_bytes'] / 2**30:.2f} |", flush=True)
                break
            if "out of memory" not in child.stderr:
                sys.exit(f"batch {batch}: " + child.stderr.strip()[-600:])
        else:
            print(f"| {budget} | none fits | | |", flush=True)
    if o.json:
        with open(o.json, "w") as out:
            json.dump({"stage": "peers", "results": results}, out, indent=2)


if __name__ == "__main__":
    sys.exit(main())
