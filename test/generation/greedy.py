#!/usr/bin/env python3
"""Makes greedy.json: the tokens that transformers generates, the likeliest one each time, with the tiny models of the shared folder.

    pip install torch transformers && python test/generation/greedy.py ../shared/golden/models

Models without a table of positions are given a longer context than their config.json has, so that long prompts fit; greedy.test.ts does
the same. No token ends a text.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

# As in test/models/golden-models.ts, and one whose frequencies depend on the length of a sequence.
MODELS = [
    "bloom", "falcon", "gemma", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "llama3", "mistral", "mixtral", "opt",
    "opt-350m", "phi", "phi3", "phi3-longrope", "qwen2", "qwen3",
]
# The context cannot be longer than the table of positions.
TABLES = ["gpt2", "gpt_neo", "opt", "opt-350m"]
CONTEXT = 320
TOKENS = 64


def prompt(length, vocabulary):
    return [3 + (i * i + 5 * i + length) % (vocabulary - 3) for i in range(length)]


def main(folder):
    result = {}
    for name in MODELS:
        config = json.loads((folder / name / "config.json").read_text())
        if name not in TABLES:
            config["n_positions" if name == "gptj" else "max_position_embeddings"] = CONTEXT
        context = config.get("n_positions", config.get("max_position_embeddings", CONTEXT))
        with tempfile.TemporaryDirectory() as copy:
            (Path(copy) / "config.json").write_text(json.dumps(config))
            (Path(copy) / "model.safetensors").symlink_to((folder / name / "model.safetensors").resolve())
            model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32, attn_implementation="eager")
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        rows = []
        for length in [1, 7, 40 if name in TABLES else 200]:
            ids = torch.tensor([prompt(length, config["vocab_size"])])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                 max_new_tokens=min(TOKENS, context - length), use_cache=True)
            rows.append({"prompt": length, "tokens": " ".join(map(str, out[0, length:].tolist()))})
        result[name] = rows
        print(name, [len(set(row["tokens"])) for row in rows])
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
