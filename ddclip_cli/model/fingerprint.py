"""A short name for exactly these weights, the same whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

SAMPLED = 256
"""Values of each tensor that count: enough to tell models apart, and read in milliseconds."""


def fingerprint(state: Mapping[str, Tensor], cross_view_from: int) -> str:
    """16 hex digits: sha256 over every tensor's name, shape and first 256 values as float32, and `cross_view_from`."""
    digest = hashlib.sha256(f"cross_view_from={cross_view_from}".encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:SAMPLED].float().cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]
