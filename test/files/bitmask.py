"""Writes bitmask.safetensors: small matrices, and what compressed-tensors makes of them (sparse-bitmask).

    python test/files/bitmask.py        with torch, safetensors and compressed-tensors==0.12.2

With a folder that `sparsegpt pack` has written and its dense source it checks that compressed-tensors reads the one as the other:

    python test/files/bitmask.py PACKED DENSE
"""

import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskCompressor
from compressed_tensors.config import BitmaskConfig
from safetensors.torch import load_file, save_file

compressor = BitmaskCompressor(config=BitmaskConfig())


def write(file: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype, rows, columns in [
        ("a", torch.float32, 5, 13),
        ("b", torch.bfloat16, 9, 64),
        ("c", torch.float16, 4, 37),
    ]:
        dense = torch.randn(rows, columns, generator=generator).to(dtype)
        dense[torch.rand(rows, columns, generator=generator) < 0.6] = 0
        dense[1] = 0
        dense[2, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        tensors[f"{name}.weight"] = dense
        tensors |= compressor.compress({f"{name}.weight": dense})
    save_file(tensors, file)


def check(packed: Path, dense: Path) -> None:
    expected = load_file(dense / "model.safetensors")
    read = dict(compressor.decompress(str(packed / "packed.safetensors")))
    assert read.keys() == expected.keys(), read.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == read[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), read[name].contiguous().view(torch.uint8)), name
    print(f"{len(expected)} tensors are the same")


if len(sys.argv) == 3:
    check(Path(sys.argv[1]), Path(sys.argv[2]))
else:
    write(Path(__file__).with_name("bitmask.safetensors"))
