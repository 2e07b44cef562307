"""`ddclip demo`: every stage of the pipeline on a fresh sample library, each step one of the public commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import DeviceOption, ForceOption


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other objects.")] = 0,
    train: Annotated[int, typer.Option("--train", min=96, help="How many objects to train on.")] = 576,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Make, render, pack, train, evaluate and search a small 3D library, command by command.

    Takes a few minutes on two cores, and no network. The same command again goes on where it was stopped.

    Examples:
    \b
      ddclip demo
      ddclip demo --out /tmp/demo --seed 1
    """
    from ddclip_cli.sample.tour import run_demo

    run_demo(out, seed=seed, train=train, device=device, force=force)
