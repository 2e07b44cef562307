"""The sample library: a folder of objects with captions, classes, and a train and a held-out part.

meshes/<object_id>.glb   captions.json   classes.txt   train.txt   heldout.txt   heldout.csv   library.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddclip_cli import console, files
from ddclip_cli.errors import UserError
from ddclip_cli.sample.objects import CATEGORIES, COLOURS, PAIRS, SampleObject, make_object

__all__ = ["CATEGORIES", "COLOURS", "SampleObject", "make_object", "numbered_object", "write_library"]

HELDOUT_FIRST = (
    500_000  # held-out objects have numbers of their own: they stay the same for any number of training objects
)
EXTRA = ("couch", "white")
NUM_EXTRAS = 4  # held out after the first run of pairs, so that there are five to find
NAMES = ("heldout.csv", "heldout.txt", "train.txt", "classes.txt", "captions.json", "library.json")


def numbered_object(seed: int, number: int) -> SampleObject:
    """Object `number` of `seed`; numbers from HELDOUT_FIRST are held out.

    Each run of len(PAIRS) numbers holds every pair of category and colour once, in an order of its own; after the
    first held-out run come four more white couches, and the later ones have theirs last.
    """
    heldout = number >= HELDOUT_FIRST
    position = number - HELDOUT_FIRST if heldout else number
    after_first = position - len(PAIRS) if heldout else -1
    if 0 <= after_first < NUM_EXTRAS:
        category, colour = EXTRA
    else:
        lap, place = divmod(position - (NUM_EXTRAS if after_first >= 0 else 0), len(PAIRS))
        order = list(np.random.default_rng([seed, heldout, lap]).permutation(len(PAIRS)))
        if heldout and lap:
            order.sort(key=lambda pair: PAIRS[pair] == EXTRA)
        category, colour = PAIRS[order[place]]
    return make_object(seed, category, colour, number)


def write_library(out: Path, *, seed: int, train: int, heldout: int, force: bool = False) -> None:
    """Write a library of `train` + `heldout` objects to the folder `out`; an unfinished one is continued.

    Raises UserError if `out` holds a finished library or the beginning of another, unless `force`.
    """
    out = Path(out)
    if seed < 0 or not 0 <= train <= HELDOUT_FIRST or heldout < 0 or train + heldout == 0:
        raise UserError(
            f"a sample library has a seed of at least 0, at least one object and at most {HELDOUT_FIRST} to train on"
        )
    _begin(out, {"seed": seed, "train": train, "heldout": heldout}, force=force)
    numbers = {"train": range(train), "heldout": range(HELDOUT_FIRST, HELDOUT_FIRST + heldout)}

    def objects(*parts: str) -> Iterator[SampleObject]:
        for part in parts:
            for number in numbers[part]:
                yield numbered_object(seed, number)

    for thing in console.progress(objects("train", "heldout"), total=train + heldout, label="sample"):
        path = out / "meshes" / f"{thing.object_id}.glb"
        if not path.exists():
            with files.writing(path) as partial:
                partial.write_bytes(thing.glb())
    with files.writing(out / "captions.json") as partial, partial.open("w", encoding="utf-8") as file:
        for index, thing in enumerate(objects("train", "heldout")):
            file.write(f"{',' if index else '{'}\n{json.dumps(thing.object_id)}: {json.dumps(thing.captions)}")
        file.write("\n}\n")
    _write_lines(out / "classes.txt", iter(CATEGORIES))
    _write_lines(out / "train.txt", (thing.object_id for thing in objects("train")))
    _write_lines(out / "heldout.txt", (thing.object_id for thing in objects("heldout")))
    # Last: its presence says that the library is complete.
    rows = (f"{CATEGORIES.index(thing.category)},{thing.category},{thing.object_id}" for thing in objects("heldout"))
    _write_lines(out / "heldout.csv", rows)


def _begin(out: Path, made_of: dict[str, int], *, force: bool) -> None:
    """Make sure that `out` holds nothing, or an unfinished library made of the same; with `force`, remove another."""
    note = out / "library.json"
    files.remove_leftovers(out, NAMES)
    if note.exists():
        same = note.read_text(encoding="utf-8") == json.dumps(made_of)
        if (out / "heldout.csv").exists():
            files.refuse_existing(out, force=force)
        elif not same and not force:
            raise UserError(
                f"{out} holds an unfinished sample library of other options: repeat those, or replace it with --force"
            )
        if force:
            shutil.rmtree(out / "meshes", ignore_errors=True)
            for name in NAMES:
                (out / name).unlink(missing_ok=True)
    elif out.exists() and (not out.is_dir() or set(out.iterdir()) - set(out.glob(".*.partial"))):
        raise UserError(f"{out} holds something other than a sample library: choose another --out")
    files.remove_leftovers(out / "meshes")
    with files.writing(note) as partial:
        partial.write_text(json.dumps(made_of), encoding="utf-8")


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with files.writing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
