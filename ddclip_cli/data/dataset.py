"""Global batches of training, one a step, read from a view store and its precomputed targets."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import numpy as np
import torch

from ddclip_cli.data import view_sampler
from ddclip_cli.data.object_ids import digest
from ddclip_cli.errors import UsageError, UserError, some


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


class PerViewTextTargetReader(ImageTargetReader, Protocol):
    """What is asked of text targets that every view has its own of (`data.targets.PerViewTextTargets`)."""


@dataclass(frozen=True)
class ObjectSet:
    """Objects to train on: their views and their frozen targets."""

    store: Views
    image_targets: ImageTargetReader
    text_targets: TextTargetReader | PerViewTextTargetReader
    object_ids: Sequence[str] | None = None
    """None: every object of the store."""


@dataclass(frozen=True)
class Batch:
    """A global batch of one set of objects, or a process's share of it: B objects, F views of each."""

    step: int
    """Counted from 0."""
    object_ids: list[str]
    view_numbers: list[int] | list[list[int]]
    """(F,) increasing, of every object; or (B, F), of each."""
    views: torch.Tensor
    """(B, F, 3, H, W) uint8."""
    image_targets: torch.Tensor
    """(B, E) float32, mean of the un-normalised features of exactly these views."""
    text_targets: torch.Tensor
    """(B, E) float32, un-normalised: one drawn, or the mean of those of exactly these views."""

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

    Args:
        share_views: whether all objects of a step are seen in the same views, or each in its own.
        share: (number, of): read that one of so many equal parts of every batch; together they are the batch.

    Raises UserError for objects that the store or the targets lack, views that they do not have, and fewer objects than
    a batch; UsageError for a batch that has no such parts.
    """

    def __init__(
        self,
        objects: ObjectSet,
        *,
        batch_size: int,
        num_views: tuple[int, int],
        seed: int,
        share_views: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.batch_size, self.num_views, self.seed, self.share_views = batch_size, num_views, seed, share_views
        self.store, self.image_targets, texts = objects.store, objects.image_targets, objects.text_targets
        self._drawn = cast(TextTargetReader, texts) if hasattr(texts, "draw") else None
        self._per_view = None if self._drawn else cast(PerViewTextTargetReader, texts)
        self.object_ids = list(self.store.ids if objects.object_ids is None else objects.object_ids)
        number, parts = share
        if batch_size % parts:
            raise UsageError(
                f"a global batch of {batch_size} objects has no {parts} equal parts: "
                "choose a number of processes that divides it, or another batch_size"
            )
        self._places = slice(number * (batch_size // parts), (number + 1) * (batch_size // parts))
        self._rows = self.store.rows(self.object_ids)
        self._target_rows = self.image_targets.rows(self.object_ids)
        self._refuse_what_does_not_fit()
        self._text_rows = self._per_view.rows(self.object_ids) if self._per_view else None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.object_ids) // self.batch_size

    def object_ids_of(self, step: int) -> list[str]:
        """Of the whole global batch."""
        places = view_sampler.batch_of_step(len(self.object_ids), self.batch_size, seed=self.seed, step=step)
        return [self.object_ids[i] for i in places]

    def digest(self) -> str:
        """A short name for these objects in their order and the targets of three of them; that of all shares."""
        last, view = len(self.object_ids) - 1, np.zeros(1, np.int64)
        probed = np.array([0, last // 2, last])
        images = self.image_targets.read(self._target_rows[probed], view)
        ids, rng = [self.object_ids[i] for i in probed], view_sampler.text_rng(seed=0, step=0)
        texts = self._texts(ids, probed, view, rng)
        found = hashlib.sha256(digest(self.object_ids).encode())
        for features in (images, texts):
            found.update(features.astype(np.float32).tobytes())
        return found.hexdigest()[:8]

    def __getitem__(self, step: int) -> Batch:
        batch = view_sampler.batch_of_step(len(self.object_ids), self.batch_size, seed=self.seed, step=step)
        objects, views = batch[self._places], self._views_of(step)
        object_ids = [self.object_ids[i] for i in objects]
        rng = view_sampler.text_rng(seed=self.seed, step=step, first=self._places.start)
        return Batch(
            step=step,
            object_ids=object_ids,
            view_numbers=views.tolist(),
            views=torch.from_numpy(self.store.read(self._rows[objects], views)),
            image_targets=_aligned(self.image_targets.read(self._target_rows[objects], views)),
            text_targets=_aligned(self._texts(object_ids, objects, views, rng)),
        )

    def _views_of(self, step: int) -> np.ndarray:
        """(F,), or (B, F) if every object has its own."""
        asked = (self.num_views, self.store.num_views)
        if self.share_views:
            return view_sampler.views_of_step(*asked, seed=self.seed, step=step)
        return view_sampler.views_of_objects(*asked, seed=self.seed, step=step, objects=self._places)

    def _texts(
        self, object_ids: list[str], objects: np.ndarray, views: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        if self._drawn:
            return self._drawn.draw(object_ids, rng)
        assert self._per_view is not None
        assert self._text_rows is not None
        return self._per_view.read(self._text_rows[objects], views)

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
        if self._per_view and self._per_view.num_views != stored:
            raise UserError(
                f"the text targets have {self._per_view.num_views} views an object and the store {stored}: "
                "make them for the views of this store"
            )
        missing = self._drawn.lacking(self.object_ids) if self._drawn else []  # the others' rows say it themselves
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.object_ids)} objects have no text target: {some(missing)}; "
                "leave them out of data.objects or make the targets again (ddclip encode-targets)"
            )


def _aligned(features: np.ndarray) -> torch.Tensor:
    """A float32 copy in torch's own memory: a matrix product may round differently where numpy happened to put it,
    and the same step must give the same bits in every process."""
    return torch.tensor(features, dtype=torch.float32)


class StepBatches(tuple[Batch, ...]):
    """The batches of one step, one a set of objects."""

    __slots__ = ()

    def pin_memory(self) -> StepBatches:
        return StepBatches(batch.pin_memory() for batch in self)


class Mixture:
    """Sets of objects that train together: every step takes a batch of each, with views of its own number.

    An epoch is as long as the longest set; the shorter ones start again, in another order.
    """

    def __init__(self, sets: Sequence[TrainingData]) -> None:
        self.sets = tuple(sets)
        self.batch_size = sum(data.batch_size for data in self.sets)
        self.steps_per_epoch = max(data.steps_per_epoch for data in self.sets)

    def object_ids_of(self, step: int) -> list[str]:
        """Of the global batches of all sets."""
        return [object_id for data in self.sets for object_id in data.object_ids_of(step)]

    def __getitem__(self, step: int) -> StepBatches:
        return StepBatches(data[step] for data in self.sets)


Item = TypeVar("Item", Batch, StepBatches)
Item_co = TypeVar("Item_co", Batch, StepBatches, covariant=True)


class Steps(Protocol[Item_co]):
    """Anything that has what a step trains on."""

    def __getitem__(self, step: int) -> Item_co: ...


def batches(data: Steps[Item], first_step: int, end_step: int, *, jobs: int = 0, pin: bool = False) -> Iterator[Item]:
    """What `data` has for the steps `first_step` .. `end_step - 1` in order, read ahead by `jobs` threads (0: none).

    Threads, not processes: reading is copying out of a memory map, during which numpy lets other threads run. So
    nothing goes through /dev/shm (64 MB in a container), nothing is forked, and `jobs` + 1 batches are in memory.
    `pin` puts them into page-locked memory, from which a GPU copies while it computes.
    """

    def read(step: int) -> Item:
        batch = data[step]
        return batch.pin_memory() if pin else batch

    if jobs == 0:
        yield from map(read, range(first_step, end_step))
        return
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="batches")
    waiting: deque[Future[Item]] = deque()
    try:
        for step in range(first_step, end_step):
            waiting.append(pool.submit(read, step))
            if len(waiting) > jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
