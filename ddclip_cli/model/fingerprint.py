"""A short name for exactly these weights, the same whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 256
"""Values of each tensor that count: enough to tell models apart, and read in milliseconds."""


def fingerprint(state: Mapping[str, Tensor], cross_view_from: int) -> str:
    """16 hex digits: sha256 over every tensor's name, shape and first 256 values as float32, and `cross_view_from`."""
    heads = {
        name: (tuple(tensor.shape), tensor.detach().flatten()[:SAMPLED].float().cpu().numpy())
        for name, tensor in state.items()
    }
    return fingerprint_of_heads(heads, cross_view_from)


def fingerprint_of_heads(heads: Mapping[str, tuple[tuple[int, ...], np.ndarray]], cross_view_from: int) -> str:
    """The same from name -> (shape, first 256 values), for those who have not read more."""
    digest = hashlib.sha256(f"cross_view_from={cross_view_from}".encode())
    for name in sorted(heads):
        shape, values = heads[name]
        digest.update(f"{name}:{shape}".encode())
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()[:16]
