"""Which views of an object an evaluation sees: a pure function of seed, run and object."""

from __future__ import annotations

import hashlib

import numpy as np


def view_order(num_views: int, *, seed: int, run: int, object_id: str) -> np.ndarray:
    """A random order of an object's views, of which an evaluation at F views takes the first F.

    The choices are therefore nested (the views of F = 1 are among those of F = 6), so that numbers of views are
    compared on the same pictures, and they do not depend on other objects, on the batch or on which F are asked for.
    They come from a hash, not a library's generator, and so stay the same in every version of everything.

    Returns:
        (num_views,) int64, a permutation of 0..num_views-1.
    """
    digest = _digest(f"views/{seed}/{run}/{object_id}", 8 * num_views)
    return np.argsort(np.frombuffer(digest, dtype="<u8"), kind="stable")


def crop_seed(*, seed: int, run: int, object_id: str) -> int:
    """Seed of an object's random crop in a run, one crop for all its views and all numbers of views; 63 bits."""
    return int.from_bytes(_digest(f"crop/{seed}/{run}/{object_id}", 8), "little") >> 1


def _digest(key: str, length: int) -> bytes:
    return hashlib.shake_128(key.encode("utf-8", "surrogatepass")).digest(length)
