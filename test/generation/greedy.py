#!/usr/bin/env python3
"""Makes greedy.json: the tokens that transformers generates, the likeliest one each time, with the tiny models of the shared folder.

    pip install torch transformers && python test/generation/greedy.py ../shared/golden/models

Where that changes nothing else, a model is given a longer context than its config.json has, so that long prompts fit: the entries
`config` of its result. No token ends a text.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

# What else the context decides: the size of a table of positions, or the frequencies of rotary ones.
FIXED = ["gpt2", "gpt_bigcode", "gpt_neo", "opt", "opt-350m", "llama-dynamic", "llama-yarn"]
CONTEXT = 320
TOKENS = 64


def prompt(length, vocabulary):
    return [3 + (i * i + 5 * i + length) % (vocabulary - 3) for i in range(length)]


def main(folder):
    result = {}
    for name in sorted(path.parent.name for path in folder.glob("*/config.json")):
        config = json.loads((folder / name / "config.json").read_text())
        entry = next((e for e in ("n_positions", "max_position_embeddings", "max_seq_len") if e in config), "seq_length")
        changes = {} if name in FIXED else {entry: CONTEXT}
        config |= changes
        context = config[entry]
        with tempfile.TemporaryDirectory() as copy:
            (Path(copy) / "config.json").write_text(json.dumps(config))
            (Path(copy) / "model.safetensors").symlink_to((folder / name / "model.safetensors").resolve())
            model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32, attn_implementation="eager")
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        rows = []
        for length in [1, 7, 40 if name in FIXED else 200]:
            ids = torch.tensor([prompt(length, config["vocab_size"])])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                 max_new_tokens=min(TOKENS, context - length), use_cache=True)
            rows.append({"prompt": length, "tokens": " ".join(map(str, out[0, length:].tolist()))})
        result[name] = {"config": changes, "texts": rows}
        print(name, [len(set(row["tokens"].split())) for row in rows])
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
