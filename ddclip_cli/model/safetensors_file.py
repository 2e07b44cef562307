"""Writing the format of safetensors one tensor after another, as the library itself takes a second copy of all."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""In the order of the library: wide ones first, so that every number lies at a multiple of its size."""


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a state dict; tensors may be strided and may share memory. The bytes are those that `save_file` writes."""
    ranks = {dtype: rank for rank, dtype in enumerate(NAMES)}
    ordered = sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    described = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for _, tensor in ordered:
            file.write(_bytes(tensor).data)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
