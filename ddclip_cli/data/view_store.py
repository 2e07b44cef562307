"""The view store: the pictures of every object, F views each, in one HDF5 file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.codecs import RAW
from ddclip_cli.data.encoded_views import EncodedViews
from ddclip_cli.data.hdf5 import StoredArray, made_by, opened
from ddclip_cli.data.object_ids import RowOf, read_ids
from ddclip_cli.errors import UserError

LARGEST = 4096
"""Pixels on a side of a view; one read takes memory for whole objects."""


class ViewStore:
    """Random access to the views (N, F, 3, S, S) uint8 of a view store, ours or the reference's.

    They are the dataset `imgs`, or encoded (see `EncodedViews`); reading does not show which. Memory does not grow with
    the pictures: they are mapped, not loaded. May be used in threads and in forked and spawned workers.

    Raises:
        UserError: the file is missing or damaged, is no view store, or its ids do not fit (see `read_ids`).
    """

    def __init__(self, path: str | Path, ids: str | Path | None = None) -> None:
        self.path, self.ids_path = Path(path), None if ids is None else Path(ids)
        with opened(path) as file:
            is_encoded = file.get("encoded", getlink=True) is not None
        self._views = EncodedViews(path) if is_encoded else _stored_pixels(path)
        if self.image_size > LARGEST:
            raise UserError(f"{path} claims views of {self.image_size} pixels, more than {LARGEST}: pack smaller ones")
        self.ids: list[str] = read_ids(path, ids, count=len(self._views))

    def __len__(self) -> int:
        return len(self._views)

    @property
    def num_views(self) -> int:
        return self._views.shape[1]

    @property
    def image_size(self) -> int:
        """Side of the stored pictures in pixels."""
        return self._views.shape[3]

    @property
    def codec(self) -> str:
        """One of `CODECS`."""
        return self._views.codec if isinstance(self._views, EncodedViews) else RAW

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, F, 3, S, S)"""
        return self._views.shape

    @cached_property
    def made_by(self) -> dict[str, Any] | None:
        """How the store was made, if it says so."""
        with opened(self.path) as file:
            return made_by(file)

    @property
    def is_mapped(self) -> bool:
        """Whether pixels are read through a memory map, and not decoded or decompressed."""
        return isinstance(self._views, StoredArray) and self._views.is_mapped

    def rows(self, object_ids: Iterable[str]) -> np.ndarray:
        """Rows (B,) int64 of these objects; UserError names those that the store lacks."""
        return self._row_of(object_ids)

    def read(self, rows: Any, views: Any) -> np.ndarray:
        """Views of objects: rows (B,), views (F,) for all or (B, F) for each -> (B, F, 3, S, S) uint8, a copy."""
        return self._views.read(rows, views)

    def read_encoded(self, row: int, num_views: int) -> list[bytes]:
        """The first F views of an object as an encoded store keeps them."""
        assert isinstance(self._views, EncodedViews)
        return self._views.read_encoded(row, num_views)

    @cached_property
    def _row_of(self) -> RowOf:
        return RowOf(self.ids, self.path)


def _stored_pixels(path: str | Path) -> StoredArray:
    imgs = StoredArray(path, "imgs", axes=("objects", "views", "3", "size", "size"), dtype="uint8")
    if imgs.shape[2] != 3 or imgs.shape[3] != imgs.shape[4]:
        raise UserError(f"{path}: dataset 'imgs' is {imgs.shape}: it must be (objects, views, 3, size, size)")
    return imgs
