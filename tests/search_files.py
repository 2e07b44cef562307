"""Embeddings whose vectors are made here, without a model, and what a file of an index consists of."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from ddclip_cli.data.hdf5_output import create_contiguous, create_ids
from ddclip_cli.search.index_file import TAIL


def write_embeddings(path: Path, vectors: np.ndarray, ids: list[str] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["made_by"] = json.dumps({"checkpoint": "none", "fingerprint": "0123456789abcdef"})
        create_ids(file, ids or [f"object-{row}" for row in range(len(vectors))])
        create_contiguous(file, "shape_feat", vectors.shape, "<f4")[:] = vectors
    return path


def clustered(number: int, seed: int = 0, width: int = 48) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((60, width))
    vectors = centres[rng.integers(60, size=number)] + 0.7 * rng.standard_normal((number, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def split(data: bytes) -> tuple[bytes, dict]:
    """What faiss wrote, and our record of it."""
    length, _ = TAIL.unpack(data[-TAIL.size :])
    return data[: -TAIL.size - length], json.loads(data[-TAIL.size - length : -TAIL.size])
