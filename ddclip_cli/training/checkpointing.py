"""Checkpoints from which a run goes on exactly, written so that a kill at any moment leaves a good one.

A checkpoint is a folder `checkpoints/step-<number>` that appears under its name only when complete. `last` and `best`
are links to such folders, replaced in one step; folders that neither names are removed afterwards, except the newest.
The main process alone reads and writes them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ddclip_cli import files
from ddclip_cli.errors import UserError
from ddclip_cli.model.checkpoints import load_model, write_model, writing_checkpoint
from ddclip_cli.training.run_folder import RunFolder
from ddclip_cli.training.trainer import Trainer


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done."""
    best_top1: float | None = None
    """Percent, of the evaluations after an epoch."""
    best_step: int | None = None
    metrics_bytes: int = 0
    """Size of metrics.jsonl at this point."""
    evaluated_step: int | None = None
    """The last step at which the model was evaluated; 0 is before the first."""


def save(run: RunFolder, trainer: Trainer, progress: Progress, recipe: dict[str, Any], *, keep: int = 1) -> None:
    """Write the checkpoint of `progress.step` and make it `last`, and `best` if it is; `keep` the newest so many.

    Raises UserError if the disk is full; `last` stays then what it was.
    """
    folder = _folder(run, progress.step)
    write(folder, trainer, progress, recipe)
    _point(run.last, folder)  # first: restore() mends `best` from what `last` knows, not the other way round
    _point_best(run, progress)
    _prune(run, keep)


def write(folder: Path, trainer: Trainer, progress: Progress, recipe: dict[str, Any]) -> None:
    """Write a checkpoint to `folder`, for nothing to point at."""
    with writing_checkpoint(folder) as partial:
        with trainer.averaged() as model:
            write_model(model, partial, recipe=recipe)
        with open(partial / "optimizer.pt", "wb") as file:  # a file of ours: torch's own does not say why it failed
            torch.save(trainer.state_dict(), file)
        (partial / "progress.json").write_text(json.dumps(asdict(progress)))


def note(run: RunFolder, progress: Progress, *, keep: int = 1) -> None:
    """Write into the checkpoint of `progress.step`, which is `last`, what an evaluation has found since."""
    with files.writing(run.last.resolve() / "progress.json") as partial:
        partial.write_text(json.dumps(asdict(progress)))
    _point_best(run, progress)
    _prune(run, keep)


def restore(run: RunFolder, trainer: Trainer, *, keep: int = 1) -> Progress | None:
    """Put the trainer where `last` was written; None if the run has no checkpoint yet."""
    if not run.last.exists():
        _prune(run, keep)
        return None
    folder = run.last.resolve()
    try:
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        saved = load_model(folder, device="cpu", precision="fp32")
        trainer.model.load_state_dict(saved.state_dict())
        trainer.load_state_dict(state)
    except Exception as error:  # whatever a damaged file makes of the three readers
        raise UserError(
            f"{folder} cannot be read as a checkpoint of this run ({type(error).__name__}): "
            "start it again with --force, or choose another --out"
        ) from error
    _point_best(run, progress)
    _prune(run, keep)
    return progress


def _folder(run: RunFolder, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}"


def _point_best(run: RunFolder, progress: Progress) -> None:
    if progress.best_step is not None:
        _point(run.best, _folder(run, progress.best_step))


def _point(link: Path, folder: Path) -> None:
    """Make `link` a link to its sibling `folder`, in one step."""
    partial = link.with_name(f".{link.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(folder.name)
    partial.replace(link)


def _prune(run: RunFolder, keep: int) -> None:
    """Remove the checkpoints that have no link, but for the newest, and what a killed process left half-written."""
    kept = {os.readlink(link) for link in (run.last, run.best) if link.is_symlink()}
    kept |= {path.name for path in sorted(run.checkpoints.glob("step-*"))[-keep:]}
    for path in [*run.checkpoints.glob("step-*"), *run.checkpoints.glob(".*.partial")]:
        if path.is_dir() and not path.is_symlink():
            if path.name not in kept:
                shutil.rmtree(path)
        else:
            path.unlink()
