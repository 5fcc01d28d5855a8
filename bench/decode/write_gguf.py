"""Writes a dense LLaMA checkpoint as a GGUF file for llama.cpp, with the same weights.

    python write_gguf.py MODEL FILE <bf16 | q8_0 | q4_0>

All matrices, the embeddings and the head too, get the type asked for; norms and biases are float32. The names of
the tokens are placeholders: llama.cpp gets token ids. It needs the package gguf from PyPI. Holds one tensor in memory at a time.
"""

import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np

dtypes = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class Checkpoint:
    """The tensors of a folder's safetensors files, mapped."""

    def __init__(self, folder):
        self.shapes, self.places = {}, {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                if entry["dtype"] in dtypes:  # other files in the folder may hold token ids
                    self.shapes[name] = entry["shape"]
                    self.places[name] = (path, 8 + size + entry["data_offsets"][0], dtypes[entry["dtype"]])

    def read(self, name):
        """The tensor in float32."""
        path, offset, dtype = self.places[name]
        data = np.memmap(path, dtype, "r", offset, tuple(self.shapes[name]))
        if dtype == np.uint16:
            return (data.astype(np.uint32) << 16).view(np.float32)
        return np.array(data, np.float32)


def interleave(tensor, heads):
    """Rows [2, d / 2] of a head to [d / 2, 2]: llama.cpp rotates neighbours where transformers rotates halves."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)


def write(model, file, kind):
    config = json.loads((model / "config.json").read_text())
    if config["model_type"] != "llama":
        sys.exit(f"{model}: model_type is {config['model_type']}, and only llama can be written as GGUF here")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        sys.exit(f"{model}: scaled rotary frequencies cannot be written as GGUF here")
    hidden, blocks = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or hidden // heads

    writer = gguf.GGUFWriter(None, "llama")
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.name}"))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<0x{i:02X}>" for i in range(config["vocab_size"])])  # it looks for those of the bytes
    writer.add_token_scores([0.0] * config["vocab_size"])

    checkpoint = Checkpoint(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    tensors = []
    for name, shape in checkpoint.shapes.items():
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        there = names.get_name(name, (".weight", ".bias"))
        if there is None:
            sys.exit(f"{model}: {name} is no tensor of a dense LLaMA model (sparsegpt unpack makes a packed one dense)")
        dtype = kind if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, dtype)))
        writer.add_tensor_info(there, shape, np.dtype(np.float32), size, dtype)
        tensors.append((name, dtype))

    # A file of this name is a whole one.
    partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, dtype in tensors:
            tensor = checkpoint.read(name)
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if f".{part}." in name:
                    tensor = interleave(tensor, count)
            writer.write_tensor_data(gguf.quantize(tensor, dtype))
        writer.close()
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in ("bf16", "q8_0", "q4_0"):
        sys.exit(__doc__)
    model, file, kind = sys.argv[1:]
    write(Path(model), Path(file), gguf.GGMLQuantizationType[kind.upper()])
