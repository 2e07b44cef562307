"""Trackers beside metrics.jsonl, by way of Accelerate: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker, WandBTracker

from ddclip_cli.errors import UsageError, UserError

TRACKERS = ("none", "tensorboard", "wandb")


def check(name: str, *, is_main: bool = True) -> None:
    """Raise UsageError if the tracker is unknown or not installed; Accelerate itself would go on without.

    Raises UserError in the main process, which alone will use it, if it wants a login first.
    """
    if name not in TRACKERS:
        raise UsageError(f"unknown tracker {name!r}: it is {', '.join(TRACKERS)}")
    found = None if name == "none" else find_spec(name)
    if name != "none" and (found is None or found.origin is None):  # a folder `wandb`, as it leaves them, is no package
        raise UsageError(f"the tracker {name} is not installed: `pip install ddclip[{name}]` brings it")
    if name == "wandb" and is_main and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        try:
            wandb.login()
        except wandb.errors.Error as error:
            raise _cannot_start(error) from error


class Tracker:
    """Where the numbers of a run also go; by default nowhere."""

    def log(self, group: str, values: dict[str, Any], step: int) -> None:
        """Record numbers under `group/name`."""

    def close(self, *, failed: bool = False) -> None:
        """Have everything written. `failed`: the run did not come to its end."""


def start(name: str, logs: Path, recipe: dict[str, Any]) -> Tracker:
    """A tracker that writes under `logs`, in the run's folder; Weights & Biases gets the recipe too.

    Raises UserError if Weights & Biases cannot be reached.
    """
    if name == "none":
        return Tracker()
    logs.mkdir(parents=True, exist_ok=True)
    return _TensorBoard(logs) if name == "tensorboard" else _WeightsAndBiases(logs, recipe)


class _TensorBoard(Tracker):
    def __init__(self, logs: Path) -> None:
        self._inner = TensorBoardTracker("", logging_dir=str(logs))
        self._inner.start()

    def log(self, group: str, values: dict[str, Any], step: int) -> None:
        self._inner.log(_numbers(group, values), step=step)

    def close(self, *, failed: bool = False) -> None:
        self._inner.finish()


class _WeightsAndBiases(Tracker):
    """One run there for one run here, however often it was resumed; its project is WANDB_PROJECT or `ddclip`."""

    def __init__(self, logs: Path, recipe: dict[str, Any]) -> None:
        import wandb

        named = logs / "wandb_run_id"
        if not named.exists():
            named.write_text(secrets.token_hex(4))
        options = {"id": named.read_text(), "resume": "allow", "name": logs.resolve().parent.name, "config": recipe}
        self._inner = WandBTracker(os.environ.get("WANDB_PROJECT", "ddclip"), dir=str(logs), **options)
        try:
            self._inner.start()
        except wandb.errors.Error as error:
            raise _cannot_start(error) from error
        # A run that was killed takes some steps again, and Weights & Biases' own count must not go backwards.
        self._inner.tracker.define_metric("*", step_metric="step")

    def log(self, group: str, values: dict[str, Any], step: int) -> None:
        self._inner.log(_numbers(group, values) | {"step": step})

    def close(self, *, failed: bool = False) -> None:
        self._inner.tracker.finish(exit_code=int(failed))


def _numbers(group: str, values: dict[str, Any]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}


def _cannot_start(error: Exception) -> UserError:
    reason = str(error).splitlines()[0].rstrip(".")
    return UserError(
        f"the tracker wandb cannot start ({reason}): `wandb login` lets it in, and with WANDB_MODE=offline it needs "
        "no network until `wandb sync`"
    )
