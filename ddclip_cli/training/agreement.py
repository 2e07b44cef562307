"""What the processes of a run must have alike, as they may be on machines with other files, recipes and GPUs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ddclip_cli.data.dataset import Mixture
from ddclip_cli.errors import UserError
from ddclip_cli.training.processes import Processes
from ddclip_cli.training.run_folder import RunFolder
from ddclip_cli.training.trainer import Trainer


def refuse_differences(trainer: Trainer, data: Mixture, max_steps: int | None) -> None:
    """Raise UserError in all processes if one would take other steps than the main one."""
    processes = trainer.processes
    if processes.number == 1:
        return
    with processes.together():
        own = _terms(trainer, data, max_steps)
    mains = processes.from_main(own)
    with processes.together():
        differing = [name for name in mains | own if own.get(name) != mains.get(name)]
        if differing:
            changes = "; ".join(f"{name} is {own.get(name)}, there {mains.get(name)}" for name in differing)
            raise UserError(
                f"this would be another run than in the main process ({changes}): "
                "give every machine the same recipe, options and data"
            )


def _terms(trainer: Trainer, data: Mixture, max_steps: int | None) -> dict[str, Any]:
    """What decides the steps of a process, beside the weights, which all get from the main one."""
    model, plan = trainer.model, asdict(trainer.plan)
    del plan["init_from"]
    found = {"seed": plan.pop("seed"), **{f"train.{name}": value for name, value in plan.items()}}
    numbers = sum(parameter.numel() for parameter in model.clip.parameters())
    found["model.backbone"] = f"{model.backbone['name']}, {numbers:,} numbers"
    found["model.cross_view_from"] = model.cross_view_from
    found["its arithmetic"] = f"{trainer.accelerator.mixed_precision.replace('no', 'fp32')} on a {model.device.type}"
    found["--max-steps"] = max_steps
    for where, own in zip(("data", "data.extra"), data.sets, strict=False):
        found[where] = f"{len(own.object_ids):,} objects, {own.batch_size} a batch, ids and targets {own.digest()}"
    return found


def refuse_a_run_elsewhere(processes: Processes, run: RunFolder, *, resume: bool) -> None:
    """Raise UserError in all processes if the main one would start anew what another machine has a checkpoint of."""
    with processes.together():
        is_here = run.last.exists()
        is_there = processes.from_main(is_here)
        if resume and is_here and not is_there:
            raise UserError(
                f"{run.path} has a checkpoint on this machine and none on that of the main process: keep runs on a "
                "file system of all machines, or give torchrun --node_rank so that the main one is always the same"
            )
