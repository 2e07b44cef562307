"""Which object a row of a store holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.hdf5 import local_dataset, opened, read_whole
from ddclip_cli.data.json_files import read_json, read_json_dict
from ddclip_cli.errors import UserError, some

ROWS = "JSON of rows (object_id: row)"


def read_ids(path: str | Path, ids: str | Path | None = None, *, count: int | None = None) -> list[str]:
    """Object id of every row of the HDF5 file `path`.

    The rows come from the JSON `ids` if it is given; else from the dataset `ids` inside the file; else from
    `<stem>_model_to_idx.json` beside it; else from the reference's name for it (`model_to_idx.json` of `mv_images.h5`).

    Args:
        count: how many rows the file has; None does not check it.

    Raises:
        UserError: there are no ids, or they do not give every row exactly one object.
    """
    path = Path(path)
    if ids is not None:
        return _read_rows(Path(ids), count)
    with opened(path) as file:
        if file.get("ids", getlink=True) is not None:
            return _stored_ids(path, local_dataset(file, "ids"), count)
    for candidate in names_of_rows(path):
        if candidate.is_file():
            return _read_rows(candidate, count)
    raise UserError(f"{path} does not say which object a row holds: give its JSON of rows with --ids")


def read_id_list(path: str | Path) -> list[str]:
    """Object ids in order: a text file with one a line, a JSON list, or a JSON of rows.

    Raises:
        UserError: the file is missing or empty, or an id stands there twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        document = read_json(path, "list of object ids")
        if isinstance(document, dict):
            return _in_row_order(document, path, count=None)
        if not isinstance(document, list) or not all(isinstance(item, str) and item for item in document):
            raise UserError(f"{path} must hold a JSON list of object ids or a {ROWS}")
        numbered = list(enumerate(document, start=1))
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: give a file of object ids, one a line") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text: give a file of object ids, one a line") from None
        numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise UserError(f"{path} names no object: give one object id a line")
    first: dict[str, int] = {}
    for number, object_id in numbered:
        if object_id in first:
            raise UserError(f"{path}:{number}: object {object_id!r} is at {first[object_id]} already: keep one of them")
        first[object_id] = number
    return list(first)


class RowOf:
    """Finds the rows of objects: `RowOf(ids)(object_ids)` -> (B,) int64; UserError names objects that are not there."""

    def __init__(self, ids: Sequence[str], path: Path) -> None:
        self._row = {object_id: row for row, object_id in enumerate(ids)}
        self._path = path

    def __call__(self, object_ids: Iterable[str]) -> np.ndarray:
        wanted = list(object_ids)
        missing = [object_id for object_id in wanted if object_id not in self._row]
        if missing:
            raise UserError(
                f"{self._path} lacks {len(missing)} of the {len(wanted)} objects asked for: {some(missing)}; "
                "leave them out of the list or pack them too"
            )
        return np.array([self._row[object_id] for object_id in wanted], dtype=np.int64)


def digest(ids: Iterable[str]) -> str:
    """A short name for exactly these ids in this order."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()


def rows_file(store: str | Path) -> Path:
    """`<stem>_model_to_idx.json` beside a store."""
    return Path(store).with_name(f"{Path(store).stem}_model_to_idx.json")


def write_rows(path: Path, ids: Sequence[str]) -> None:
    """Write the ids of rows 0, 1, ... in the reference's form, `{object_id: row}`."""
    path.write_text(json.dumps({object_id: row for row, object_id in enumerate(ids)}), encoding="utf-8")


def names_of_rows(path: Path) -> list[Path]:
    """Where the rows of `path` may stand, best first; the last two are the reference's names."""
    names = [rows_file(path)]
    store = re.fullmatch(r"((?:.*_)?)mv_images|(.+_)images", path.stem)
    if store:  # mv_images.h5: model_to_idx.json; lvis_images.h5: lvis_model_to_idx.json
        names.append(path.with_name(f"{store[1] or store[2] or ''}model_to_idx.json"))
    if path.stem == "image_embeddings":  # beside the store, one folder up
        names += [path.with_name("model_to_idx.json"), path.parent.parent / "model_to_idx.json"]
    return names


def _read_rows(path: Path, count: int | None) -> list[str]:
    return _in_row_order(read_json_dict(path, ROWS), path, count)


def _in_row_order(rows: dict[str, Any], path: Path, count: int | None) -> list[str]:
    """Keys of `{object_id: row}` by row; every row from 0 on must have one."""
    total = len(rows) if count is None else count
    ids: list[str | None] = [None] * min(total, len(rows))
    for object_id, row in rows.items():
        if isinstance(row, bool) or not isinstance(row, int):
            raise UserError(f"{path}: the row of object {object_id!r} is {row!r}: it must be a whole number")
        if not 0 <= row < total:
            raise UserError(f"{path}: object {object_id!r} has row {row}, but the rows are 0 to {total - 1}")
        if row < len(ids):
            if ids[row] is not None:
                raise UserError(f"{path}: objects {ids[row]!r} and {object_id!r} both have row {row}: give each one")
            ids[row] = object_id
    named = [object_id for object_id in ids if object_id is not None]
    if len(named) < total:
        raise UserError(f"{path} names {len(rows)} objects, but there are {total} rows: every row needs an object")
    if not named:
        raise UserError(f"{path} names no object")
    return named


def _stored_ids(path: Path, dataset: Any, count: int | None) -> list[str]:
    import h5py

    if h5py.check_string_dtype(dataset.dtype) is None or dataset.ndim != 1:
        raise UserError(f"{path}: dataset 'ids' is {dataset.shape} {dataset.dtype}: it must be a list of strings")
    if count is not None and dataset.shape[0] != count:
        raise UserError(
            f"{path} has {dataset.shape[0]} ids for {count} rows: make it again, or give the rows with --ids"
        )
    try:
        ids = [object_id.decode() for object_id in read_whole(dataset)]
    except UnicodeDecodeError:
        raise UserError(f"{path}: the dataset 'ids' cannot be read: make the file again") from None
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(object_id for object_id in ids if object_id in seen or seen.add(object_id))  # type: ignore[func-returns-value]
        raise UserError(f"{path}: object {twice!r} has two rows in the dataset 'ids': make the file again")
    return ids
