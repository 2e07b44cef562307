"""Shape embeddings read from a file, ours or the reference's, and checked before anything relies on them."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from ddclip_cli.console import warn
from ddclip_cli.data.hdf5 import local_dataset, opened, read_whole
from ddclip_cli.data.object_ids import read_ids
from ddclip_cli.errors import UserError
from ddclip_cli.search.id_cache import cached_ids
from ddclip_cli.search.vectors import StoredVectors

MAX_THUMBNAIL_BYTES = 1 << 20
FEW = 1000
"""Up to so many ids are read one by one."""
NEAR_AMONG = 50_000
"""Ids among which a mistyped one is looked for."""


class Model(Protocol):
    """What a file of embeddings is compared with."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


class ShapeEmbeddings:
    """The shape embeddings of N objects, opened in milliseconds: vectors are mapped, all else is read when asked for.

    Attributes:
        path: the file they came from.
        vectors: (N, E), unit length.
        made_by: what made the file, as `embed_store` recorded it; None in a file of the reference.

    Raises:
        UserError: the file is missing, unreadable, empty or no file of embeddings, or its ids do not fit; later,
            when it is read, a row that is not finite or has no direction.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.made_by = _read_made_by(file, self.path)
            if local_dataset(file, "shape_feat").size == 0:
                raise UserError(f"{self.path} is empty: it has no shape embeddings")
            count = len(file["shape_feat"])
            self._has_ids = self.made_by is not None and _are_strings(file, "ids", count)
            self._has_paths = _are_strings(file, "paths", count)
        # What `embed` wrote has unit length and no id twice. Whoever forges that deceives with the scores alone.
        self.vectors = StoredVectors(self.path, trusted=self.made_by is not None)
        # Checked now, while it is the file that is at fault.
        self._other_ids = None if self._has_ids else cached_ids(self.path, len(self.vectors))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def embed_dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def ids(self) -> list[str]:
        """The object id of every row."""
        if self._other_ids is None:
            return read_ids(self.path, count=len(self.vectors))
        return [i.decode() if isinstance(i, bytes) else i for i in self._other_ids]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {object_id: row for row, object_id in enumerate(self.ids)}

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of some rows, without reading all."""
        if "ids" in self.__dict__ or len(rows) > FEW:
            return [self.ids[row] for row in rows]
        if self._other_ids is not None:
            return [i.decode() if isinstance(i, bytes) else i for i in (self._other_ids[row] for row in rows)]
        with opened(self.path) as file:
            dataset = local_dataset(file, "ids")
            try:
                return [dataset[row].decode() for row in rows]
            except (OSError, UnicodeDecodeError):
                raise UserError(f"{self.path}: the dataset 'ids' cannot be read: make the file again") from None

    def row(self, object_id: str) -> int:
        """The row of an object; UserError names an id that is like it, if there is none of that name."""
        if object_id not in self._row_of:
            near = difflib.get_close_matches(object_id, self.ids[:NEAR_AMONG], n=1, cutoff=0.6)
            near = near or [known for known in self.ids if object_id.lower() in known.lower()]
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{self.path} has no object {object_id!r}{hint}")
        return self._row_of[object_id]

    def source_path(self, row: int) -> str | None:
        """The file or folder that an object was embedded from, as seen from here; None if the file does not say."""
        stored = self.stored_path(row)
        return None if stored is None else os.path.normpath(self.path.parent / stored)

    def stored_path(self, row: int) -> str | None:
        """The same as it is stored: from the folder of the embeddings."""
        return self.stored_paths(row, row + 1)[0]

    def stored_paths(self, start: int, stop: int) -> list[str | None]:
        """Of the rows from `start` to `stop`."""
        if not self._has_paths:
            return [None] * (stop - start)
        with opened(self.path) as file:
            return [path.decode(errors="replace") or None for path in local_dataset(file, "paths")[start:stop]]

    def digests(self) -> np.ndarray | None:
        """(N, 16) uint8 of what the views came from, if the file has them."""
        with opened(self.path) as file:
            if "digests" not in file:
                return None
            digests = read_whole(local_dataset(file, "digests"))
        return digests if digests.dtype == np.uint8 and digests.shape == (len(self), 16) else None

    def thumbnail(self, row: int) -> bytes | None:
        """The JPEG kept of an object, or None."""
        return self.thumbnails(row, row + 1)[0]

    def thumbnails(self, start: int, stop: int) -> list[bytes | None]:
        """Of the rows from `start` to `stop`."""
        if self._thumbnail_offsets is None:
            return [None] * (stop - start)
        offsets = self._thumbnail_offsets[start : stop + 1].tolist()
        with opened(self.path) as file:
            data = local_dataset(file, "thumbnail_bytes")
            return [
                data[begin:end].tobytes() if end - begin <= MAX_THUMBNAIL_BYTES else None
                for begin, end in itertools.pairwise(offsets)
            ]

    @cached_property
    def _thumbnail_offsets(self) -> np.ndarray | None:
        with opened(self.path) as file:
            return _read_thumbnail_offsets(file, len(self.vectors))

    def check_model(self, model: Model, *, checkpoint: str | None = None) -> None:
        """Refuse a model that did not make these embeddings; `checkpoint` is its name or path.

        A file without a record is taken on trust if its width fits, with a warning unless it is the official pair: an
        official checkpoint and the folder of embeddings of that name.

        Raises:
            UserError: another width, or the fingerprint of another model.
        """
        width = self.embed_dim
        if width != model.embed_dim:
            raise UserError(
                f"{self.path} has embeddings of width {width}, the model makes {model.embed_dim}: "
                "choose the --checkpoint that made them"
            )
        if self.made_by is None:
            if checkpoint is None or Path(checkpoint).name.removesuffix(".ckpt") != self.path.parent.name:
                warn(f"{self.path} does not say which model made it; answers make sense only if this one did")
        elif self.made_by.get("fingerprint") != model.fingerprint:
            made = f"{self.made_by.get('checkpoint', 'a model')} ({self.made_by.get('fingerprint', 'no fingerprint')})"
            raise UserError(
                f"{self.path} was made by {made}, not by {checkpoint or 'this model'} ({model.fingerprint}): "
                "choose that --checkpoint, or embed the store again"
            )


def _read_made_by(file: h5py.File, path: Path) -> dict[str, Any] | None:
    text = file.attrs.get("made_by")
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (TypeError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} has a damaged record of what made it: embed the store again")
    return record


def _are_strings(file: h5py.File, name: str, count: int) -> bool:
    """Whether the file itself has a string for each of its rows."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        return False
    dataset = local_dataset(file, name)
    return h5py.check_string_dtype(dataset.dtype) is not None and dataset.shape == (count,)


def _read_thumbnail_offsets(file: h5py.File, objects: int) -> np.ndarray | None:
    """(N + 1,) int64 that lie inside `thumbnail_bytes`, or None when there are no usable thumbnails."""
    if not {"thumbnail_offsets", "thumbnail_bytes"} <= set(file):
        return None
    offsets, data = local_dataset(file, "thumbnail_offsets"), local_dataset(file, "thumbnail_bytes")
    if data.dtype != np.uint8 or data.ndim != 1:
        return None
    if offsets.shape != (objects + 1,) or offsets.dtype.kind != "i":
        return None
    values = offsets[:].astype(np.int64)
    if values[0] != 0 or (np.diff(values) < 0).any() or values[-1] > len(data):
        return None
    return values
