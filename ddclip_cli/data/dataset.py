"""Global batches of training, one a step, read from a view store and its precomputed targets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ddclip_cli.data import view_sampler
from ddclip_cli.errors import UserError, some


class Views(Protocol):
    """What is asked of a view store (`data.view_store.ViewStore`)."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def num_views(self) -> int: ...
    def rows(self, object_ids: Sequence[str]) -> np.ndarray: ...
    def read(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray: ...


class ImageTargetReader(Protocol):
    """What is asked of image targets (`data.targets.ImageTargets`)."""

    @property
    def num_views(self) -> int: ...
    def rows(self, object_ids: Sequence[str]) -> np.ndarray: ...
    def read(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray: ...


class TextTargetReader(Protocol):
    """What is asked of text targets (`data.text_targets.TextTargets`)."""

    def lacking(self, object_ids: Sequence[str]) -> list[str]: ...
    def draw(self, object_ids: Sequence[str], rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class ObjectSet:
    """Objects to train on: their views and their frozen targets."""

    store: Views
    image_targets: ImageTargetReader
    text_targets: TextTargetReader
    object_ids: Sequence[str] | None = None
    """None: every object of the store."""


@dataclass(frozen=True)
class Batch:
    """One global batch: B objects, the same F views of each."""

    step: int
    """Counted from 0."""
    object_ids: list[str]
    view_numbers: list[int]
    """(F,) increasing."""
    views: torch.Tensor
    """(B, F, 3, H, W) uint8."""
    image_targets: torch.Tensor
    """(B, E) float32, mean of the un-normalised features of exactly these views."""
    text_targets: torch.Tensor
    """(B, E) float32, un-normalised."""

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return replace(
            self,
            views=self.views.pin_memory(),
            image_targets=self.image_targets.pin_memory(),
            text_targets=self.text_targets.pin_memory(),
        )


class TrainingData:
    """Maps a step (from 0, through all epochs) to its Batch; a pure function, whatever was read before.

    Raises UserError for objects that the store or the targets lack, views that they do not have, and fewer objects than
    a batch.
    """

    def __init__(self, objects: ObjectSet, *, batch_size: int, num_views: tuple[int, int], seed: int) -> None:
        self.batch_size, self.num_views, self.seed = batch_size, num_views, seed
        self.store, self.image_targets, self.text_targets = objects.store, objects.image_targets, objects.text_targets
        self.object_ids = list(self.store.ids if objects.object_ids is None else objects.object_ids)
        self._rows = self.store.rows(self.object_ids)
        self._target_rows = self.image_targets.rows(self.object_ids)
        self._refuse_what_does_not_fit()

    @property
    def steps_per_epoch(self) -> int:
        return len(self.object_ids) // self.batch_size

    def __getitem__(self, step: int) -> Batch:
        objects = view_sampler.batch_of_step(len(self.object_ids), self.batch_size, seed=self.seed, step=step)
        views = view_sampler.views_of_step(self.num_views, self.store.num_views, seed=self.seed, step=step)
        object_ids = [self.object_ids[i] for i in objects]
        text_rng = view_sampler.text_rng(seed=self.seed, step=step)
        return Batch(
            step=step,
            object_ids=object_ids,
            view_numbers=views.tolist(),
            views=torch.from_numpy(self.store.read(self._rows[objects], views)),
            image_targets=_aligned(self.image_targets.read(self._target_rows[objects], views)),
            text_targets=_aligned(self.text_targets.draw(object_ids, text_rng)),
        )

    def _refuse_what_does_not_fit(self) -> None:
        stored, (fewest, most) = self.store.num_views, self.num_views
        if len(self.object_ids) < self.batch_size:
            raise UserError(
                f"{len(self.object_ids)} objects do not fill a batch of {self.batch_size}: "
                "lower train.batch_size or bring more objects"
            )
        if most > stored:
            raise UserError(
                f"train.num_views asks for up to {most} views but the store has {stored} an object: "
                f"set train.num_views=[{min(fewest, stored)},{stored}]"
            )
        if self.image_targets.num_views != stored:
            raise UserError(
                f"the image targets have {self.image_targets.num_views} views an object and the store {stored}: "
                "make the targets from this store (ddclip encode-targets)"
            )
        missing = self.text_targets.lacking(self.object_ids)
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.object_ids)} objects have no text target: {some(missing)}; "
                "leave them out of data.objects or make the targets again (ddclip encode-targets)"
            )


def _aligned(features: np.ndarray) -> torch.Tensor:
    """A float32 copy in torch's own memory: a matrix product may round differently where numpy happened to put it,
    and the same step must give the same bits in every process."""
    return torch.tensor(features, dtype=torch.float32)


def batches(data: TrainingData, first_step: int, end_step: int, *, jobs: int = 0, pin: bool = False) -> Iterator[Batch]:
    """Batches of the steps `first_step` .. `end_step - 1` in order, read ahead by `jobs` threads (0: none).

    Threads, not processes: reading is copying out of a memory map, during which numpy lets other threads run. So
    nothing goes through /dev/shm (64 MB in a container), nothing is forked, and `jobs` + 1 batches are in memory.
    `pin` puts them into page-locked memory, from which a GPU copies while it computes.
    """

    def read(step: int) -> Batch:
        batch = data[step]
        return batch.pin_memory() if pin else batch

    if jobs == 0:
        yield from map(read, range(first_step, end_step))
        return
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="batches")
    waiting: deque[Future[Batch]] = deque()
    try:
        for step in range(first_step, end_step):
            waiting.append(pool.submit(read, step))
            if len(waiting) > jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
