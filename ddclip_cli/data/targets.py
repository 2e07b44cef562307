"""Frozen features that training aims at, read by row and view."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.hdf5 import StoredArray, made_by, opened
from ddclip_cli.data.object_ids import RowOf, read_ids
from ddclip_cli.data.text_targets import TextTargets


class _PerViewFeatures:
    """A dataset (N, F, E) of un-normalised features, one a view."""

    dataset: str

    def __init__(self, path: str | Path, ids: str | Path | None = None) -> None:
        self.path = Path(path)
        self._features = StoredArray(path, self.dataset, axes=("objects", "views", "width"), dtype="float")
        self._ids_path = ids

    def __len__(self) -> int:
        return len(self._features)

    @property
    def num_views(self) -> int:
        return self._features.shape[1]

    @cached_property
    def ids(self) -> list[str]:
        """Object of every row (see `read_ids`)."""
        return read_ids(self.path, self._ids_path, count=len(self))

    @cached_property
    def backbone_fingerprint(self) -> str | None:
        """Of the model that made the file, if the file says so."""
        with opened(self.path) as file:
            return (made_by(file) or {}).get("fingerprint")

    def rows(self, object_ids: Iterable[str]) -> np.ndarray:
        """Rows (B,) int64 of these objects; UserError names those that are not there."""
        return self._row_of(object_ids)

    def read(self, rows: Any, views: Any) -> np.ndarray:
        """Rows (B,), views (F,) -> (B, E) float32: the mean over exactly those views of the un-normalised features."""
        return self._features.read(rows, views).astype(np.float32).mean(axis=1)  # (B, F, E) -> (B, E)

    @cached_property
    def _row_of(self) -> RowOf:
        return RowOf(self.ids, self.path)


class ImageTargets(_PerViewFeatures):
    """`img_feat` (N, F, E): the image feature of every view; of `encode_targets` or the reference."""

    dataset = "img_feat"


class PerViewTextTargets(_PerViewFeatures):
    """`text_feat` (N, F, E): the feature of a caption of every view, as the reference has them for MVImgNet."""

    dataset = "text_feat"


def open_text_targets(path: str | Path) -> TextTargets | PerViewTextTargets:
    """Text targets in whichever form the file has them: several an object, or one a view."""
    if Path(path).suffix != ".npy":
        with opened(Path(path)) as file:
            if "text_feat" in file:
                return PerViewTextTargets(path)
    return TextTargets(path)
