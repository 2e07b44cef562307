"""The demo: every stage of the pipeline on a fresh sample library, each step one of the public commands, echoed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ddclip_cli import console, files
from ddclip_cli.errors import UserError

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
        'retrieve "a white couch" --index {out}/embeddings.h5 --sheet {out}/white-couch.png'
        " --html {out}/white-couch.html",
    ),
)

NOTE = "demo.json"  # in the folder of a demo: whose it is, and how far it came

# How a command goes on that was cut short; the others do by themselves.
CONTINUE = {
    "pack-h5": ["--force"],
    "encode-targets": ["--force"],
    "train": ["--resume"],
    "embed": ["--force"],
    "retrieve": ["--force"],
}


def run_demo(out: Path, *, seed: int = 0, train: int = 576, device: str = "auto", force: bool = False) -> None:
    """Run `STEPS`, in processes of their own, with all their files under `out`; a demo that was stopped goes on there.

    Raises UserError if a step fails, or if `out` holds something else than an unfinished demo of the same seed and
    size; `force` removes a demo, and nothing but a demo.
    """
    note = _read_note(out)
    if force and note:
        shutil.rmtree(out)
        note = {}
    elif force and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} was not made by a demo, and is not removed: choose another --out")
    unfinished = note.get("done", len(STEPS)) < len(STEPS) and (note["seed"], note["train"]) == (seed, train)
    if not unfinished:
        files.refuse_existing(out, force=force)
    done = note["done"] if unfinished else 0
    begin = time.monotonic()
    for number, (what, line) in enumerate(STEPS[done:], start=done):
        filled = line.format(out=shlex.quote(str(out)), seed=seed, train=train, jobs=os.cpu_count(), device=device)
        words = shlex.split(filled) + (CONTINUE.get(line.split()[0], []) if unfinished and number == done else [])
        _write_note(out, {"seed": seed, "train": train, "done": number})
        console.log(f"\n[{number + 1}/{len(STEPS)}] {what}\n$ ddclip {shlex.join(words)}")
        if code := subprocess.run([sys.executable, "-m", "ddclip_cli", *words]).returncode:
            raise UserError(f"step {number + 1} of the demo ({words[0]}) ended with exit code {code}; see above")
    _write_note(out, {"seed": seed, "train": train, "done": len(STEPS)})

    minutes = (time.monotonic() - begin) / 60
    console.log(f"\nDone in {minutes:.1f} minutes. The answers as a page: {out / 'white-couch.html'}")
    words = ["ddclip", "retrieve", "a striped green lamp", "--index", f"{out}/embeddings.h5"]
    console.log(f"Try your own words: {shlex.join(words)}")


def _read_note(out: Path) -> dict[str, int]:
    """{"seed", "train", "done"} of the demo in `out`; empty if there is none."""
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
        return {key: int(note[key]) for key in ("seed", "train", "done")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_note(out: Path, note: dict[str, int]) -> None:
    with files.writing(out / NOTE) as partial:
        partial.write_text(json.dumps(note) + "\n", encoding="utf-8")
