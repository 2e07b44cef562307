"""What a run leaves on disk.

recipe.yaml           the resolved recipe
metrics.jsonl         a line for every step and every evaluation: the same bytes however often the run was killed
timings.jsonl         a line for every step: seconds and objects/s, as they really were
checkpoints/last      the newest checkpoint, from which the run continues
checkpoints/best      the checkpoint with the best top-1 after an epoch
failed_step.json      of a loss that was not finite: the step and its objects; failed_state/ is the model before it
logs/                 what a tracker writes, if one was asked for
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from ddclip_cli import console, files
from ddclip_cli.errors import UserError

HANDOVER = 5.0
"""Seconds for the processes of a run that was killed to be gone."""


class RunFolder:
    """The names in a run's folder, and the two logs."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timings = self.path / "timings.jsonl"
        self.failed_step = self.path / "failed_step.json"
        self.failed_state = self.path / "failed_state"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last"
        self.best = self.checkpoints / "best"
        self._held: int | None = None

    def prepare(self, recipe: dict[str, Any], *, resume: bool, force: bool) -> None:
        """Create the folder, or accept what is in it.

        Raises UserError if it holds something and neither `resume` nor `force` is given, or if it holds a run of
        another recipe and `resume` is given. `force` removes a run's own files and nothing else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out, a folder for the run")
        if self.checkpoints.is_dir() and (resume or force):
            self._take()
        if resume and self.recipe.exists():
            self._refuse_another_recipe(recipe)
        elif force:
            for file in (self.recipe, self.metrics, self.timings, self.failed_step):
                file.unlink(missing_ok=True)
            for path in (self.checkpoints, self.logs, self.failed_state):
                shutil.rmtree(path, ignore_errors=True)
        elif not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path} exists already: continue its run with --resume, replace it with --force, "
                "or choose another --out"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._take()
        if not self.recipe.exists():
            files.write_yaml(self.recipe, recipe)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _take(self) -> None:
        """Hold the folder, as long as this process lives, against a second run in it."""
        if self._held is not None:
            return
        self._held = os.open(self.path, os.O_RDONLY)
        deadline = time.monotonic() + HANDOVER
        while True:
            try:
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.close()
                    raise UserError(
                        f"{self.path} is in use by another run: let it end, or choose another --out"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return

    def truncate_metrics(self, size: int) -> None:
        """Forget the lines that were written after the checkpoint from which the run goes on."""
        written = self.metrics.stat().st_size if self.metrics.exists() else 0
        if written < size:
            console.warn(f"{self.metrics} has lost lines since the checkpoint was written: its beginning is incomplete")
        elif written > size:
            os.truncate(self.metrics, size)

    def _refuse_another_recipe(self, recipe: dict[str, Any]) -> None:
        try:
            then = _flat(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            raise UserError(f"{self.recipe} is damaged: choose another --out or replace the run with --force") from None
        now = _flat(recipe)
        differing = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
        if differing:
            changes = "; ".join(f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in differing)
            raise UserError(f"{self.path} is a run of another recipe ({changes}): give the same, or another --out")


class JsonLines:
    """An append-only log; a line is handed to the system at once, so that it can be followed and outlives a kill.

    Without a path (in all processes but the main one) nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else open(path, "ab", buffering=0)  # noqa: SIM115 closed by close()

    def write(self, **values: Any) -> None:
        if self._file:
            self._file.write(json.dumps(values).encode() + b"\n")

    def sync(self) -> int:
        """Have all lines on disk; the size of the file in bytes."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if self._file:
            self._file.close()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 1}} -> {"train.epochs": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
