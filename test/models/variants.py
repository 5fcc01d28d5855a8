#!/usr/bin/env python3
"""Makes variants.json: logits that transformers gives for tiny models of kinds that few checkpoints are of.

    pip install torch transformers && python test/models/variants.py

The weights are not stored: both sides make them, tensors in the order of their names, from Python's random numbers (see
weights() here and in variants.ts). Configs are spelled as on the hub, some as transformers 4 has them.
"""

import base64
import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {
    "vocab_size": 16, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
}
FALCON = {
    "model_type": "falcon", "vocab_size": 16, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "ffn_hidden_size": 20, "max_position_embeddings": 32,
}
LONG_ROPE = {
    "type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.5, 3.0],
}
PHI3 = LLAMA | {
    "model_type": "phi3", "pad_token_id": 0, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_theta": 500.0,
    "partial_rotary_factor": 0.5, "original_max_position_embeddings": 6, "rope_scaling": LONG_ROPE,
}

# What each model is: config, and optionally the prefix that its tensors' names lack, and the length of the sequences.
VARIANTS = {
    "bloom, 6 heads": ({
        "model_type": "bloom", "vocab_size": 16, "n_embed": 24, "num_attention_heads": 6, "n_layer": 2,
    }, "transformer.", 8),
    "bloom, residual after the norm": ({
        "model_type": "bloom", "vocab_size": 16, "hidden_size": 24, "n_head": 3, "n_layer": 2,
        "apply_residual_connection_post_layernorm": True,
    }, "", 8),
    "falcon, new architecture": (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, "", 8),
    "falcon, new architecture with one norm": (FALCON | {
        "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True,
    }, "transformer.", 8),
    "falcon, RW": (FALCON | {
        "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False,
    }, "", 8),
    "falcon, several heads side by side with the MLP": (FALCON | {"multi_query": False}, "", 8),
    "gemma, first release": (LLAMA | {
        "model_type": "gemma", "head_dim": 8, "hidden_act": "gelu", "attention_bias": True,
    }, "", 8),
    "gemma2, no caps": (LLAMA | {
        "model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 30, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "sliding_window": 3,
    }, "", 8),
    "gemma2, low caps": (LLAMA | {
        "model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 4, "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3,
    }, "", 8),
    "gpt_neo, local before global": ({
        "model_type": "gpt_neo", "vocab_size": 16, "hidden_size": 24, "num_layers": 2, "num_heads": 3,
        "max_position_embeddings": 16, "window_size": 3, "attention_types": [[["local"], 1], [["global"], 1]],
    }, "transformer.", 8),
    "gpt_neox, one sublayer after the other": ({
        "model_type": "gpt_neox", "vocab_size": 16, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 16, "rotary_pct": 0.5, "rotary_emb_base": 300,
        "use_parallel_residual": False, "attention_bias": False,
    }, "", 8),
    "gptj, all dimensions rotated, tied": ({
        "model_type": "gptj", "vocab_size": 16, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16,
        "rotary_dim": 8, "n_inner": 20, "tie_word_embeddings": True,
    }, "transformer.", 8),
    "llama, biases and linear scaling": (LLAMA | {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_theta": 700.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    }, "model.", 8),
    "mistral, short window": (LLAMA | {"model_type": "mistral", "sliding_window": 3, "head_dim": 4}, "", 8),
    "mixtral, experts without tokens": (LLAMA | {
        "model_type": "mixtral", "num_local_experts": 7, "num_experts_per_tok": 1, "sliding_window": 4,
    }, "", 5),
    "phi, norms of q and k": ({
        "model_type": "phi", "vocab_size": 16, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "qk_layernorm": True,
        "partial_rotary_factor": 0.34, "rope_theta": 300.0,
    }, "", 8),
    "phi3, LongRoPE, short sequences": (PHI3, "", 6),
    "phi3, LongRoPE, long sequences and a window": (PHI3 | {"sliding_window": 5}, "", 8),
    "qwen2, windows in the later blocks": (LLAMA | {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
    }, "", 8),
    "qwen3, windows by block, biases": (LLAMA | {
        "model_type": "qwen3", "head_dim": 4, "use_sliding_window": True, "sliding_window": 3, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"],
    }, "", 8),
}


def weights(shapes):
    """Uniform in [-1/2, 1/2]; vectors are 1 ± 1/4. The same is in variants.ts."""
    source = random.Random(11)
    tensors = {}
    for name in sorted(shapes):
        count = torch.Size(shapes[name]).numel()
        values = torch.tensor([source.randint(-1000, 1000) / 1000 for _ in range(count)], dtype=torch.float64)
        values = 1 + values / 4 if len(shapes[name]) == 1 else values / 2
        tensors[name] = values.float().reshape(shapes[name])
    return tensors


def variant(config, prefix, length):
    # transformers' eager attention knows soft caps, but adds Falcon's ALiBi twice.
    attention = "sdpa" if config["model_type"] == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "pt") as stored:
            shapes = {name.removeprefix(prefix): list(stored.get_slice(name).get_shape()) for name in stored.keys()}
            full = {name.removeprefix(prefix): name for name in stored.keys()}
        save_file({full[name]: tensor for name, tensor in weights(shapes).items()}, file, {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()
    source = random.Random(5)
    ids = [[source.randint(0, config["vocab_size"] - 1) for _ in range(length)] for _ in range(2)]
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits
    encoded = base64.b64encode(logits.contiguous().numpy().astype("<f4").tobytes()).decode()
    return {"config": config, "shapes": shapes, "ids": ids, "logits": encoded}


if __name__ == "__main__":
    made = {title: variant(*arguments) for title, arguments in VARIANTS.items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n")
