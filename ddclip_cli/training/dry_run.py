"""What a run will take, before it is begun: counts, memory, and time from a few steps on a part of a batch."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddclip_cli.data.dataset import Batch, Mixture
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.trainer import Trainer

OBJECTS_TRIED = {"cpu": 4, "cuda": 64}
"""Objects of a trial step; what it takes is scaled to a process's share of a batch."""
TRIALS = 3
TAKEN = {"cpu": 1.35, "cuda": 1.0}
"""Bytes that are taken for one of a tensor: on a CPU by the C library, which keeps some of what was freed, as measured;
on a GPU what its allocator says."""


@dataclass(frozen=True)
class DryRun:
    """What a run will take in each of its processes; estimates are without evaluations and what processes exchange."""

    objects: int
    batch_size: int
    """Objects in a global batch, of all sets."""
    steps_per_epoch: int
    steps: int
    trained_numbers: int
    numbers: int
    memory_gb: float
    """Of model, optimizer, activations at the most views, and batches read ahead."""
    reading_seconds: float
    """To read a process's share of a step, beside the computation if it is read ahead."""
    step_seconds: float
    """To compute on a process's share of a step of an average number of views."""
    seconds: float
    """For all steps."""


def dry_run(
    model: MultiViewCLIP,
    data: Mixture,
    plan: TrainingPlan,
    *,
    micro_batch: int | None = None,
    recompute: bool = False,
    jobs: int = 0,
) -> DryRun:
    """Try a few steps. `data` is a process's share of every batch; `model` is prepared for training, not trained."""
    trainer = Trainer(model, plan, micro_batch=micro_batch, recompute=recompute)
    begin = time.perf_counter()
    share = data[0]
    reading = time.perf_counter() - begin
    at_once = sum(len(batch.object_ids) for batch in share)
    tried = min(at_once, micro_batch or at_once, OBJECTS_TRIED[model.device.type])
    fewest, most = plan.num_views
    small = _part(share[0], tried, most)

    in_network = min(micro_batch or at_once, at_once)
    fewer = max(1, tried // 2)
    trainer.step([small], learning_rate=0.0)  # the optimizer makes its own
    less, more = _bytes_made(trainer, _part(small, fewer, most)), _bytes_made(trainer, small)
    of_an_object = (more - less) / (tried - fewer) if tried > fewer else more / tried
    in_a_step = (more + of_an_object * (in_network - tried)) * TAKEN[model.device.type]
    views_of_share = at_once * most * share[0].views[0, 0].nbytes
    tokens = 0.0
    if micro_batch and not model.learns_in_single_views:  # kept between the two passes
        tokens = _bytes_of_tokens(model, small, plan) / tried * at_once
    trained = sum(parameter.numel() for parameter in trainer.parameters)
    numbers = sum(parameter.numel() for parameter in model.clip.parameters())
    copies = 2 + (plan.ema_decay is not None)  # two moments, average; gradients are made in a step
    size = trainer.parameters[0].element_size()
    memory = size * (numbers + copies * trained) + in_a_step + tokens + views_of_share * (jobs + 1)

    mean = (fewest + most) / 2
    average = _part(share[0], tried, max(1, round(mean)))
    if in_network < at_once:
        trainer.micro_batch = (tried + 1) // 2  # so that it is in pieces too, which takes one more pass
    seconds = min(_seconds(lambda: trainer.step([average], learning_rate=0.0), model.device) for _ in range(TRIALS))
    step_seconds = seconds / tried * at_once * mean / average.views.shape[1]
    steps = plan.epochs * data.steps_per_epoch
    return DryRun(
        objects=sum(len(own.object_ids) for own in data.sets),
        batch_size=data.batch_size,
        steps_per_epoch=data.steps_per_epoch,
        steps=steps,
        trained_numbers=trained,
        numbers=numbers,
        memory_gb=memory / 1e9,
        reading_seconds=reading,
        step_seconds=step_seconds,
        seconds=steps * (max(step_seconds, reading / jobs) if jobs else step_seconds + reading),
    )


def rows(found: DryRun) -> list[tuple[str, str]]:
    """For a table."""
    return [
        ("objects", f"{found.objects:,}"),
        ("objects in a global batch", f"{found.batch_size:,}"),
        ("steps an epoch", f"{found.steps_per_epoch:,}"),
        ("steps", f"{found.steps:,}"),
        ("numbers that are trained", f"{found.trained_numbers:,} of {found.numbers:,}"),
        ("memory of a process, about", f"{found.memory_gb:.1f} GB"),
        ("reading a step", f"{found.reading_seconds:.3g} s"),
        ("computing a step, about", f"{found.step_seconds:.3g} s"),
        ("all steps, about", f"{timedelta(seconds=round(found.seconds))}, and the evaluations"),
    ]


def _part(batch: Batch, objects: int, views: int) -> Batch:
    """So many objects of the batch with so many views, some perhaps more than once."""
    picture = torch.arange(views) % batch.views.shape[1]
    return replace(
        batch,
        object_ids=batch.object_ids[:objects],
        views=batch.views[:objects, picture],
        image_targets=batch.image_targets[:objects],
        text_targets=batch.text_targets[:objects],
    )


def _bytes_made(trainer: Trainer, batch: Batch) -> int:
    """Bytes of the tensors that a step makes, at the moment when there are most."""
    trainer.optimizer.zero_grad(set_to_none=True)  # those of the step before
    device = trainer.model.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        trainer.step([batch], learning_rate=0.0)
        return torch.cuda.max_memory_allocated(device) - before
    with Living() as living:
        trainer.step([batch], learning_rate=0.0)
    return living.most


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that were made under it and are still there."""

    now = most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {_place(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and _place(tensor) not in given:  # no view, and nothing done in place
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def _bytes_of_tokens(model: MultiViewCLIP, batch: Batch, plan: TrainingPlan) -> int:
    pixels = model.to_pixels(batch.views.to(model.device), "none" if plan.crop == "none" else "center")
    return model.view_tokens(pixels.flatten(0, 1)).nbytes


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
