"""`ddclip demo`: every stage of the pipeline on a fresh sample library, each step one of the public commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import DeviceOption, ForceOption

STEPS = (
    ("make a library of 3D objects", "sample --out {out}/library --train {train} --heldout 340 --seed {seed}"),
    ("render 12 views of each", "render {out}/library/meshes --out {out}/renders --recipe sample --jobs {jobs}"),
    (
        "pack the views to train on",
        "pack-h5 {out}/renders --out {out}/train.h5 --ids {out}/library/train.txt --recipe sample --jobs {jobs}",
    ),
    (
        "pack those of the objects that are kept apart",
        "pack-h5 {out}/renders --out {out}/heldout.h5 --ids {out}/library/heldout.txt --recipe sample --jobs {jobs}",
    ),
    (
        "encode what to learn: the backbone's features of views and captions",
        "encode-targets {out}/train.h5 --captions {out}/library/captions.json --out {out}/targets"
        " --recipe sample --device {device}",
    ),
    (
        "train the attention between views",
        "train --recipe sample --data-dir {out} --out {out}/run --seed {seed} --device {device}",
    ),
    (
        "classify the objects kept apart: the trained model beside plain averaging of views",
        "eval-lvis --recipe sample --data-dir {out} --checkpoint {out}/run/checkpoints/best --baseline zero-shot"
        " --device {device}",
    ),
    (
        "embed the objects kept apart",
        "embed {out}/heldout.h5 --out {out}/embeddings.h5 --recipe sample --checkpoint {out}/run/checkpoints/best"
        " --device {device}",
    ),
    (
        "search them",
        'retrieve "a white couch" --index {out}/embeddings.h5 --checkpoint {out}/run/checkpoints/best'
        " --sheet {out}/white-couch.png --device {device}",
    ),
)


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other objects.")] = 0,
    train: Annotated[int, typer.Option("--train", min=96, help="How many objects to train on.")] = 1152,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Make, render, pack, train, evaluate and search a small 3D library, command by command.

    Takes a few minutes on two cores, no network and 200 MB of disk.

    Examples:
    \b
      ddclip demo
      ddclip demo --out /tmp/demo --seed 1
    """
    import json
    import shlex
    import shutil
    import subprocess
    import sys
    import time

    from ddclip_cli import console, files
    from ddclip_cli.errors import UserError

    mark = out / "demo.json"  # a folder with it is the demo's own, and may be removed
    if force and mark.is_file():
        shutil.rmtree(out)
    elif force and out.exists():
        raise UserError(f"{out} was not made by a demo, and is not removed: choose another --out")
    files.refuse_existing(out, force=False)
    out.mkdir(parents=True)
    mark.write_text(json.dumps({"seed": seed, "train": train}) + "\n", encoding="utf-8")
    begin = time.monotonic()
    for number, (what, line) in enumerate(STEPS, start=1):
        line = line.format(out=shlex.quote(str(out)), seed=seed, train=train, jobs=os.cpu_count() or 1, device=device)
        words = shlex.split(line)
        console.log(f"\n[{number}/{len(STEPS)}] {what}\n$ ddclip {shlex.join(words)}")
        if code := subprocess.run([sys.executable, "-m", "ddclip_cli", *words]).returncode:
            raise UserError(f"step {number} of the demo ({words[0]}) ended with exit code {code}; see above")
    minutes = (time.monotonic() - begin) / 60
    console.log(f"\nDone in {minutes:.1f} minutes. The answers as a picture: {out / 'white-couch.png'}")
    index = f"--index {out}/embeddings.h5 --checkpoint {out}/run/checkpoints/best"
    console.log(f'Try your own words: ddclip retrieve "a striped green lamp" {index}')
