#!/usr/bin/env python3
"""Trains the small model that ships in models/ (sotu-3m), from scratch, on a CPU.

A LLaMA-architecture language model of 2.7 M parameters with a byte-level BPE
tokenizer of 2048 tokens, both made from the State of the Union addresses. It
is there for the demonstration and the tests: it is trained long enough that
its weights matter (pruning it badly shows in its perplexity), and small enough
to be kept in the repository.

    npm ci
    node scripts/sotu.mjs sotu-data
    python3 -m venv venv
    venv/bin/pip install torch tokenizers safetensors numpy
    venv/bin/python scripts/train-model.py sotu-data first --minutes 40
    venv/bin/python scripts/train-model.py sotu-data models/sotu-3m --init first --minutes 48 --lr 2e-3 --seed 2

It takes as long as --minutes says (the learning rate follows the elapsed time;
give --steps instead for a schedule that does not depend on the machine's
speed) and some seconds more. The shipped model was made by the two runs above
on 2 cores with AVX-512 bf16 that other work shared: 1276 and 2281 steps, 7.8
and 14.0 million tokens. Runs by time cannot be repeated bit for bit.

The output folder holds a complete model at every --save-minutes, so that a
run cut short still leaves one.
"""

import argparse
import contextlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<s>"


# ---------------------------------------------------------------- tokenizer


def make_tokenizer(text_path, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(text_path)], trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


# -------------------------------------------------------------------- model
# Plain PyTorch with the weight names and the arithmetic of the LLaMA models.


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * y).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c["head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        split = lambda y, n: y.view(batch, length, n, self.head_dim).transpose(1, 2)
        q = rotate(split(self.q_proj(x), self.heads), cos, sin) * self.head_dim**-0.5
        k = rotate(split(self.k_proj(x), self.kv_heads), cos, sin)
        v = split(self.v_proj(x), self.kv_heads)
        # The query heads of one key head are taken together. On a CPU, with
        # windows this short, this is much faster than
        # F.scaled_dot_product_attention.
        together = self.heads // self.kv_heads * length
        q = q.reshape(batch * self.kv_heads, together, self.head_dim)
        k = k.reshape(batch * self.kv_heads, length, self.head_dim)
        v = v.reshape(batch * self.kv_heads, length, self.head_dim)
        future = torch.full((length, length), float("-inf"), dtype=v.dtype, device=x.device).triu(1)
        scores = torch.bmm(q, k.transpose(1, 2)) + future.repeat(self.heads // self.kv_heads, 1)
        weights = torch.softmax(scores, dim=-1, dtype=v.dtype)
        y = torch.bmm(weights, v).view(batch, self.heads, length, self.head_dim)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, inner = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Llama(nn.Module):
    """The output layer is the embedding: no lm_head.weight of its own."""

    def __init__(self, c):
        super().__init__()
        self.model = Body(c)
        half = c["head_dim"] // 2
        frequency = c["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.outer(torch.arange(c["max_position_embeddings"], dtype=torch.float64), frequency)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        deep = 1 / math.sqrt(2 * c["num_hidden_layers"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(p, std=c["initializer_range"] * scale)

    def forward(self, ids, targets):
        """Mean next-token loss of each row."""
        body = self.model
        x = body.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        length = ids.shape[1]
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        for layer in body.layers:
            x = layer(x, cos, sin)
        logits = F.linear(body.norm(x), body.embed_tokens.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return loss.view(targets.shape).mean(1)


# ------------------------------------------------------------------- saving


def write(path, content):
    """Never leaves half a file under the final name."""
    part = path.with_name(path.name + ".part")
    if isinstance(content, dict):
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    else:
        content(part)
    part.chmod(0o644)
    os.replace(part, path)


def save(out, config, tokenizer, tensors):
    out.mkdir(parents=True, exist_ok=True)
    bos = config["bos_token_id"]
    write(out / "tokenizer.json", lambda p: tokenizer.save(str(p)))
    write(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": BOS,
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(bos): {
                    "content": BOS,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
            },
        },
    )
    write(out / "special_tokens_map.json", {"bos_token": BOS, "eos_token": BOS})
    write(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": bos})
    write(out / "config.json", config)
    write(out / "model.safetensors", lambda p: save_file(tensors, p, metadata={"format": "pt"}))


def shipped(model):
    """The weights as they are saved: bfloat16."""
    return {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}


# ----------------------------------------------------------------- training


def windows(ids, length, count):
    count = min(count, len(ids) // length)
    return torch.from_numpy(ids[: count * length].reshape(count, length))


@torch.no_grad()
def mean_loss(model, rows, autocast):
    losses = []
    for part in rows.split(16):
        with autocast():
            losses.append(model(part[:, :-1].contiguous(), part[:, 1:].contiguous()))
    return torch.cat(losses).mean().item()


def main():
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("data", type=Path, help="folder with train.txt and heldout.txt")
    a.add_argument("out", type=Path, help="model folder to write")
    a.add_argument("--minutes", type=float, default=42, help="training time (default 42)")
    a.add_argument("--steps", type=int, help="train this many steps instead of by time")
    a.add_argument("--init", type=Path, help="model folder to go on from, with this script's sizes (its tokenizer is kept)")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--vocab", type=int, default=2048)
    a.add_argument("--hidden", type=int, default=192)
    a.add_argument("--layers", type=int, default=6)
    a.add_argument("--heads", type=int, default=6)
    a.add_argument("--kv-heads", type=int, default=2)
    a.add_argument("--ffn", type=int, default=512)
    a.add_argument("--context", type=int, default=512)
    a.add_argument("--batch", type=int, default=24)
    a.add_argument("--length", type=int, default=256, help="tokens of a training window")
    a.add_argument("--lr", type=float, default=3e-3)
    a.add_argument("--warmup", type=float, default=0.02, help="fraction of the run")
    a.add_argument("--weight-decay", type=float, default=0.1)
    a.add_argument("--float32", action="store_true", help="no bfloat16 arithmetic")
    a.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    a.add_argument("--eval-minutes", type=float, default=2)
    a.add_argument("--save-minutes", type=float, default=6)
    o = a.parse_args()

    torch.manual_seed(o.seed)
    torch.set_num_threads(o.threads)
    rng = np.random.default_rng(o.seed)

    if o.init:
        tokenizer = Tokenizer.from_file(str(o.init / "tokenizer.json"))
    else:
        tokenizer = make_tokenizer(o.data / "train.txt", o.vocab)
    bos = tokenizer.token_to_id(BOS)
    read = lambda name: np.array(tokenizer.encode((o.data / name).read_text(encoding="utf-8")).ids, dtype=np.int64)
    train, heldout = read("train.txt"), read("heldout.txt")

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": o.hidden,
        "intermediate_size": o.ffn,
        "num_hidden_layers": o.layers,
        "num_attention_heads": o.heads,
        "num_key_value_heads": o.kv_heads,
        "head_dim": o.hidden // o.heads,
        "hidden_act": "silu",
        "max_position_embeddings": o.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    model = Llama(config)
    if o.init:
        model.load_state_dict({n: t.float() for n, t in load_file(o.init / "model.safetensors").items()})
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(train)} training tokens, {len(heldout)} held out", flush=True)

    autocast = contextlib.nullcontext if o.float32 else lambda: torch.autocast("cpu", torch.bfloat16)
    step_model = torch.compile(model) if o.compile else model
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=o.lr, betas=(0.9, 0.95), fused=True,
    )
    check = windows(heldout, 256, 100)
    offsets = np.arange(o.length + 1)
    starts = np.empty(0, dtype=np.int64)

    # Compiles, and allocates: not part of the time.
    with autocast():
        ids = torch.zeros(o.batch, o.length, dtype=torch.int64)
        step_model(ids, ids).mean().backward()
    optimizer.zero_grad(set_to_none=True)

    began = time.monotonic()
    next_eval, next_save = o.eval_minutes * 60, o.save_minutes * 60
    step, running = 0, None
    while True:
        elapsed = time.monotonic() - began
        done = step / o.steps if o.steps else elapsed / (o.minutes * 60)
        if done >= 1:
            break
        if elapsed >= next_eval:
            loss = mean_loss(model, check, autocast)
            print(
                f"{elapsed / 60:6.1f} min  step {step:6d}  {step * o.batch * o.length / 1e6:7.2f} M tokens  "
                f"train {running:.4f}  held-out {loss:.4f} (perplexity {math.exp(loss):.2f})",
                flush=True,
            )
            next_eval += o.eval_minutes * 60
        if elapsed >= next_save:
            save(o.out, config, tokenizer, shipped(model))
            next_save += o.save_minutes * 60

        lr = o.lr * (done / o.warmup if done < o.warmup else
                     0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - o.warmup) / (1 - o.warmup))))
        for group in optimizer.param_groups:
            group["lr"] = lr

        # Windows that cover the text once per epoch, from a new random phase each time.
        if len(starts) < o.batch:
            phase = rng.integers(o.length)
            starts = rng.permutation(np.arange(phase, len(train) - o.length, o.length))
        chosen, starts = starts[: o.batch], starts[o.batch :]
        rows = train[chosen[:, None] + offsets]
        # Half of the windows begin with the token that begins every encoded text.
        rows[rng.random(o.batch) < 0.5, 0] = bos
        rows = torch.from_numpy(rows)
        with autocast():
            loss = step_model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        value = loss.item()
        running = value if running is None else 0.98 * running + 0.02 * value
        if step in (10, 50, 100, 200):
            seconds = time.monotonic() - began
            print(f"step {step}: loss {running:.3f}, {step * o.batch * o.length / seconds:.0f} tokens/s", flush=True)

    seconds = time.monotonic() - began
    tensors = shipped(model)
    save(o.out, config, tokenizer, tensors)
    # Measured on the weights as saved, in float32 arithmetic.
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[name])
    perplexity = math.exp(mean_loss(model, check, contextlib.nullcontext))
    whole = math.exp(mean_loss(model, windows(heldout, 256, 10**9), contextlib.nullcontext))
    print(f"{parameters} parameters")
    print(f"{step * o.batch * o.length} tokens in {step} steps ({step * o.batch * o.length / len(train):.1f} epochs)")
    print(f"{seconds:.0f} seconds")
    print(f"held-out perplexity {perplexity:.3f} (first {len(check)} windows of 256 tokens), {whole:.3f} (all windows)")


if __name__ == "__main__":
    main()
