"""Every random choice of training as a pure function of the seed and a position.

Nothing here remembers what was drawn before: a run that is resumed, or shared by several processes, makes the same
choices as one that never stopped. Steps and epochs count from 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

# One independent stream of random numbers for each kind of choice.
_ORDER, _VIEWS, _TEXT, _CROP, _OWN_VIEWS, _SET = range(6)


def seed_of_set(seed: int, number: int) -> int:
    """The seed of set `number` (from 0) of those that train together: each makes choices of its own."""
    return seed if number == 0 else int(_rng(_SET, seed, number).integers(2**63))


@lru_cache(maxsize=4)  # asked for again at each step of the epoch; 7 MB for 900,000 objects
def epoch_order(num_objects: int, *, seed: int, epoch: int) -> np.ndarray:
    """Permutation of `range(num_objects)` in which an epoch visits the objects, int64 (N,), read-only."""
    order = _rng(_ORDER, seed, epoch).permutation(num_objects)
    order.setflags(write=False)
    return order


def batch_of_step(num_objects: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Positions (B,) of the objects of a global batch; an epoch drops those beyond its last full batch."""
    epoch, index = divmod(step, num_objects // batch_size)
    return epoch_order(num_objects, seed=seed, epoch=epoch)[index * batch_size : (index + 1) * batch_size]


def views_of_step(num_views: tuple[int, int], views_in_store: int, *, seed: int, step: int) -> np.ndarray:
    """View numbers of every object of a step's global batch, int64 (F,), increasing.

    F is uniform in `num_views` (both ends included), the views are a uniform choice of F out of `views_in_store`.
    """
    rng = _rng(_VIEWS, seed, step)
    fewest, most = num_views
    count = int(rng.integers(fewest, most, endpoint=True))
    return np.sort(rng.choice(views_in_store, size=count, replace=False))


def views_of_objects(
    num_views: tuple[int, int], views_in_store: int, *, seed: int, step: int, objects: slice
) -> np.ndarray:
    """View numbers of each object at some places of a step's global batch, int64 (B, F), each row increasing.

    F is that of `views_of_step`; an object's views depend on its place alone.
    """
    count = len(views_of_step(num_views, views_in_store, seed=seed, step=step))
    rng = _rng(_OWN_VIEWS, seed, step)
    rng.bit_generator.advance(objects.start * views_in_store)  # type: ignore[attr-defined]
    lots = rng.random((objects.stop - objects.start, views_in_store))
    return np.sort(np.argsort(lots, axis=1)[:, :count], axis=1)


def text_rng(*, seed: int, step: int, first: int = 0) -> np.random.Generator:
    """The random numbers that pick the text targets of a step's objects, of which each uses up four.

    `first`: the place in the global batch of the first object they are for.
    """
    rng = _rng(_TEXT, seed, step)
    rng.bit_generator.advance(4 * first)  # type: ignore[attr-defined]
    return rng


def crop_generator(*, seed: int, step: int) -> torch.Generator:
    """The random numbers (on the CPU, whatever the device) that place a step's crop."""
    return torch.Generator().manual_seed(int(_rng(_CROP, seed, step).integers(2**63)))


def _rng(stream: int, seed: int, position: int) -> np.random.Generator:
    return np.random.default_rng([stream, seed % 2**64, position])
