"""Writes the folders beside it: a tiny LLaMA that compressed-tensors has quantized (pack-quantized), and the logits of transformers.

    python test/files/pack-quantized/make.py        with torch, transformers==5.24.0 and compressed-tensors==0.20.0

With a folder that `sparsegpt prune --encoding compressed-tensors` has written and the one that `--encoding dense` has it checks that
compressed-tensors reads the one as the other:

    python test/files/pack-quantized/make.py QUANTIZED DENSE
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor as Compressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

config = dict(
    vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, tie_word_embeddings=True, dtype="float32",
)
ids = torch.tensor([[1, 5, 9, 2, 31, 7, 0, 3]])


def logits(folder: Path) -> torch.Tensor:
    dequantize = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=dequantize, attn_implementation="eager")
    with torch.no_grad():
        return model(ids).logits[0]


def write(folder: Path, bits: int, group: int | None, symmetric: bool) -> None:
    torch.manual_seed(bits)
    model = LlamaForCausalLM(LlamaConfig(**config))
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel", group_size=group
        ),
    )
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "_proj." not in name:
            tensors[name] = weight.detach().clone()
            continue
        rows, columns = weight.shape
        groups = weight.view(rows, -1, group or columns)
        if symmetric:
            scale = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
            zero = torch.zeros_like(scale, dtype=torch.int8)
        else:
            low, high = groups.amin(-1), groups.amax(-1)
            scale = (high - low) / (2**bits - 1)
            zero = (torch.round(-low / scale) - 2 ** (bits - 1)).to(torch.int8)
        parts = Compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
        for part, tensor in parts.items():
            tensors[name.removesuffix("weight") + part] = tensor.detach().clone().contiguous()
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": scheme.model_dump()}, "ignore": ["lm_head"],
    }
    entries = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | config
    (folder / "config.json").write_text(json.dumps(entries | {"quantization_config": quantization}, indent=2) + "\n")
    save_file({"input_ids": ids, "logits": logits(folder)}, folder.with_suffix(".safetensors"))


def check(quantized: Path, dense: Path) -> None:
    dequantize = CompressedTensorsConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(quantized, quantization_config=dequantize, dtype="auto").state_dict()
    expected = load_file(dense / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(tensor, read[name]) and tensor.dtype == read[name].dtype, name
    print(f"{len(expected)} tensors are the same")


if len(sys.argv) == 3:
    check(Path(sys.argv[1]), Path(sys.argv[2]))
else:
    here = Path(__file__).parent
    write(here / "4-bits", 4, 32, True)
    write(here / "8-bits", 8, None, False)
