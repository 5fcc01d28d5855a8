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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

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

DEEPSEEK = LLAMA | {
    "n_routed_experts": 6, "n_shared_experts": 2, "moe_intermediate_size": 10, "num_experts_per_tok": 2, "kv_lora_rank": 8,
    "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
VISION = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}

# What each model is: config, and optionally the prefix that its tensors' names lack, and the length of the sequences.
VARIANTS = {
    "arcee, biases": (LLAMA | {"model_type": "arcee", "attention_bias": True, "mlp_bias": True}, "", 8),
    "bloom, 6 heads": ({
        "model_type": "bloom", "vocab_size": 16, "n_embed": 24, "num_attention_heads": 6, "n_layer": 2,
    }, "transformer.", 8),
    "bloom, residual after the norm": ({
        "model_type": "bloom", "vocab_size": 16, "hidden_size": 24, "n_head": 3, "n_layer": 2,
        "apply_residual_connection_post_layernorm": True,
    }, "", 8),
    "cohere, biases and an untied head": (LLAMA | {
        "model_type": "cohere", "attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.3,
    }, "", 8),
    "cohere2, windows by a pattern": (LLAMA | {
        "model_type": "cohere2", "sliding_window_pattern": 2, "sliding_window": 3, "logit_scale": 2.0,
    }, "", 8),
    "deepseek_v2, groups, narrow queries and YaRN": (DEEPSEEK | {
        "model_type": "deepseek_v2", "q_lora_rank": 9, "v_head_dim": 6, "topk_method": "group_limited_greedy", "n_group": 3,
        "topk_group": 2, "routed_scaling_factor": 1.7, "attention_bias": True,
        "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.6},
    }, "model.", 8),
    "deepseek_v3, plain sigmoids and halves that rotate": (DEEPSEEK | {
        "model_type": "deepseek_v3", "q_lora_rank": None, "v_head_dim": 9, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": False, "rope_interleave": False, "routed_scaling_factor": 1.3,
    }, "", 8),
    "exaone4, windows by a pattern": (LLAMA | {
        "model_type": "exaone4", "sliding_window_pattern": 2, "sliding_window": 3,
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
    "gemma3_text, entries of transformers 4": (LLAMA | {
        "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 30, "sliding_window": 3, "sliding_window_pattern": 2,
        "rope_theta": 5000.0, "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "final_logit_softcapping": 4.0,
    }, "", 8),
    "gemma3, the language model": ({
        "model_type": "gemma3", "mm_tokens_per_image": 4, "image_token_index": 15, "boi_token_index": 14, "eoi_token_index": 13,
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "text_config": LLAMA | {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 3},
    }, "", 8),
    "glm4, all dimensions rotated": (LLAMA | {
        "model_type": "glm4", "head_dim": 8, "attention_bias": False, "partial_rotary_factor": 1.0, "pad_token_id": 0,
    }, "", 8),
    "gpt_bigcode, as many keys as queries": ({
        "model_type": "gpt_bigcode", "vocab_size": 16, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16, "n_inner": 20,
        "multi_query": False, "scale_attn_weights": False,
    }, "transformer.", 8),
    "gpt_oss, windows by turns": (LLAMA | {
        "model_type": "gpt_oss", "head_dim": 6, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    }, "", 8),
    "granitemoe, biases": (LLAMA | {
        "model_type": "granitemoe", "num_local_experts": 3, "num_experts_per_tok": 2, "attention_bias": True,
        "logits_scaling": 3.0, "residual_multiplier": 0.6,
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
    "helium, biases": (LLAMA | {"model_type": "helium", "head_dim": 6, "attention_bias": True, "mlp_bias": True}, "", 8),
    "hunyuan_v1_dense, a fixed stretch": (LLAMA | {
        "model_type": "hunyuan_v1_dense", "head_dim": 8, "attention_bias": True,
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0},
    }, "", 8),
    "llama, YaRN": (LLAMA | {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": YARN | {
        "attention_factor": 1.2, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False,
    }}, "", 12),
    "llava, the language model": ({
        "model_type": "llava", "image_token_index": 15, "tie_word_embeddings": False,
        "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 8},
        "text_config": LLAMA | {"model_type": "llama"},
    }, "", 8),
    "llama, biases and linear scaling": (LLAMA | {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_theta": 700.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    }, "model.", 8),
    "mistral, short window": (LLAMA | {"model_type": "mistral", "sliding_window": 3, "head_dim": 4}, "", 8),
    "mixtral, experts without tokens": (LLAMA | {
        "model_type": "mixtral", "num_local_experts": 7, "num_experts_per_tok": 1, "sliding_window": 4,
    }, "", 5),
    "mpt, 6 heads and a scale of its own": ({
        "model_type": "mpt", "vocab_size": 16, "d_model": 24, "n_layers": 2, "n_heads": 6, "max_seq_len": 16,
        "attn_config": {"softmax_scale": 0.7},
    }, "", 8),
    "nemotron, biases": (LLAMA | {
        "model_type": "nemotron", "head_dim": 8, "attention_bias": True, "mlp_bias": True, "norm_eps": 1e-3,
    }, "", 8),
    "olmo3, YaRN in blocks without a window": (LLAMA | {
        "model_type": "olmo3", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "attention_bias": True,
        "rope_parameters": {
            "full_attention": YARN | {"rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    }, "", 8),
    "phi, norms of q and k": ({
        "model_type": "phi", "vocab_size": 16, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "qk_layernorm": True,
        "partial_rotary_factor": 0.34, "rope_theta": 300.0,
    }, "", 8),
    "phi3, LongRoPE, short sequences": (PHI3, "", 6),
    "phi3, LongRoPE, long sequences and a window": (PHI3 | {"sliding_window": 5}, "", 8),
    "phimoe, a border that few experts reach": (LLAMA | {
        "model_type": "phimoe", "num_local_experts": 5, "router_jitter_noise": 0.4, "sliding_window": 4,
    }, "", 8),
    "qwen2_moe, windows and experts in every other block": (LLAMA | {
        "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "shared_expert_intermediate_size": 14, "decoder_sparse_step": 2, "norm_topk_prob": True, "use_sliding_window": True,
        "sliding_window": 3, "max_window_layers": 1, "qkv_bias": False,
    }, "", 8),
    "qwen3_moe, windows": (LLAMA | {
        "model_type": "qwen3_moe", "head_dim": 8, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "use_sliding_window": True, "sliding_window": 3, "attention_bias": True,
    }, "", 8),
    "seed_oss, a bias of the output": (LLAMA | {
        "model_type": "seed_oss", "head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True,
    }, "", 8),
    "smollm3, windows where nothing rotates": (LLAMA | {
        "model_type": "smollm3", "use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2, "pad_token_id": 0,
        "attention_bias": True,
    }, "", 8),
    "stablelm, attention beside the MLP": (LLAMA | {
        "model_type": "stablelm", "use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.67,
    }, "", 8),
    "starcoder2, no biases": (LLAMA | {
        "model_type": "starcoder2", "use_bias": False, "tie_word_embeddings": False, "sliding_window": 3,
    }, "", 8),
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
    model_class = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
    model = model_class.from_config(AutoConfig.for_model(**config))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "pt") as stored:
            shapes = {name.removeprefix(prefix): list(stored.get_slice(name).get_shape()) for name in stored.keys()}
            full = {name.removeprefix(prefix): name for name in stored.keys()}
        save_file({full[name]: tensor for name, tensor in weights(shapes).items()}, file, {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = model_class.from_pretrained(
            folder, attn_implementation=attention, experts_implementation="eager", dtype=torch.float32
        ).eval()
    source = random.Random(5)
    vocabulary = config.get("text_config", config)["vocab_size"]
    ids = [[source.randint(0, vocabulary - 1) for _ in range(length)] for _ in range(2)]
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits
    encoded = base64.b64encode(logits.contiguous().numpy().astype("<f4").tobytes()).decode()
    return {"config": config, "shapes": shapes, "ids": ids, "logits": encoded}


if __name__ == "__main__":
    made = {title: variant(*arguments) for title, arguments in VARIANTS.items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n")
