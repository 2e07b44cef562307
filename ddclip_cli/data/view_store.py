"""The view store: the pictures of every object, F views each, in one HDF5 file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.hdf5 import StoredArray
from ddclip_cli.data.object_ids import RowOf, read_ids
from ddclip_cli.errors import UserError

LARGEST = 4096
"""Pixels on a side of a view; one read takes memory for whole objects."""


class ViewStore:
    """Random access to the dataset `imgs` (N, F, 3, S, S) uint8 of a view store, ours or the reference's.

    Memory does not grow with the pictures: they are mapped, not loaded. May be used in forked and spawned workers.

    Raises:
        UserError: the file is missing or damaged, is no view store, or its ids do not fit (see `read_ids`).
    """

    def __init__(self, path: str | Path, ids: str | Path | None = None) -> None:
        self.path = Path(path)
        self._imgs = StoredArray(path, "imgs", axes=("objects", "views", "3", "size", "size"), dtype="uint8")
        shape = self._imgs.shape
        if shape[2] != 3 or shape[3] != shape[4]:
            raise UserError(f"{path}: dataset 'imgs' is {shape}: it must be (objects, views, 3, size, size)")
        if shape[3] > LARGEST:
            raise UserError(f"{path} claims views of {shape[3]} pixels, more than {LARGEST}: pack smaller ones")
        self.ids: list[str] = read_ids(path, ids, count=len(self._imgs))

    def __len__(self) -> int:
        return len(self._imgs)

    @property
    def num_views(self) -> int:
        return self._imgs.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the stored pictures in pixels."""
        return self._imgs.shape[3]

    def rows(self, object_ids: Iterable[str]) -> np.ndarray:
        """Rows (B,) int64 of these objects; UserError names those that the store lacks."""
        return self._row_of(object_ids)

    def read(self, rows: Any, views: Any) -> np.ndarray:
        """Views of objects: rows (B,), views (F,) for all or (B, F) for each -> (B, F, 3, S, S) uint8, a copy."""
        return self._imgs.read(rows, views)

    @cached_property
    def _row_of(self) -> RowOf:
        return RowOf(self.ids, self.path)
