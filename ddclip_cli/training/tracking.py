"""Trackers beside metrics.jsonl, by way of Accelerate: TensorBoard, Weights & Biases."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from ddclip_cli.errors import UsageError

TRACKERS = ("none", "tensorboard", "wandb")


def check(name: str) -> None:
    """Raise UsageError if the tracker is unknown or not installed; Accelerate itself would go on without."""
    if name not in TRACKERS:
        raise UsageError(f"unknown tracker {name!r}: it is {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise UsageError(f"the tracker {name} is not installed: `pip install ddclip[{name}]` brings it")


class Tracker:
    """Where the numbers of a run also go; by default nowhere."""

    def __init__(self, inner: GeneralTracker | None = None) -> None:
        self._inner = inner

    def log(self, group: str, values: dict[str, Any], step: int) -> None:
        """Record numbers under `group/name`."""
        if self._inner is not None:
            numbers = {f"{group}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
            self._inner.log(numbers, step=step)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.finish()


def start(name: str, logs: Path, recipe: dict[str, Any]) -> Tracker:
    """A tracker that writes under `logs`, called after the run's folder; it records the recipe."""
    if name == "none":
        return Tracker()
    logs.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        inner: GeneralTracker = TensorBoardTracker("", logging_dir=str(logs))
    else:
        inner = WandBTracker(logs.resolve().parent.name, dir=str(logs))
        inner.store_init_configuration(recipe)
    inner.start()
    return Tracker(inner)
