"""A LLaMA with a soft prompt, by transformers: what make_golden.py and parity.py compare quest with.

Needs torch, transformers, gguf, accelerate. Nothing of quest is used here, and every text is a row of its own in a
padded batch, the prompt repeated in each: no packing, no sharing, no cache.

placement   rows of one text                     own rows (pooled)      RoPE positions
none        tokens                               tokens                 0, 1, ... of the row, in every placement
prefix      prompt (K rows), tokens              tokens
suffix      tokens, prompt (K rows)              the prompt's
pooling     last = the last own row after the final norm, mean = their mean
"""
import contextlib
import pathlib
import types

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModel

PLACEMENTS, POOLINGS = ("prefix", "suffix"), ("last", "mean")


def load(path, dtype=torch.float32):
    """The model of a GGUF file, dequantised by transformers, or of a Hugging Face folder; float64 is free of any
    rounding to float32."""
    path = pathlib.Path(path)
    if path.is_dir():
        return AutoModel.from_pretrained(str(path), attn_implementation="eager",
                                         torch_dtype=torch.float32).eval().requires_grad_(False)
    model = AutoModel.from_pretrained(str(path.parent), gguf_file=path.name, attn_implementation="eager",
                                      torch_dtype=torch.float32).eval().requires_grad_(False)
    check_weights(model, path)
    if dtype == torch.float64:
        keep_double(model.double())
    return model


def check_weights(model, path):
    """transformers fills what it did not find in a file with random numbers, silently: compare with the file."""
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    ours = dict(model.named_parameters())
    seen = set()
    for tensor in GGUFReader(path).tensors:
        part = tensor.name.split(".")
        name = {"token_embd": "embed_tokens", "output_norm": "norm"}.get(part[0])
        name = f"{name}.weight" if name else f"layers.{part[1]}.{names[part[2]]}.weight"
        w = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape][::-1])
        if part[-2] in ("attn_q", "attn_k"):  # adjacent pairs -> two halves of every head
            heads = model.config.num_attention_heads if part[-2] == "attn_q" else model.config.num_key_value_heads
            w = w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        if not np.array_equal(ours[name].numpy(), w):
            raise SystemExit(f"{path}: transformers loaded other numbers than the file holds for {tensor.name}")
        seen.add(name)
    if seen != set(ours):
        raise SystemExit(f"{path}: not in the file: {sorted(set(ours) - seen)}")


def turns(base, size, positions):
    """cos and sin [positions, size/2] in float32: frequency and angle rounded to float32, as transformers does."""
    exponent = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequency = np.float32(1) / np.power(np.float64(base), exponent.astype(np.float64)).astype(np.float32)
    angle = np.arange(positions, dtype=np.float32)[:, None] * frequency
    return np.cos(angle.astype(np.float64)).astype(np.float32), np.sin(angle.astype(np.float64)).astype(np.float32)


class Turns(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size // config.num_attention_heads
        self.table = [torch.from_numpy(t).double() for t in turns(config_rope_base(config), size, 1024)]

    def forward(self, x, position_ids):
        return tuple(torch.cat([t, t], 1)[position_ids] for t in self.table)


def config_rope_base(config):
    return getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]


def keep_double(model):
    """transformers rounds norms and rope to float32 whatever the model's type: not here. Softmax: double_softmax."""
    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight
    model.rotary_emb = Turns(model.config)
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(norm, module)


@contextlib.contextmanager
def double_softmax():
    plain = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: plain(
        x, dim, dtype=x.dtype if x.dtype == torch.float64 else dtype)
    try:
        yield
    finally:
        torch.nn.functional.softmax = plain


def batches(lengths, rows):
    """Texts of like length together, at most `rows` padded rows a batch (at least one text)."""
    order, batch = sorted(range(len(lengths)), key=lambda i: lengths[i]), []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > rows:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def embed(model, texts, prompt, placement, pooling, rows=2048):
    """Embeddings [T,d]; texts are lists of token ids, prompt [K,d] or None. Carries gradients to the prompt."""
    table = model.get_input_embeddings().weight
    K = 0 if prompt is None else len(prompt)
    result = [None] * len(texts)
    for batch in batches([len(t) + K for t in texts], rows):
        own = [table[torch.tensor(texts[i])] for i in batch]
        if placement == "prefix":
            own = [torch.cat([prompt, x]) for x in own]
        elif placement == "suffix":
            own = [torch.cat([x, prompt]) for x in own]
        x = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)  # causal: padding after a row changes nothing
        with double_softmax():
            h = model(inputs_embeds=x, use_cache=False).last_hidden_state
        for b, i in enumerate(batch):
            first = {"none": 0, "prefix": K, "suffix": len(texts[i])}[placement]
            pooled = h[b, first:len(own[b])]
            result[i] = pooled[-1] if pooling == "last" else pooled.mean(0)
    return torch.stack(result)


def one_side(scores, right, hidden):
    """mean of logsumexp over what is not hidden, less the right one; scores [B,n], right [B], hidden [B,n]"""
    rest = scores.masked_fill(hidden, -torch.inf).logsumexp(1)
    return (rest - scores.gather(1, right[:, None])[:, 0]).mean()


def contrastive(embeddings, batch, symmetric):
    """The loss of kernels/ops.h `contrastive` over embeddings of all texts; batch as in parity.py's request."""
    u = embeddings / embeddings.norm(dim=1, keepdim=True)
    s = u[batch["query_texts"]] @ u[batch["label_texts"]].T / batch["temperature"]
    q, l = batch["pairs"].long().T
    loss = one_side(s[q], l, batch["hidden"])
    return (loss + one_side(s.T[l], q, batch["hidden_queries"])) / 2 if symmetric else loss


def loss_and_gradient(model, texts, prompt, placement, pooling, batch, symmetric):
    prompt = prompt.detach().clone().requires_grad_(True)
    loss = contrastive(embed(model, texts, prompt, placement, pooling, rows=512), batch, symmetric)
    loss.backward()
    return loss.detach(), prompt.grad


def train(model, texts, prompt, placement, pooling, batch, symmetric, steps, adamw):
    """Losses [steps] and prompts [steps,K,d] after each step of AdamW on one and the same batch."""
    prompt = prompt.detach().clone()
    optimiser = torch.optim.AdamW([prompt], lr=adamw["rate"], betas=(adamw["beta1"], adamw["beta2"]),
                                  eps=adamw["epsilon"], weight_decay=adamw["decay"])
    losses, prompts = [], []
    for _ in range(steps):
        loss, gradient = loss_and_gradient(model, texts, prompt, placement, pooling, batch, symmetric)
        norm = gradient.norm()  # torch's own clipping divides by norm + 1e-6
        prompt.grad = gradient * min(1.0, adamw["clip"] / norm.item()) if adamw["clip"] > 0 else gradient
        optimiser.step()
        losses.append(loss)
        prompts.append(prompt.detach().clone())
    return torch.stack(losses), torch.stack(prompts)


def hidden_masks(texts, query_texts, label_texts, pairs, positives):
    """What a pair's denominators leave out: other positives, and the same text as the right one or as the query.
    positives: set of (row of the queries, row of the labels). Returns bool [B,L] and [B,U]."""
    Q, L = [tuple(texts[i]) for i in query_texts], [tuple(texts[i]) for i in label_texts]
    hidden = [[j != l and ((q, j) in positives or L[j] in (L[l], Q[q])) for j in range(len(L))] for q, l in pairs]
    queries = [[u != q and ((u, l) in positives or Q[u] in (L[l], Q[q])) for u in range(len(Q))] for q, l in pairs]
    return torch.tensor(hidden), torch.tensor(queries)
