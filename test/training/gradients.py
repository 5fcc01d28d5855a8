#!/usr/bin/env python3
"""Makes torch-gradients.json: of every golden model of the shared folder the gradients of Σ h_i cos(i), h being the last block's output.

    pip install torch transformers && python test/training/gradients.py ../shared/golden/models

Of a gradient g, in the checkpoint's names and layout: Σ g_i cos(i) and ‖g‖.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def cosines(like):
    return torch.arange(like.numel(), dtype=torch.float64).cos().reshape(like.shape)


def digest(gradient):
    gradient = gradient.double()
    return [float(f"{x.item():.7g}") for x in ((gradient * cosines(gradient)).sum(), gradient.norm())]


def parts(name, tensor):
    """The matrices or biases of experts that are in one tensor; others as they are."""
    stem, end = (name.removesuffix("_bias"), "bias") if name.endswith("_proj_bias") else (name.removesuffix(".weight"), "weight")
    if tensor.dim() < 3 and end == "weight":
        return [(name, tensor)]
    return [(f"{stem}.{i}.{end}", part) for i, part in enumerate(tensor)]


def gradients(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model.eval()
    prefix, blocks = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and name.split(".")[-1] in ("layers", "h", "blocks")
    )
    seen = {}

    def before(_, arguments, named):
        seen["input"] = arguments[0] if arguments else named["hidden_states"]
        seen["input"].retain_grad()

    def after(_, __, output):
        seen["output"] = output[0] if isinstance(output, tuple) else output

    blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    blocks[-1].register_forward_hook(after)
    model(load_file(folder / "expected.safetensors")["input_ids"], use_cache=False)
    (seen["output"] * cosines(seen["output"])).sum().backward()
    # Saved in the place of the parameters, the gradients get the checkpoint's names and layouts.
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tensors = load_file(Path(saved) / "model.safetensors")
    of_blocks = {
        part: gradient
        for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
        for part, gradient in parts(name, tensor)
    }
    return {
        "input": digest(seen["input"].grad),
        "parameters": {name: digest(tensor) for name, tensor in sorted(of_blocks.items())},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/config.json"))
    made = {folder.name: gradients(folder) for folder in folders}
    Path(__file__).with_name("torch-gradients.json").write_text(json.dumps(made, indent=1) + "\n")
