"""Shape embeddings read from a file, ours or the reference's, and checked before anything relies on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from ddclip_cli.console import warn
from ddclip_cli.data.hdf5 import local_dataset, opened
from ddclip_cli.data.object_ids import read_ids
from ddclip_cli.errors import UserError

READ_ROWS = 65_536
MAX_THUMBNAIL_BYTES = 1 << 20


class Model(Protocol):
    """What a file of embeddings is compared with."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


class ShapeEmbeddings:
    """The shape embeddings of N objects.

    Attributes:
        path: the file they came from.
        vectors: (N, E) float32, unit length.
        ids: N object ids.
        made_by: what made the file, as `embed_store` recorded it; None in a file of the reference.

    Raises:
        UserError: the file is missing, unreadable, empty or no file of embeddings, its ids do not fit, or a row is not
            finite or has no direction.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened(self.path) as file:
            self.made_by = _read_made_by(file, self.path)
            self.vectors = _read_vectors(file, self.path)
            self._thumbnail_offsets = _read_thumbnail_offsets(file, len(self.vectors))
        self.ids = read_ids(self.path, count=len(self.vectors))
        _normalise(self.vectors, self.ids, self.path)

    def __len__(self) -> int:
        return len(self.vectors)

    def thumbnail(self, row: int) -> bytes | None:
        """The JPEG kept of an object, or None."""
        if self._thumbnail_offsets is None:
            return None
        start, end = (int(offset) for offset in self._thumbnail_offsets[row : row + 2])
        if end - start > MAX_THUMBNAIL_BYTES:
            return None
        with opened(self.path) as file:
            return local_dataset(file, "thumbnail_bytes")[start:end].tobytes()

    def check_model(self, model: Model, *, checkpoint: str | None = None) -> None:
        """Refuse a model that did not make these embeddings; `checkpoint` is its name or path.

        A file without a record is taken on trust if its width fits, with a warning unless it is the official pair: an
        official checkpoint and the folder of embeddings of that name.

        Raises:
            UserError: another width, or the fingerprint of another model.
        """
        width = self.vectors.shape[1]
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


def _read_vectors(file: h5py.File, path: Path) -> np.ndarray:
    """`shape_feat` (N, E) as float32; its declared size is held against the size of the file before memory is taken."""
    dataset = local_dataset(file, "shape_feat")
    if dataset.ndim != 2 or dataset.dtype.kind != "f":
        raise UserError(
            f"{path}: dataset 'shape_feat' is {dataset.shape} {dataset.dtype}: "
            "shape embeddings are (objects, width) floats"
        )
    if dataset.size == 0:
        raise UserError(f"{path} is empty: it has no shape embeddings")
    # Embeddings hardly compress: a file that promises many times its own size promises what is not there.
    if dataset.size * dataset.dtype.itemsize > 8 * path.stat().st_size:
        raise UserError(f"{path} is incomplete: it promises {dataset.shape} embeddings in {path.stat().st_size} bytes")
    vectors = np.empty(dataset.shape, dtype=np.float32)
    for start in range(0, len(vectors), READ_ROWS):
        try:
            vectors[start : start + READ_ROWS] = dataset[start : start + READ_ROWS]
        except OSError:
            raise UserError(f"{path}: the dataset 'shape_feat' is damaged: make or download it again") from None
    return vectors


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


def _normalise(vectors: np.ndarray, ids: list[str], path: Path) -> None:
    """Bring each row to unit length, in place."""
    for start in range(0, len(vectors), READ_ROWS):
        block = vectors[start : start + READ_ROWS]
        lengths = np.linalg.norm(block, axis=1)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(bad):
            row = start + int(bad[0])
            raise UserError(f"{path}: the embedding of {ids[row]} (row {row}) is NaN, infinite or zero: embed it again")
        block /= lengths[:, None]
