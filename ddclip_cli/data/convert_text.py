"""The reference's pickle of text features -> a file that is read where it lies."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np

from ddclip_cli import files
from ddclip_cli.console import log, progress_bar
from ddclip_cli.data.hdf5_output import cannot_write, check_space, completing, places
from ddclip_cli.data.safe_pickle import CannotStreamError
from ddclip_cli.data.text_pickle import Entry, text_entries, whole_text_entries
from ddclip_cli.data.text_targets import create_captions
from ddclip_cli.errors import UserError

PLACE = places({"features": ((1, 1), np.float16)})["features"]
"""Where the features start, however many there are."""


def convert_text(path: str | Path, out: str | Path, *, force: bool = False) -> tuple[int, int]:
    """Write `out` in the form of `encode_targets`' `text_embeddings.h5` -> (objects, texts).

    The pickle is read once, from its beginning to its end, in the memory of its names; the features keep their bits
    (float64 becomes float32, in which they are drawn).

    Raises:
        UserError: `path` is missing, damaged, of another form, or asks for anything but numpy arrays; an object is
            there twice; no space, or `out` exists without `force`.
    """
    path, out = Path(path), Path(out)
    files.refuse_existing(out, force=force)
    first = next(_first(path))  # whatever is wrong with the file as a whole is said before anything is written
    dtype = np.dtype(np.float16 if first[1][0][1].dtype.itemsize == 2 else np.float32)
    files.remove_leftovers(out.parent, (out.name,))
    check_space(out, path.stat().st_size)
    with files.writing(out) as unfinished, FileIO(unfinished, "w+") as raw:
        try:
            return _convert(text_entries(path), path, raw, out, dtype)
        except CannotStreamError:
            log(f"{path} shares parts among its objects: reading it into memory")
            return _convert(whole_text_entries(path), path, raw, out, dtype)


def _first(path: Path) -> Iterator[Entry]:
    try:
        yield next(text_entries(path))
    except CannotStreamError:
        yield next(whole_text_entries(path))


def _convert(entries: Iterator[Entry], path: Path, raw: FileIO, out: Path, dtype: np.dtype) -> tuple[int, int]:
    ids: list[str] = []
    counts, kinds, width = array("q"), array("B"), 0
    try:
        raw.seek(PLACE)
        with progress_bar(total=None, label="convert") as bar:
            for object_id, captions in entries:
                ids.append(object_id)
                counts.append(len(captions))
                kinds.extend(kind for kind, _ in captions)
                files.write_all(raw, np.stack([feature for _, feature in captions]).astype(dtype).tobytes())
                width = len(captions[0][1])
                bar.update()
    except OSError as error:
        raise cannot_write(out, error) from None
    if not width:
        raise UserError(f"{path} has features without numbers: fetch or make it again")
    with completing(raw, out, {"features": ((len(kinds), width), dtype)}) as file:
        assert file["features"].id.get_offset() == PLACE
        file.attrs["made_by"] = json.dumps({"converted_from": path.name})
        create_captions(file, ids, counts, kinds, path)
    return len(ids), len(kinds)
