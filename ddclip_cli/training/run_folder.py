"""What a run leaves on disk.

recipe.yaml           the resolved recipe
metrics.jsonl         a line for every step and every evaluation: the same bytes however often the run was killed
timings.jsonl         a line for every step: seconds and objects/s, as they really were
checkpoints/last      the newest checkpoint, from which the run continues
checkpoints/best      the checkpoint with the best top-1 after an epoch
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from ddclip_cli import console, files
from ddclip_cli.errors import UserError


class RunFolder:
    """The names in a run's folder, and the two logs."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.timings = self.path / "timings.jsonl"
        self.failed_step = self.path / "failed_step.json"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last"
        self.best = self.checkpoints / "best"

    def prepare(self, recipe: dict[str, Any], *, resume: bool, force: bool) -> None:
        """Create the folder, or accept what is in it.

        Raises UserError if it holds something and neither `resume` nor `force` is given, or if it holds a run of
        another recipe and `resume` is given. `force` removes a run's own files and nothing else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out, a folder for the run")
        if resume and self.recipe.exists():
            self._refuse_another_recipe(recipe)
        elif force:
            for file in (self.recipe, self.metrics, self.timings, self.failed_step):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        elif not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path} exists already: continue its run with --resume, replace it with --force, "
                "or choose another --out"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not self.recipe.exists():
            files.write_yaml(self.recipe, recipe)

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
    """An append-only log; a line is handed to the system at once, so that it can be followed and outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 closed by close()

    def write(self, **values: Any) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")

    def sync(self) -> int:
        """Have all lines on disk; the size of the file in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
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
