#!/usr/bin/env python3
"""Makes tests/golden/tiny.gguf, a tiny random LLaMA, and tests/golden/tiny.json, its numbers by transformers.

    python tests/peers/make_golden.py [--model-only]        from the repository's root; see tests/peers/README.md

tiny.gguf   2 layers, width 64, 4 heads of 16 over 2 key/value heads, MLP 96, vocabulary 300 (tied), rope base 1e4,
            eps 1e-5; linear layers Q4_1, embedding Q8_0, norms F32; a byte-level BPE of 256 bytes, 43 merges and
            <|endoftext|> (control, id 0), trained on the text below.
tiny.json   turns            [16][16] the table of turns: cos at 2j, sin at 2j+1 (fp32 values)
            tokenizer        [{text, ids}]
            texts            [T][...] token ids, of unequal length, one of a single token, 5 the same as 4
            prompts          {prefix: [3][64], suffix: [2][64]} fp32 values
            batch            query_texts [U], label_texts [L]: indices of texts; pairs [B][2]: row of queries, of labels;
                             hidden [B][L], hidden_queries [B][U]: 1 = left out of that pair's sum; temperature
            adamw            rate, beta1, beta2, epsilon, decay, clip, steps
            cases            one a placement (none, prefix, suffix) and pooling (last, mean), see reference.py:
              float64, float32: the same numbers by arithmetic in double (fp32 weights and turns taken as exact) and
                             by transformers in fp32 as it comes. Each holds
                embeddings   [T][64] pooled after the final norm, not normalised
                one_way, symmetric (not for placement none): loss, gradient [K][64] (unclipped), and after all steps
                             of AdamW on this one batch: prompt [K][64]; losses [steps], each before its step
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import reference

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
LAYERS, WIDTH, HEADS, KV_HEADS, SIZE, MLP, VOCABULARY = 2, 64, 4, 2, 16, 96, 300
STEPS, ADAMW = 5, {"rate": 1e-2, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "decay": 0.0, "clip": 1.0}
TEMPERATURE = 0.05
TRAINING_TEXT = """
The label of a text is found by its nearest neighbours. A prompt is a small matrix in front of the text; the model
itself is frozen. Texts and labels are encoded by the same model, and the loss compares the two. There is a text for
the label and a label for the text. In the end the nearest label is the answer that the reader of the text wants.
"""
TEXTS = ["", "a", "The text and the label.", "\n\n2 labels in 1999 \t the  end", "naïve café – 北京 🙂",
         "it's <|endoftext|>done", "  leading and trailing  "]


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def write_model(path, tokenizer, rng):
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny random LLaMA")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(3)  # mostly Q4_1
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(SIZE)
    writer.add_quantization_version(2)
    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(False)
    for name, values, kind in weights(rng):
        if kind is None:
            writer.add_tensor(name, values)
            continue
        packed = quants.quantize(values, kind)
        assert_exact(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(rng):
    """(name, fp32 values, type): rows of q and k come in the file's order, adjacent pairs, as they are random."""
    def matrix(name, rows, columns, gain, kind=GGMLQuantizationType.Q4_1):
        return name, (rng.standard_normal((rows, columns)) * gain).astype(np.float32), kind

    def norm(name):
        return name, (1 + 0.2 * rng.standard_normal(WIDTH)).astype(np.float32), None
    yield matrix("token_embd.weight", VOCABULARY, WIDTH, 1.0, GGMLQuantizationType.Q8_0)
    for i in range(LAYERS):
        b = f"blk.{i}."
        yield norm(b + "attn_norm.weight")
        yield matrix(b + "attn_q.weight", HEADS * SIZE, WIDTH, 0.2)
        yield matrix(b + "attn_k.weight", KV_HEADS * SIZE, WIDTH, 0.2)
        yield matrix(b + "attn_v.weight", KV_HEADS * SIZE, WIDTH, 0.15)
        yield matrix(b + "attn_output.weight", WIDTH, HEADS * SIZE, 0.15)
        yield norm(b + "ffn_norm.weight")
        yield matrix(b + "ffn_gate.weight", MLP, WIDTH, 0.15)
        yield matrix(b + "ffn_up.weight", MLP, WIDTH, 0.15)
        yield matrix(b + "ffn_down.weight", WIDTH, MLP, 0.15)
    yield norm("output_norm.weight")


def assert_exact(packed, kind):
    """Decoding in fp32 and in double must give the same numbers, so that float64 has one meaning."""
    blocks = packed.reshape(-1, 20 if kind == GGMLQuantizationType.Q4_1 else 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
    if kind == GGMLQuantizationType.Q4_1:
        codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
        exact = scale * codes + blocks[:, 2:4].copy().view(np.float16).astype(np.float64)
    else:
        exact = scale * blocks[:, 2:].copy().view(np.int8)
    assert np.array_equal(exact.ravel(), quants.dequantize(packed, kind).astype(np.float64).ravel())


def make_batch(rng):
    texts = [rng.integers(1, VOCABULARY, n).tolist() for n in (5, 1, 9, 3, 7, 7, 2)]
    texts[5] = texts[4]
    batch = {"query_texts": [0, 1, 2], "label_texts": [3, 4, 5, 6, 1], "pairs": [[0, 0], [1, 1], [2, 2], [0, 3]],
             "temperature": TEMPERATURE}
    positives = {(0, 0), (1, 1), (2, 2), (0, 3), (2, 0)}  # (2, 0): known, but no pair of this batch
    hidden = reference.hidden_masks(texts, batch["query_texts"], batch["label_texts"], batch["pairs"], positives)
    assert all(h.any() for h in hidden)
    batch["hidden"], batch["hidden_queries"] = [h.int().tolist() for h in hidden]
    return texts, batch


def as_tensors(batch):
    return {**batch, "pairs": torch.tensor(batch["pairs"]), "hidden": torch.tensor(batch["hidden"]).bool(),
            "hidden_queries": torch.tensor(batch["hidden_queries"]).bool()}


def numbers(model, texts, prompt, placement, pooling, batch):
    with torch.no_grad():
        result = {"embeddings": reference.embed(model, texts, prompt, placement, pooling, rows=1)}
    if prompt is None:
        return result
    for name, symmetric in (("one_way", False), ("symmetric", True)):
        arguments = (model, texts, prompt, placement, pooling, batch, symmetric)
        loss, gradient = reference.loss_and_gradient(*arguments)
        losses, prompts = reference.train(*arguments, STEPS, ADAMW)
        result[name] = {"loss": loss, "gradient": gradient, "losses": losses, "prompt": prompts[-1]}
    return result


def finite_difference(model, texts, prompt, placement, pooling, batch, gradient):
    """Largest relative error of the gradient against central differences: along itself and at four entries."""
    def loss(p):
        with torch.no_grad():
            return reference.contrastive(reference.embed(model, texts, p, placement, pooling), batch, True).item()
    directions = [gradient / gradient.norm()]
    for flat in range(0, prompt.numel(), prompt.numel() // 4 + 1):
        directions.append(torch.zeros_like(prompt))
        directions[-1].view(-1)[flat] = 1
    h, worst = 1e-4, 0.0
    for v in directions:
        two = (loss(prompt + h * v) - loss(prompt - h * v)) / (2 * h)
        four = (loss(prompt + 2 * h * v) - loss(prompt - 2 * h * v)) / (4 * h)
        worst = max(worst, abs((4 * two - four) / 3 - (gradient * v).sum().item()) / gradient.norm().item())
    return worst


def plain(value):
    """Tensors as lists of exact numbers."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def difference(a, b):
    """Frobenius distance relative to b, by name."""
    if isinstance(b, dict):
        return {key: difference(a[key], b[key]) for key in b}
    return f"{(a.double() - b).norm().item() / b.norm().item():.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-only", action="store_true")
    only = parser.parse_args().model_only
    rng, path = np.random.default_rng(20240601), GOLDEN / "tiny.gguf"
    GOLDEN.mkdir(exist_ok=True)
    tokenizer = train_tokenizer()
    write_model(path, tokenizer, rng)
    print(f"{path}: {path.stat().st_size} bytes")
    if only:
        return
    texts, batch = make_batch(rng)
    prompts = {"none": None}
    for name, rows in (("prefix", 3), ("suffix", 2)):
        prompts[name] = torch.from_numpy((0.7 * rng.standard_normal((rows, WIDTH))).astype(np.float32))
    cos, sin = reference.turns(1e4, SIZE, 16)
    golden = {"turns": torch.from_numpy(np.stack([cos, sin], 2).reshape(16, SIZE)),
              "tokenizer": [{"text": t, "ids": tokenizer.encode(t).ids} for t in TEXTS], "texts": texts,
              "prompts": {name: prompts[name] for name in reference.PLACEMENTS}, "batch": batch,
              "adamw": {**ADAMW, "steps": STEPS}, "cases": []}
    single, double, batch = reference.load(path), reference.load(path, torch.float64), as_tensors(batch)
    for placement in ("none",) + reference.PLACEMENTS:
        for pooling in reference.POOLINGS:
            prompt = prompts[placement]
            wide = None if prompt is None else prompt.double()
            b = numbers(double, texts, wide, placement, pooling, batch)
            a = numbers(single, texts, prompt, placement, pooling, batch)
            golden["cases"].append({"placement": placement, "pooling": pooling, "float64": b, "float32": a})
            print(placement, pooling, "float32 against float64:", json.dumps(difference(a, b)))
            if prompt is not None:
                error = finite_difference(double, texts, wide, placement, pooling, batch, b["symmetric"]["gradient"])
                print(f"  gradient norm {b['symmetric']['gradient'].norm():.3g}, finite differences: {error:.1e}")
                assert error <= 1e-8
    golden["cases"] = [plain(case) for case in golden["cases"]]
    text = ",\n".join(f"{json.dumps(k)}: {json.dumps(plain(v))}" for k, v in golden.items())
    text = "{\n" + text.replace(' {"placement"', '\n {"placement"').replace(', "float32"', ',\n  "float32"') + "\n}\n"
    (GOLDEN / "tiny.json").write_text(text)
    print(f"{GOLDEN / 'tiny.json'}: {len(text)} bytes")


if __name__ == "__main__":
    main()
